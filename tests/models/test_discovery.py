"""Discovery: the set is what Ollama last said, for as long as that counts, and never more."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock

from neuronetz.errors import ModelDenied, UpstreamFailed
from neuronetz.models.discovery import REDIS_KEY, Discovery, read_tags
from neuronetz.policy import Limits, Principal
from neuronetz.stores.redis import Redis, open_redis


class Ollama:
    """What the fetch gives: a list of models, or an error."""

    def __init__(self, *names: str) -> None:
        self.reply: bytes | Exception = tags(*names)
        self.polls = 0

    async def __call__(self) -> bytes:
        self.polls += 1
        await trio.lowlevel.checkpoint()
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


def tags(*names: str, **more: Any) -> bytes:
    return json.dumps({"models": [{"name": name, "model": name, "size": 1, **more} for name in names]}).encode()


def principal(*models: str, allow_all: bool = False) -> Principal:
    return Principal("t", "t", "k", "k", "nnz_12345678", Limits(), Limits(), allow_all, frozenset(models))


def discovery(fetch: Callable[[], Awaitable[bytes]], redis: Redis, **changes: Any) -> Discovery:
    return Discovery(fetch, redis, **{"interval_s": 10.0, "ttl_s": 60.0, "remote_models": False, **changes})


@pytest.fixture
def redis_url(each_redis_url: str) -> str:
    return each_redis_url


@pytest.fixture
async def no_redis(asyncio_loop: object) -> AsyncIterator[Redis]:
    """A Redis that is down: nobody listens at this port."""
    async with open_redis("redis://127.0.0.1:1/0", size=1, timeout_s=0.5) as store:
        yield store


async def test_before_the_first_poll_everything_is_denied(no_redis: Redis) -> None:
    found = discovery(Ollama("a"), no_redis)
    assert not found.fresh
    assert found.discovered() == {}
    with pytest.raises(ModelDenied):
        found.resolve(principal(allow_all=True), "a")


async def test_a_poll_makes_models_known_and_shares_them(redis: Redis) -> None:
    found = discovery(Ollama("A:latest", "b:7B"), redis, ttl_s=33.2)
    assert await found.poll()
    assert sorted(found.discovered()) == ["a:latest", "b:7b"]
    assert json.loads(await redis.command("GET", REDIS_KEY)) == ["A:latest", "b:7B"]
    assert await redis.command("TTL", REDIS_KEY) in {33, 34}


async def test_the_name_sent_upstream_is_the_one_installed(no_redis: Redis) -> None:
    found = discovery(Ollama("Llama3:latest", "secret:latest"), no_redis)
    await found.poll()
    for asked in ("llama3", "LLAMA3:Latest", "library/llama3", "registry.ollama.ai/library/llama3"):
        assert found.resolve(principal("llama3:latest"), asked) == "Llama3:latest"
    assert found.resolve(principal(allow_all=True), "secret") == "secret:latest"


async def test_which_models_think_is_known_from_what_ollama_says_of_them(no_redis: Redis) -> None:
    now = [0.0]
    ollama = Ollama()
    found = discovery(ollama, no_redis, clock=lambda: now[0])
    for told, thinks in (
        ({"capabilities": ["completion", "thinking"]}, True),
        ({"capabilities": ["completion"]}, False),
        ({"capabilities": None}, False),
        ({"capabilities": "thinking"}, False),
        ({}, False),
    ):
        ollama.reply = tags("Deep:latest", **told)
        await found.poll()
        assert found.thinks("Deep:latest") is thinks
        assert not found.thinks("missing")
    ollama.reply = tags("deep", capabilities=["thinking"])
    await found.poll()
    assert found.thinks("deep")
    now[0] = 60.1
    assert not found.thinks("deep")


async def test_not_installed_and_not_permitted_are_one_answer(no_redis: Redis) -> None:
    found = discovery(Ollama("a:latest", "b:latest"), no_redis)
    await found.poll()
    messages = set()
    for asked in ("b", "missing", "gone", "", "a:cloud", "x y"):
        with pytest.raises(ModelDenied) as denied:
            found.resolve(principal("a:latest", "gone:latest"), asked)
        messages.add(denied.value.message)
    assert len(messages) == 1


async def test_a_set_that_is_too_old_denies(no_redis: Redis) -> None:
    now = [0.0]
    ollama = Ollama("a")
    found = discovery(ollama, no_redis, clock=lambda: now[0])
    await found.poll()
    ollama.reply = UpstreamFailed()
    now[0] = 60.0
    assert not await found.poll()
    assert found.resolve(principal(allow_all=True), "a") == "a"
    now[0] = 60.1
    assert (found.fresh, found.discovered(), found.failing) == (False, {}, "UpstreamFailed")
    with pytest.raises(ModelDenied):
        found.resolve(principal(allow_all=True), "a")
    ollama.reply = tags("a")
    assert await found.poll()
    assert found.resolve(principal(allow_all=True), "a") == "a"


async def test_a_model_that_was_removed_is_denied_after_the_next_poll(no_redis: Redis) -> None:
    ollama = Ollama("a", "b")
    found = discovery(ollama, no_redis)
    await found.poll()
    ollama.reply = tags("b")
    await found.poll()
    with pytest.raises(ModelDenied):
        found.resolve(principal(allow_all=True), "a")


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"models":[7]}',
        b'{"models":{}}',
        b"\xff",
        b"[" * 5000,
        UpstreamFailed(),
        OSError(),
    ],
)
async def test_a_poll_that_fails_leaves_the_set_and_says_so(reply: bytes | Exception, no_redis: Redis) -> None:
    ollama = Ollama("a")
    found = discovery(ollama, no_redis)
    await found.poll()
    ollama.reply = reply
    assert not await found.poll()
    assert found.failing is not None
    assert set(found.discovered()) == {"a:latest"}


async def test_a_fetch_that_hangs_is_a_failure(no_redis: Redis, autojump_clock: MockClock) -> None:
    found = discovery(trio.sleep_forever, no_redis, timeout_s=3.0)
    assert not await found.poll()
    assert (trio.current_time(), found.failing) == (3.0, "TooSlowError")


async def test_redis_is_not_needed(no_redis: Redis) -> None:
    found = discovery(Ollama("a"), no_redis)
    assert await found.poll()
    assert found.fresh


async def test_it_polls_at_its_interval_and_faster_while_it_fails(
    no_redis: Redis, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ollama = Ollama("a")
    found = discovery(ollama, no_redis)
    # No sockets under a clock that jumps.
    monkeypatch.setattr(found, "_share", trio.lowlevel.checkpoint)
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.run)
            await trio.sleep(35)
            assert ollama.polls == 4
            ollama.reply, ollama.polls = UpstreamFailed(), 0
            await trio.sleep(60)
            # At 40, then after 0.2, 0.4, 0.8, 1.6, 3.2, 6.4 and from then on every 10 seconds.
            assert ollama.polls == 11
            ollama.reply = tags("a", "b")
            await found.wait_refreshed()
            nursery.cancel_scope.cancel()
    assert [entry["event"] for entry in logs] == [
        "models.discovered",
        "models.discovery_failed",
        "models.discovery_recovered",
    ]


async def test_waiting_ends_with_the_first_success_or_in_time(
    no_redis: Redis, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ollama = Ollama("a")
    ollama.reply = UpstreamFailed()
    found = discovery(ollama, no_redis)
    monkeypatch.setattr(found, "_share", trio.lowlevel.checkpoint)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.run)
        assert not await found.wait_until_known(5)
        assert trio.current_time() == 5
        ollama.reply = tags("a")
        assert await found.wait_until_known(60)
        assert trio.current_time() < 10
        assert await found.wait_until_known(60)
        nursery.cancel_scope.cancel()


def test_models_that_run_elsewhere_count_only_where_the_operator_says_so() -> None:
    reply = json.dumps(
        {
            "models": [
                {"name": "a:latest"},
                {"name": "b:cloud"},
                {"name": "c:120b-CLOUD"},
                {"name": "d:latest", "remote_host": "https://ollama.com:443", "remote_model": "d"},
                {"name": "e:local"},
            ]
        }
    ).encode()
    assert set(read_tags(reply, remote_models=False)) == {"a:latest"}
    assert set(read_tags(reply, remote_models=True)) == {"a:latest", "b:cloud", "c:120b-cloud", "d:latest"}


def test_entries_without_a_name_are_no_models_and_the_first_of_two_wins() -> None:
    reply = json.dumps({"models": [{}, {"name": 7}, {"name": ""}, {"model": "m"}, {"name": "M:latest"}], "x": 1})
    models = read_tags(reply.encode(), remote_models=False)
    assert {name: entry["name"] for name, entry in models.items()} == {"m:latest": "m"}
    assert read_tags(b'{"models":null}', remote_models=False) == {}


def test_a_list_beyond_all_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        read_tags(b" " * (16 * 1024 * 1024 + 1), remote_models=False)
