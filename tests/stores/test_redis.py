"""The Redis store before a real single server: one connection for all, and nothing that its failures leave unclear."""

import math
import random
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import redis as redis_py
import trio
import trustme

from neuronetz.errors import SettingsError, StoreUnavailable
from neuronetz.stores import redis_pipe
from neuronetz.stores.redis import Redis, Script, open_redis
from neuronetz.stores.redis_replies import pack

ADD = Script("add", "return {redis.call('INCRBY', KEYS[1], ARGV[1]), ARGV[2]}")


@pytest.fixture
async def redis(own_valkey: Any) -> AsyncIterator[Redis]:
    async with open_redis(own_valkey.url(), size=1, timeout_s=2.0) as store:
        yield store


def tcp(front: Any, options: str = "") -> str:
    return f"redis://127.0.0.1:{front.port}/0{options}"


async def test_all_calls_share_one_connection_and_each_gets_its_own_reply(redis: Redis) -> None:
    async def ask(number: int) -> None:
        assert await redis.command("ECHO", f"call {number}") == f"call {number}".encode()
        assert await redis.script(ADD, (f"sum:{number}",), (number, "x")) == [number, b"x"]
        assert await redis.pipeline([("GET", f"sum:{number}"), ("ECHO", number)]) == [str(number).encode()] * 2

    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(ask, number)
    clients = (await redis.command("CLIENT", "LIST")).decode().splitlines()
    assert [" name=neuronetz " in client for client in clients] == [True]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_replies_look_as_redis_py_gives_them(own_valkey: Any, protocol: int) -> None:
    url = own_valkey.url()
    commands: list[tuple[Any, ...]] = [
        ("HSET", "hash", "a", "1", "b", "2"),
        ("SADD", "set", "x", "y"),
        ("ZADD", "zset", 1.5, "m", 2, "n"),
        ("SET", "text", "value", "EX", 60),
        ("SET", "text", "value", "NX", "PX", 100),
        ("HGETALL", "hash"),
        ("HGETALL", "none"),
        ("HMGET", "hash", "a", "c"),
        ("HKEYS", "hash"),
        ("HLEN", "hash"),
        ("HGET", "hash", "a"),
        ("HSCAN", "hash", 0, "COUNT", 10),
        ("HINCRBY", "hash", "a", 3),
        ("HDEL", "hash", "a"),
        ("SMEMBERS", "set"),
        ("SCARD", "set"),
        ("ZRANGE", "zset", 0, -1, "WITHSCORES"),
        ("ZSCORE", "zset", "m"),
        ("ZSCORE", "zset", "none"),
        ("ZREM", "zset", "m"),
        ("MGET", "text", "none"),
        ("GET", "text"),
        ("TTL", "text"),
        ("EXISTS", "text", "none"),
        ("TYPE", "hash"),
        ("SCAN", 0, "MATCH", "t*", "COUNT", 1000),
        ("KEYS", "z*"),
        ("RENAME", "text", "text2"),
        ("PING",),
        ("DBSIZE",),
        ("CONFIG", "GET", "maxmemory*"),
        ("EVAL", "return {1, false, 'x', {ok='fine'}, 2.7}", 0),
        ("DEL", "hash", "set", "zset", "text2"),
        ("FLUSHDB",),
    ]
    with redis_py.Redis.from_url(url) as peer:
        expected = [peer.execute_command(*command) for command in commands]
        info = {section: peer.execute_command("INFO", section) for section in ("server", "memory", "persistence")}
    async with open_redis(f"{url}&protocol={protocol}", size=1, timeout_s=2.0) as redis:
        replies = [await redis.command(*command) for command in commands]
        for command, reply, wanted in zip(commands, replies, expected, strict=True):
            if command[0] in ("SMEMBERS", "HKEYS", "KEYS"):
                assert sorted(reply) == sorted(wanted)
                continue
            if command[0] == "TTL":
                assert 0 < reply <= wanted
                continue
            assert (reply, type(reply)) == (wanted, type(wanted)), command
        assert await redis.pipeline(commands[:4]) == replies[:4]
        for section, wanted in info.items():
            reply = await redis.command("INFO", section)
            assert reply.keys() == wanted.keys()
            assert [type(value) for value in reply.values()] == [type(value) for value in wanted.values()]
        seconds, micros = await redis.command("TIME")
        assert isinstance(seconds, int)
        assert isinstance(micros, int)


async def test_an_error_is_named_and_leaves_the_connection_good(redis: Redis) -> None:
    await redis.command("SET", "text", "1")
    for call, reason in (
        (lambda: redis.command("HGET", "text", "field"), "ResponseError"),
        (
            lambda: redis.script(Script("broken", "return redis.call('HGET', KEYS[1], 'f')"), ("text",), ()),
            "ResponseError",
        ),
        (
            lambda: redis.script(Script("moved", "return redis.error_reply('MOVED nowhere')"), ("text",), ()),
            "ResponseError",
        ),
        (lambda: redis.command("SET", "text", None), "DataError"),  # type: ignore[arg-type]
    ):
        with pytest.raises(StoreUnavailable) as refusal:
            await call()
        assert refusal.value.reason == reason
    with pytest.raises(StoreUnavailable) as refusal:
        await redis.pipeline([("SET", "a", "1"), ("HGET", "text", "field"), ("SET", "b", "2")])
    assert refusal.value.reason == "ResponseError"
    assert await redis.command("MGET", "a", "b") == [b"1", b"2"]
    assert await redis.pipeline([]) == []


async def test_a_script_is_sent_whole_once_and_again_when_the_server_forgot_it(redis: Redis) -> None:
    assert await redis.script(ADD, ("sum",), (1, "x")) == [1, b"x"]
    assert await redis.script(ADD, ("sum",), (1, "x")) == [2, b"x"]
    await redis.command("SCRIPT", "FLUSH")
    assert await redis.script(ADD, ("sum",), (1, "x")) == [3, b"x"]
    calls = await redis.command("INFO", "commandstats")
    assert calls["cmdstat_eval"]["calls"] == 2


async def test_calls_cancelled_at_random_points_never_mix_up_the_replies_of_others(redis: Redis) -> None:
    random.seed(7)
    answered = cancelled = 0
    longest_s = math.inf
    await redis.command("PING")

    async def ask(number: int) -> None:
        nonlocal answered, cancelled
        texts = [f"{number}/{part}/{'x' * random.randrange(2000)}" for part in range(random.randrange(1, 4))]
        with trio.move_on_after(random.random() * longest_s) as scope:
            for _ in range(random.randrange(3)):
                await trio.lowlevel.checkpoint()
            replies = await redis.pipeline([("ECHO", text) for text in texts])
            assert replies == [text.encode() for text in texts]
            assert await redis.script(ADD, (f"k{number}",), (number, texts[0])) == [number, texts[0].encode()]
            answered += 1
        cancelled += scope.cancelled_caught

    for start in range(0, 6000, 100):
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(start, start + 100):
                nursery.start_soon(ask, number)
        if longest_s == math.inf:
            # Many of the others are cancelled on their way, and many are not, however fast the machine is.
            longest_s = 1.5 * (trio.current_time() - began)
    assert answered + cancelled == 6000
    assert min(answered, cancelled) > 500, (answered, cancelled)
    assert (await redis.command("INFO", "stats"))["total_connections_received"] <= 3  # its probes, and ours


async def test_a_call_that_is_cancelled_already_is_not_sent(redis: Redis) -> None:
    await redis.command("PING")
    with trio.CancelScope() as scope:
        scope.cancel()
        await redis.command("SET", "k", "1")
    assert scope.cancelled_caught
    assert await redis.command("GET", "k") is None


async def test_a_server_that_hangs_fails_all_calls_in_time_and_is_good_again_later(own_valkey: Any) -> None:
    async with open_redis(own_valkey.url(), size=1, timeout_s=1.0) as redis:
        await redis.command("PING")
        own_valkey.pause()
        failures: list[StoreUnavailable] = []

        async def ask(delay: float) -> None:
            await trio.sleep(delay)
            with pytest.raises(StoreUnavailable) as failure:
                await redis.command("INCR", "k")
            failures.append(failure.value)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, number / 100)
        assert trio.current_time() - began < 1.0 + 0.6
        assert {failure.reason for failure in failures} == {"TimeoutError"}
        assert all(failure.sent for failure in failures)
        own_valkey.resume()
        with trio.fail_after(5):
            # What was sent is carried out, and none of it twice.
            while await redis.command("GET", "k") != b"20":
                await trio.sleep(0.01)
        await trio.sleep(0.1)
        assert await redis.command("INCR", "k") == 21


async def test_what_was_never_written_is_known_not_to_be_sent(own_valkey: Any) -> None:
    async with open_redis(own_valkey.url(), size=1, timeout_s=0.3) as redis:
        await redis.command("PING")
        own_valkey.pause()
        sent: dict[str, bool] = {}

        async def ask(name: str, value: bytes) -> None:
            with pytest.raises(StoreUnavailable) as failure:
                await redis.command("SET", name, value)
            sent[name] = failure.value.sent

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "large", b"x" * 8_000_000)
            await trio.sleep(0.05)
            nursery.start_soon(ask, "behind it", b"1")
        own_valkey.resume()
        assert sent == {"large": True, "behind it": False}
        with trio.fail_after(5):
            assert await redis.command("EXISTS", "behind it") == 0


async def test_a_full_pipe_makes_calls_wait_and_then_fail_unsent(
    own_valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_pipe, "MOST_CALLS", 4)
    async with open_redis(own_valkey.url(), size=1, timeout_s=0.4) as redis:

        async def ask(number: int) -> None:
            assert await redis.command("ECHO", number) == str(number).encode()

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number)
        own_valkey.pause()
        failures: list[StoreUnavailable] = []

        async def refused(delay: float) -> None:
            await trio.sleep(delay)
            with pytest.raises(StoreUnavailable) as failure:
                await redis.command("INCR", "k")
            failures.append(failure.value)

        async with trio.open_nursery() as nursery:
            for number in range(7):
                nursery.start_soon(refused, 0.01 * number)
        own_valkey.resume()
        assert sorted(failure.sent for failure in failures) == [False] * 3 + [True] * 4
        with trio.fail_after(5):
            while await redis.command("GET", "k") != b"4":
                await trio.sleep(0.01)


async def test_bytes_not_yet_written_are_bounded_too(own_valkey: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_pipe, "MOST_BYTES", 100_000)
    value = b"x" * 60_000
    async with open_redis(own_valkey.url(), size=1, timeout_s=2.0) as redis, trio.open_nursery() as nursery:

        async def ask() -> None:
            assert await redis.command("ECHO", value) == value

        for _ in range(50):
            nursery.start_soon(ask)


async def test_it_is_opened_while_the_server_is_away_and_finds_it_later(own_valkey: Any) -> None:
    await own_valkey.stop()
    async with open_redis(own_valkey.url(), size=1, timeout_s=1.0) as redis:
        for _ in range(2):
            with pytest.raises(StoreUnavailable) as failure:
                await redis.command("PING")
            assert (failure.value.reason, failure.value.sent) == ("ConnectionError", False)
        await own_valkey.start()
        assert await redis.command("PING")
        await own_valkey.stop(immediate=True)
        await own_valkey.start()
        with trio.fail_after(2):
            while True:
                try:
                    assert await redis.command("PING")
                    break
                except StoreUnavailable:
                    await trio.sleep(0.01)


async def test_many_first_calls_connect_once_and_one_that_is_cancelled_does_not_fail_them(front: Any) -> None:
    front.open = trio.Event()
    done: list[int] = []
    async with open_redis(tcp(front), size=1, timeout_s=2.0) as redis, trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            assert await redis.command("ECHO", number) == str(number).encode()
            done.append(number)

        with trio.move_on_after(0.05):
            await ask(-1)
        for number in range(50):
            nursery.start_soon(ask, number)
        await trio.sleep(0.05)
        front.open.set()
    assert sorted(done) == list(range(50))
    assert front.accepted == 1


async def test_a_server_that_takes_a_connection_and_says_nothing_is_given_up_in_time(front: Any) -> None:
    front.open = trio.Event()
    async with open_redis(tcp(front), size=1, timeout_s=0.2) as redis:
        with trio.fail_after(1.0), pytest.raises(StoreUnavailable) as failure:
            await redis.command("PING")
        assert (failure.value.reason, failure.value.sent) == ("TimeoutError", False)


async def test_nothing_is_repeated_when_connections_are_cut(front: Any) -> None:
    known = unknown = 0

    async def ask() -> None:
        nonlocal known, unknown
        for _ in range(200):
            try:
                await redis.command("INCR", "k")
                known += 1
            except StoreUnavailable as error:
                unknown += error.sent

    async with open_redis(tcp(front), size=1, timeout_s=2.0) as redis:
        await redis.command("PING")
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
            for _ in range(20):
                await trio.sleep(0.005)
                front.cut()
        total = -1
        with trio.fail_after(5):
            while total < 0:  # that the connection was cut may be found out only now
                with suppress(StoreUnavailable):
                    total = int(await redis.command("GET", "k"))
        assert front.accepted > 2
        assert known <= total <= known + unknown
        assert known > 100


async def test_a_connection_may_end_in_the_moment_in_which_a_reply_comes(own_valkey: Any) -> None:
    outcomes: list[bool] = []

    async def ask(redis: Redis) -> None:
        try:
            assert await redis.command("ECHO", "x") == b"x"
            outcomes.append(True)
        except StoreUnavailable:
            outcomes.append(False)

    async with open_redis(own_valkey.url(), size=1, timeout_s=2.0) as redis:
        for _ in range(60):
            await redis.command("PING")
            pipe = (await redis._server.link()).pipe
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask, redis)
                before = pipe._appended
                while pipe._appended == before or pipe._transport.taken < pipe._appended:
                    await trio.lowlevel.checkpoint()
                time.sleep(0.005)  # noqa: ASYNC251 - the replies come, and nobody may read them yet
                await trio.lowlevel.checkpoint()
                pipe.end(redis_py.ConnectionError("by the test"))
    assert len(outcomes) == 180
    assert {True, False} == set(outcomes)


@pytest.mark.parametrize("blocked", [False, True])
async def test_nothing_leaves_after_its_caller_was_told_that_it_was_not_sent(
    own_valkey: Any, redis: Redis, blocked: bool
) -> None:
    carried_out = told_unsent = 0

    async def ask(ending: Redis) -> None:
        nonlocal carried_out, told_unsent
        try:
            await ending.command("INCR", "k")
            carried_out += 1
        except StoreUnavailable as failure:
            carried_out += failure.sent
            told_unsent += not failure.sent

    async def in_front(ending: Redis) -> None:
        with pytest.raises(StoreUnavailable):
            await ending.command("ECHO", b"x" * 300_000)

    for _ in range(30):
        async with open_redis(own_valkey.url(), size=1, timeout_s=5.0) as ending:
            await ending.command("PING")
            pipe = (await ending._server.link()).pipe
            async with trio.open_nursery() as nursery:
                if blocked:
                    own_valkey.pause()
                    nursery.start_soon(in_front, ending)
                    await trio.sleep(0.05)
                # Of two the first goes at once, and the other waits for the writer.
                asks = 1 if blocked else 2
                asked = pipe._appended + asks * len(pack([("INCR", "k")]))
                for _ in range(asks):
                    nursery.start_soon(ask, ending)
                while pipe._appended < asked:
                    await trio.lowlevel.checkpoint()
                if blocked:
                    await trio.sleep(0.02)
                    own_valkey.resume()
                    # The socket takes more, and the writer is woken, but not before the connection has ended.
                    time.sleep(0.05)  # noqa: ASYNC251
                    await trio.lowlevel.checkpoint()
                pipe.end(redis_py.ConnectionError("by the test"))
    assert told_unsent
    assert int(await redis.command("GET", "k") or 0) <= carried_out


async def test_what_no_redis_says_costs_the_connection_alone() -> None:
    async def nonsense(client: trio.SocketStream) -> None:
        while await client.receive_some():
            # A map whose name is a list.
            await client.send_all(b"%1\r\n*1\r\n:1\r\n:2\r\n")

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, nonsense, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        async with open_redis(f"redis://127.0.0.1:{port}/0", size=1, timeout_s=1.0) as redis:
            for _ in range(2):
                with pytest.raises(StoreUnavailable) as failure:
                    await redis.command("PING")
                assert failure.value.reason == "InvalidResponse"
        nursery.cancel_scope.cancel()


async def test_closing_ends_calls_under_way_at_once(own_valkey: Any) -> None:
    failures: list[StoreUnavailable] = []
    async with trio.open_nursery() as nursery:
        async with open_redis(own_valkey.url(), size=1, timeout_s=30.0) as redis:
            await redis.command("PING")
            own_valkey.pause()

            async def ask() -> None:
                with pytest.raises(StoreUnavailable) as failure:
                    await redis.command("PING")
                failures.append(failure.value)

            nursery.start_soon(ask)
            await trio.sleep(0.05)
            began = trio.current_time()
        assert trio.current_time() - began < 1.5
        own_valkey.resume()
    assert [failure.reason for failure in failures] == ["ConnectionError"]
    with pytest.raises(StoreUnavailable):
        await redis.command("PING")


async def test_what_the_block_raises_passes_as_it_is(own_valkey: Any) -> None:
    async def fails() -> None:
        async with open_redis(own_valkey.url(), size=1, timeout_s=2.0) as redis:
            await redis.command("PING")
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await fails()


async def test_a_cancelled_block_can_still_clean_up(own_valkey: Any, redis: Redis) -> None:
    with trio.CancelScope() as scope:
        async with open_redis(own_valkey.url(), size=1, timeout_s=2.0) as ending:
            await ending.command("PING")
            scope.cancel()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await ending.command("SET", "settled", "1")
    assert scope.cancelled_caught
    assert await redis.command("GET", "settled") == b"1"


async def test_a_cancelled_opening_ends(own_valkey: Any) -> None:
    with trio.fail_after(2), trio.CancelScope() as scope:
        scope.cancel()
        async with open_redis(own_valkey.url(), size=1, timeout_s=2.0) as redis:
            await redis.command("PING")
    assert scope.cancelled_caught


async def test_user_password_name_and_database_come_from_the_url(
    own_valkey: Any, front: Any, redis: Redis
) -> None:
    await redis.command("ACL", "SETUSER", "gate", "on", ">s3cret/", "~*", "&*", "+@all")
    url = f"redis://gate:s3cret%2F@127.0.0.1:{front.port}/3?client_name=mine"
    async with open_redis(url, size=1, timeout_s=2.0) as named:
        assert await named.command("ACL", "WHOAMI") == b"gate"
        assert await named.command("CLIENT", "GETNAME") == b"mine"
        await named.command("SET", "k", "in 3")
    with redis_py.Redis.from_url(own_valkey.url(3)) as peer:
        assert peer.get("k") == b"in 3"
    async with open_redis(f"redis://gate:wrong@127.0.0.1:{front.port}", size=1, timeout_s=2.0) as stranger:
        with pytest.raises(StoreUnavailable) as refusal:
            await stranger.command("PING")
        assert (refusal.value.reason, refusal.value.sent) == ("AuthenticationError", False)


async def test_a_server_that_refuses_hello_is_spoken_to_as_of_old(front: Any, redis: Redis) -> None:
    await redis.command("ACL", "SETUSER", "old", "on", ">pw", "~*", "&*", "+@all")
    front.unknown = b"HELLO"
    async with open_redis(f"redis://old:pw@127.0.0.1:{front.port}/1", size=1, timeout_s=2.0) as old:
        await old.command("HSET", "hash", "a", "1")
        assert await old.command("HGETALL", "hash") == {b"a": b"1"}
        assert not old.follows
        replies, followed = await old.read_followed(("GET", "k"), ("PTTL", "k"))
        assert (replies, followed) == ([None, -2], False)


async def test_tls_is_checked_and_spoken(make_front: Any, own_folder: Any) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    roots = own_folder / "roots.pem"
    authority.cert_pem.write_to_path(str(roots))
    front = await make_front(context)
    url = f"rediss://127.0.0.1:{front.port}/0"
    async with open_redis(f"{url}?ssl_ca_certs={roots}", size=1, timeout_s=2.0) as redis:
        assert await redis.script(ADD, ("sum",), (5, "x" * 100_000)) == [5, b"x" * 100_000]

        async def ask(number: int) -> None:
            assert await redis.command("ECHO", number) == str(number).encode()

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number)
        front.cut()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert await redis.command("PING")
    async with open_redis(url, size=1, timeout_s=2.0) as distrustful:
        with pytest.raises(StoreUnavailable) as refusal:
            await distrustful.command("PING")
        assert (refusal.value.reason, refusal.value.sent) == ("ConnectionError", False)


@pytest.mark.parametrize(
    "url", ["redis://host:port", "redis://host?db=x", "http://host", "redis://h?protocol=9", "unix://x?nonsense=1"]
)
async def test_a_url_that_cannot_be_used_is_a_settings_error(url: str) -> None:
    with pytest.raises(SettingsError):
        async with open_redis(url, size=1, timeout_s=1.0):
            pass


async def test_the_first_call_after_a_silence_goes_at_once_and_others_of_its_turn_together(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.command("PING")
    pipe = (await redis._server.link()).pipe
    written: list[bytes] = []
    send = pipe._transport.send

    async def noted(data: bytes) -> None:
        written.append(data)
        await send(data)

    monkeypatch.setattr(pipe._transport, "send", noted)
    await redis.command("ECHO", "alone")
    assert written == []
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(redis.command, "ECHO", str(number))
    [together] = written
    assert together.count(b"ECHO") == 4
