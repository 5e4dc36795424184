"""The embedded Valkey: its life, its death, and what an earlier run left."""

import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
import trio

from neuronetz.embedded.child import EmbeddedServerError, processes_in
from neuronetz.embedded.folders import SOCKET_PATH_BYTES
from neuronetz.embedded.valkey import EmbeddedValkey, run_valkey
from neuronetz.errors import StoreUnavailable
from neuronetz.stores.redis import open_redis

KilledRun = Callable[[str, Path, str], Awaitable[int]]


async def command(url: str, *args: str, timeout_s: float = 5.0) -> object:
    async with open_redis(url, size=1, timeout_s=timeout_s) as redis:
        return await redis.command(*args)


async def test_it_runs_for_the_length_of_the_block(asyncio_loop: object, own_folder: Path) -> None:
    async with run_valkey(own_folder / "deeper" / "valkey") as url:
        assert await command(url, "PING")
        assert b"0" in repr(await command(url, "CONFIG", "GET", "port")).encode()
    assert processes_in(own_folder / "deeper" / "valkey", "valkey-server") == []


async def test_data_stays_over_a_restart(own_valkey: EmbeddedValkey) -> None:
    await command(own_valkey.url(), "SET", "kept", "42")
    await own_valkey.stop()
    await own_valkey.start()
    assert await command(own_valkey.url(), "GET", "kept") == b"42"


async def test_nothing_is_kept_where_nothing_is_to_be_kept(asyncio_loop: object, own_folder: Path) -> None:
    server = EmbeddedValkey(own_folder / "valkey", persist=False, databases=10_000)
    await server.start()
    await command(server.url(9_999), "SET", "gone", "1")
    await server.stop()
    await server.start()
    assert await command(server.url(9_999), "GET", "gone") is None
    await server.stop()
    assert list(server.data_dir.iterdir()) == []


async def test_it_is_for_its_owner_alone(own_valkey: EmbeddedValkey) -> None:
    assert stat.S_IMODE(own_valkey.socket_path.stat().st_mode) == 0o700
    assert stat.S_IMODE(own_valkey.data_dir.stat().st_mode) == 0o700


async def test_a_path_too_long_for_a_socket_gets_a_short_private_folder(
    asyncio_loop: object, own_folder: Path
) -> None:
    server = EmbeddedValkey(own_folder / ("long-" * 30) / "valkey")
    assert len(os.fsencode(server.socket_path)) <= SOCKET_PATH_BYTES
    await server.start()
    try:
        assert await command(server.url(), "PING")
        assert stat.S_IMODE(server.socket_path.parent.stat().st_mode) == 0o700
    finally:
        await server.stop()
    assert not server.socket_path.parent.exists()


@pytest.mark.parametrize("state", ["running", "frozen"])
async def test_a_run_killed_by_sigkill_is_followed_by_a_clean_start(
    asyncio_loop: object, own_folder: Path, killed_run: KilledRun, state: str
) -> None:
    folder = own_folder / "valkey"
    left = await killed_run("valkey", folder, state)
    if state == "frozen":
        assert psutil.pid_exists(left)
    server = EmbeddedValkey(folder)
    await server.start()
    try:
        assert [found.pid for found in processes_in(folder, "valkey-server")] == [server.pid]
        assert server.pid != left
    finally:
        await server.stop()


async def test_a_folder_of_a_living_run_is_refused(own_valkey: EmbeddedValkey) -> None:
    with pytest.raises(EmbeddedServerError, match="in use by another run"):
        await EmbeddedValkey(own_valkey.data_dir).start()
    assert await command(own_valkey.url(), "PING")


async def test_a_crash_ends_the_block_with_an_error(asyncio_loop: object, own_folder: Path) -> None:
    folder = own_folder / "valkey"

    async def crash() -> None:
        async with run_valkey(folder):
            for found in processes_in(folder, "valkey-server"):
                found.kill()
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await crash()
    assert caught.group_contains(EmbeddedServerError, match="ended with status -9")


async def test_a_stop_that_was_asked_for_is_no_crash(own_valkey: EmbeddedValkey) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own_valkey.watch)
        await trio.lowlevel.checkpoint()
        await own_valkey.stop()


async def test_a_paused_server_answers_nothing_and_goes_on_when_resumed(own_valkey: EmbeddedValkey) -> None:
    own_valkey.pause()
    with pytest.raises(StoreUnavailable):
        await command(own_valkey.url(), "PING", timeout_s=0.1)
    own_valkey.resume()
    assert await command(own_valkey.url(), "PING")
