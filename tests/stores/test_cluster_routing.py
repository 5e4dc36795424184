"""Where calls go in a cluster: pure parts as tables, then three real nodes."""

from typing import Any

import pytest

from neuronetz.cli.database import with_redis
from neuronetz.cli.failure import Failure
from neuronetz.errors import SettingsError
from neuronetz.settings import Settings
from neuronetz.stores.cluster import SCHEMES, key_of, read_slots, read_url, slot_of
from neuronetz.stores.redis import Redis


@pytest.mark.parametrize(
    ("url", "seeds", "options"),
    [
        ("redis+cluster://a", [("a", 6379)], {}),
        ("redis+cluster://a:1,b:2,c", [("a", 1), ("b", 2), ("c", 6379)], {}),
        ("redis+cluster://me:p%40ss@a:1,b:2/0", [("a", 1), ("b", 2)], {"username": "me", "password": "p@ss"}),
        ("redis+cluster://:a,b@h:1", [("h", 1)], {"password": "a,b"}),
        ("redis+cluster://[::1]:7,[fe80::2]:8", [("::1", 7), ("fe80::2", 8)], {}),
    ],
)
def test_a_url_names_the_first_nodes_and_the_options_of_all(
    url: str, seeds: list[Any], options: dict[str, str]
) -> None:
    found, others = read_url(url)
    others.pop("db", None)
    assert (found, others) == (seeds, options)


def test_tls_is_for_every_node() -> None:
    _, options = read_url("rediss+cluster://a:1?ssl_ca_certs=/ca.pem")
    assert options["connection_class"].__name__ == "SSLConnection"
    assert options["ssl_ca_certs"] == "/ca.pem"
    assert set(SCHEMES) == {"redis+cluster", "rediss+cluster"}


@pytest.mark.parametrize("url", ["redis+cluster://a/1", "redis+cluster://a?db=3"])
def test_a_cluster_has_one_database(url: str) -> None:
    with pytest.raises(SettingsError, match="database 0"):
        read_url(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+cluster://a:1,b:2", None),
        ("rediss+cluster://me:secret@a:1/0", None),
        ("redis+cluster://a/2", "database 0"),
        ("cluster://a", "must start with"),
    ],
)
def test_the_settings_take_a_clusters_url(url: str, reason: str | None) -> None:
    def load() -> Settings:
        return Settings.load(database_url="postgresql://", redis_url=url, ollama_url="http://localhost")

    if reason is None:
        assert load().redis_url == url
    else:
        with pytest.raises(SettingsError, match=f"^REDIS_URL: .*{reason}"):
            load()


@pytest.mark.parametrize("url", ["redis+cluster://a:1,b:x", "redis+cluster://a:99999"])
def test_the_command_line_refuses_a_host_without_a_port_that_is_one(url: str) -> None:
    with pytest.raises(SettingsError, match="not a valid URL"):
        with_redis(url, never)


def test_the_command_line_says_in_a_line_that_a_cluster_is_away() -> None:
    with pytest.raises(Failure, match="Redis is not reachable"):
        with_redis("redis+cluster://127.0.0.1:1,127.0.0.1:2", lambda redis: redis.command("GET", "k"))


async def never(redis: Redis) -> None:
    raise AssertionError


def test_slots_have_the_primary_as_owner_and_a_host_that_is_left_out_is_the_one_asked() -> None:
    reply = [
        [0, 1, [b"10.0.0.1", 7000, b"id"], [b"10.0.0.9", 7009, b"id"]],
        [2, 2, [b"", 7001, b"id"]],
        [4, 16383, [None, 7002, b"id", []]],
    ]
    owners = read_slots(reply, ("asked", 1))
    assert owners[:5] == [("10.0.0.1", 7000), ("10.0.0.1", 7000), ("asked", 7001), None, ("asked", 7002)]
    assert len(owners) == 16384
    assert owners[-1] == ("asked", 7002)


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (("GET", "k"), "k"),
        (("EVALSHA", "abc", 2, "k", "l", "x"), "k"),
        (("eval", "return 1", "1", b"k"), b"k"),
    ],
)
def test_a_command_finds_its_node_by_its_first_key(args: tuple[Any, ...], key: Any) -> None:
    assert key_of(args) == key


@pytest.mark.parametrize("args", [("GET",), ("EVAL", "return 1", 0), ("EVAL", "return 1", 0, "x")])
def test_a_command_without_a_key_finds_none(args: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="no key"):
        key_of(args)


def test_a_hash_tag_decides_alone() -> None:
    assert slot_of("gateway:{t}:slots") == slot_of(b"gateway:{t}:rows:one") == slot_of("t")
