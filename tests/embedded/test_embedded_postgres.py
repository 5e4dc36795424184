"""The embedded PostgreSQL: its life, its death, and what an earlier run left."""

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import asyncpg
import psutil
import pytest
import trio

from neuronetz.embedded.child import EmbeddedServerError, processes_in
from neuronetz.embedded.folders import SOCKET_PATH_BYTES
from neuronetz.embedded.postgres import EmbeddedPostgres, run_postgres
from neuronetz.stores.bridge import in_asyncio

KilledRun = Callable[[str, Path, str], Awaitable[int]]


async def query(url: str, statement: str) -> object:
    async def run() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return await in_asyncio(run)


def seeded(seed: Path, folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.check_call(["cp", "-a", str(seed), str(folder)])
    return folder


async def test_it_is_made_where_there_is_nothing_and_takes_connections(
    asyncio_loop: object, own_folder: Path
) -> None:
    async with run_postgres(own_folder / "deeper" / "postgres") as url:
        assert await query(url, "SHOW fsync") == "on"
        assert await query(url, "SHOW listen_addresses") == ""


async def test_data_stays_over_a_restart_and_over_an_immediate_stop(own_postgres: EmbeddedPostgres) -> None:
    await query(own_postgres.dsn(), "CREATE TABLE kept AS SELECT 42 AS answer")
    await query(own_postgres.dsn(), "CHECKPOINT")
    await own_postgres.stop()
    await own_postgres.start()
    assert await query(own_postgres.dsn(), "SELECT answer FROM kept") == 42
    await own_postgres.stop(immediate=True)
    await own_postgres.start()
    assert await query(own_postgres.dsn(), "SELECT answer FROM kept") == 42


async def test_stopping_leaves_no_process_even_with_an_open_transaction(own_postgres: EmbeddedPostgres) -> None:
    connection = await in_asyncio(asyncpg.connect, own_postgres.dsn())
    await in_asyncio(connection.execute, "BEGIN")
    assert processes_in(own_postgres.data_dir, "postgres")
    with trio.fail_after(5):
        await own_postgres.stop()
    assert processes_in(own_postgres.data_dir, "postgres") == []
    connection.terminate()


async def test_a_path_too_long_for_a_socket_gets_a_short_private_folder(
    asyncio_loop: object, own_folder: Path, postgres_seed: Path
) -> None:
    folder = seeded(postgres_seed, own_folder / ("long-" * 20) / ("with, odd & " * 8) / "postgres")
    server = EmbeddedPostgres(folder, fsync=False)
    assert len(os.fsencode(server.socket_path)) <= SOCKET_PATH_BYTES
    await server.start()
    try:
        assert await query(server.dsn(), "SELECT 1") == 1
        assert stat.S_IMODE(server.socket_path.parent.stat().st_mode) == 0o700
    finally:
        await server.stop()
    assert not server.socket_path.parent.exists()


async def test_nobody_else_may_enter_the_folder_of_the_socket(own_postgres: EmbeddedPostgres) -> None:
    assert own_postgres.socket_path.exists()
    assert stat.S_IMODE(own_postgres.socket_path.parent.stat().st_mode) == 0o700


async def test_the_children_are_out_of_reach_of_the_terminals_ctrl_c(own_postgres: EmbeddedPostgres) -> None:
    assert own_postgres.pid is not None
    assert os.getpgid(own_postgres.pid) != os.getpgid(0)
    assert os.getsid(own_postgres.pid) != os.getsid(0)


@pytest.mark.parametrize("state", ["running", "frozen"])
async def test_a_run_killed_by_sigkill_is_followed_by_a_clean_start(
    asyncio_loop: object, own_folder: Path, postgres_seed: Path, killed_run: KilledRun, state: str
) -> None:
    folder = seeded(postgres_seed, own_folder / "postgres")
    left = await killed_run("postgres", folder, state)
    if state == "frozen":
        assert psutil.pid_exists(left)
    server = EmbeddedPostgres(folder, fsync=False)
    await server.start()
    try:
        assert await query(server.dsn(), "SELECT count(*) FROM gateway.tenants") == 0
        assert server.pid != left
        assert {found.pid for found in processes_in(folder, "postgres")}.isdisjoint({left})
    finally:
        await server.stop()
    assert processes_in(folder, "postgres") == []


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells a child of its parent's death")
async def test_the_server_ends_with_a_killed_parent(
    asyncio_loop: object, own_folder: Path, postgres_seed: Path, killed_run: KilledRun
) -> None:
    folder = seeded(postgres_seed, own_folder / "postgres")
    await killed_run("postgres", folder, "running")
    with trio.fail_after(10):
        while processes_in(folder, "postgres"):
            await trio.sleep(0.02)


async def test_orphans_of_a_killed_server_are_ended(own_postgres: EmbeddedPostgres) -> None:
    assert own_postgres.pid is not None
    orphans = psutil.Process(own_postgres.pid).children()
    assert orphans
    own_postgres.pause()
    os.kill(own_postgres.pid, signal.SIGKILL)
    own_postgres._lock.release()
    other = EmbeddedPostgres(own_postgres.data_dir, fsync=False)
    await other.start()
    try:
        assert await query(other.dsn(), "SELECT 1") == 1
        assert not any(orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE for orphan in orphans)
    finally:
        await other.stop(immediate=True)


async def test_a_folder_of_a_living_run_is_refused_and_its_server_left_alone(
    own_postgres: EmbeddedPostgres,
) -> None:
    with pytest.raises(EmbeddedServerError, match="in use by another run"):
        await EmbeddedPostgres(own_postgres.data_dir).start()
    assert await query(own_postgres.dsn(), "SELECT 1") == 1


async def test_a_process_id_that_is_somebody_elses_by_now_does_not_hinder(own_postgres: EmbeddedPostgres) -> None:
    await own_postgres.stop()
    pid_file = own_postgres.data_dir / "postmaster.pid"
    pid_file.write_text(
        f"{os.getpid()}\n{own_postgres.data_dir}\n0\n5432\n{own_postgres.data_dir}\n\n0 0\nready\n"
    )
    await own_postgres.start()
    assert await query(own_postgres.dsn(), "SELECT 1") == 1


async def test_an_initdb_cut_short_is_begun_again(asyncio_loop: object, own_folder: Path) -> None:
    rest = own_folder / "postgres.new"
    rest.mkdir()
    (rest / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(own_folder / "postgres", fsync=False)
    await server.start()
    await server.stop(immediate=True)
    assert not rest.exists()


async def test_a_folder_with_something_else_in_it_is_left_alone(asyncio_loop: object, own_folder: Path) -> None:
    folder = own_folder / "postgres"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    server = EmbeddedPostgres(folder, fsync=False)
    with pytest.raises(EmbeddedServerError, match="not empty"):
        await server.start()
    assert (folder / "thesis.txt").read_text() == "mine"
    assert server.pid is None


async def test_a_start_that_is_cancelled_leaves_no_process_and_no_lock(
    asyncio_loop: object, own_folder: Path, postgres_seed: Path
) -> None:
    folder = seeded(postgres_seed, own_folder / "postgres")
    server = EmbeddedPostgres(folder, fsync=False)
    with trio.move_on_after(0.03) as scope:
        await server.start()
    assert scope.cancelled_caught
    assert processes_in(folder, "postgres") == []
    await server.start()
    await server.stop(immediate=True)


async def test_a_server_that_cannot_start_says_where_to_look(
    asyncio_loop: object, own_folder: Path, postgres_seed: Path
) -> None:
    folder = seeded(postgres_seed, own_folder / "postgres")
    with (folder / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    server = EmbeddedPostgres(folder, fsync=False)
    with pytest.raises(EmbeddedServerError, match=r"ended with status 1 while starting .*postgres\.log") as failed:
        await server.start()
    said = server.log_file.read_text()
    assert "no_such_setting" in said
    assert f"({said.splitlines()[-1]}); see" in str(failed.value)


async def test_an_initdb_that_fails_says_why(
    asyncio_loop: object, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = own_folder / "pginstall" / "bin"
    programs.mkdir(parents=True)
    program = programs / "initdb"
    program.write_text("#!/bin/sh\necho there is no room >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("neuronetz.embedded.postgres._BIN", programs)
    server = EmbeddedPostgres(own_folder / "postgres", fsync=False)
    with pytest.raises(EmbeddedServerError, match=r"initdb ended with status 3 \(there is no room\); see"):
        await server.start()


async def test_a_crash_ends_the_block_with_an_error(
    asyncio_loop: object, own_folder: Path, postgres_seed: Path
) -> None:
    folder = seeded(postgres_seed, own_folder / "postgres")

    async def crash() -> None:
        async with run_postgres(folder, fsync=False):
            for found in processes_in(folder, "postgres"):
                with suppress(psutil.NoSuchProcess):  # its parent's death was its own
                    found.kill()
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await crash()
    assert caught.group_contains(EmbeddedServerError, match="ended with status -9")


async def test_a_paused_server_answers_nothing_and_goes_on_when_resumed(own_postgres: EmbeddedPostgres) -> None:
    connection = await in_asyncio(asyncpg.connect, own_postgres.dsn())
    own_postgres.pause()
    answers: list[object] = []

    async def ask() -> None:
        answers.append(await in_asyncio(connection.fetchval, "SELECT 1"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.1)
        assert answers == []
        own_postgres.resume()
    assert answers == [1]
    await in_asyncio(connection.close)


async def test_a_paused_server_can_be_stopped(own_postgres: EmbeddedPostgres) -> None:
    own_postgres.pause()
    with trio.fail_after(5):
        await own_postgres.stop()
    assert processes_in(own_postgres.data_dir, "postgres") == []


async def test_a_cancelled_block_still_stops_the_server(
    asyncio_loop: object, own_folder: Path, postgres_seed: Path
) -> None:
    folder = seeded(postgres_seed, own_folder / "postgres")
    with trio.CancelScope() as scope:
        async with run_postgres(folder, fsync=False):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert processes_in(folder, "postgres") == []


async def test_a_folder_that_was_removed_under_its_server_is_made_anew(own_postgres: EmbeddedPostgres) -> None:
    shutil.rmtree(own_postgres.data_dir)
    with trio.fail_after(20):
        await own_postgres.stop(immediate=True)
        await own_postgres.start()
    assert await query(own_postgres.dsn(), "SELECT 1") == 1
