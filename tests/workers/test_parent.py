"""What the parent makes of a worker's end. The workers here are small programs, real processes all the same."""

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from neuronetz.settings import Settings
from neuronetz.workers.parent import Workers

# Says that it is ready, waits for a file of its number, and ends as that says; or drains when told to.
SERVING = """
import os, pathlib, select, socket, sys
def arg(name): return sys.argv[sys.argv.index(name) + 1]
number, parent = arg("--number"), socket.socket(fileno=int(arg("--control")))
parent.send(b"r")
file = pathlib.Path(sys.argv[1]) / number
while not select.select([parent], [], [], 0.01)[0]:
    if file.exists():
        code = int(file.read_text())
        file.unlink()
        sys.exit(code)
"""


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return Settings.load(
        database_url="postgresql://nowhere/x",
        redis_url="redis://nowhere",
        ollama_url="http://nowhere",
        listen_port=0,
        metrics_port=0,
        workers=2,
    )


def program(code: str, *args: str) -> Sequence[str]:
    return [sys.executable, "-c", code, *args]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.01)


async def test_a_wrong_setting_found_by_a_worker_ends_all_with_its_exit_code(settings: Settings) -> None:
    workers = Workers(settings, command=program("raise SystemExit(2)"))
    with trio.fail_after(30):
        assert await workers.run(trio.Event()) == 2


async def test_a_worker_that_fails_before_any_has_served_ends_all(settings: Settings) -> None:
    workers = Workers(settings, command=program("raise SystemExit(1)"))
    with trio.fail_after(30):
        assert await workers.run(trio.Event()) == 1


async def test_a_worker_that_is_killed_before_any_has_served_is_started_again(settings: Settings) -> None:
    kill = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    workers, stop = Workers(settings, command=program(kill)), trio.Event()
    async with trio.open_nursery() as nursery:
        codes: list[int] = []

        async def run() -> None:
            codes.append(await workers.run(stop))

        nursery.start_soon(run)
        await until(lambda: _deaths(workers) >= 4)
        assert not codes
        nursery.cancel_scope.cancel()


def _deaths(workers: Workers) -> float:
    return workers._registry.get_sample_value("gateway_worker_deaths_total") or 0.0


async def test_once_one_has_served_a_failed_worker_is_replaced_but_a_wrong_setting_ends_all(
    settings: Settings, tmp_path: Path
) -> None:
    workers = Workers(settings, command=program(SERVING, str(tmp_path)))
    codes: list[int] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            codes.append(await workers.run(trio.Event()))

        nursery.start_soon(run)
        await until(lambda: [worker.state for worker in workers.workers] == ["ready", "ready"])
        first, second = (worker.pid for worker in workers.workers)

        _say(tmp_path / "0", 1)
        await until(lambda: workers.workers[0].state == "ready" and workers.workers[0].pid != first)
        assert workers.workers[1].pid == second
        assert not codes

        _say(tmp_path / "0", 2)
        await until(lambda: bool(codes))
    assert codes == [2]
    assert all(worker.gone.is_set() for worker in workers.workers)


async def test_the_exit_code_is_1_when_a_worker_fails_in_ending(settings: Settings, tmp_path: Path) -> None:
    fails = SERVING + "sys.exit(3)"
    workers, stop = Workers(settings, command=program(fails, str(tmp_path))), trio.Event()
    async with trio.open_nursery() as nursery:
        codes: list[int] = []

        async def run() -> None:
            codes.append(await workers.run(stop))

        nursery.start_soon(run)
        await until(lambda: [worker.state for worker in workers.workers] == ["ready", "ready"])
        stop.set()
    assert codes == [1]


def _say(file: Path, code: int) -> None:
    part = file.with_suffix(".part")
    part.write_text(str(code))
    part.rename(file)
