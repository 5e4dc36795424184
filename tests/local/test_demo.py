"""``neuronetz demo``: one command starts everything, and one signal stops all of it."""

import json
import os
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from neuronetz.embedded.ports import held_port

ANYWHERE = ("--port", "0", "--metrics-port", "0")


def demo(folder: Path, *more: str) -> tuple[str, ...]:
    return ("demo", *ANYWHERE, "--data-dir", str(folder), *more)


async def test_the_ready_line_holds_what_a_client_needs_and_is_all_of_stdout(
    own_folder: Path, start: Any, left_over: Any
) -> None:
    async with start(*demo(own_folder, "--json")) as run:
        ready = run.ready
        assert set(ready) == {
            "event",
            "base_url",
            "metrics_url",
            "api_key",
            "tenant",
            "models",
            "database_url",
            "redis_url",
            "pid",
        }
        assert (ready["event"], ready["tenant"], ready["pid"]) == ("ready", "demo", run.process.pid)
        assert "tiny:latest" in ready["models"]
        auth = {"authorization": f"Bearer {ready['api_key']}"}
        async with httpx.AsyncClient(
            base_url=ready["base_url"], headers=auth, trust_env=False, timeout=30
        ) as client:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
            async with client.stream("POST", "/api/chat", json=body) as reply:
                lines = [json.loads(line) async for line in reply.aiter_lines()]
            assert lines[-1]["done"]
            assert (await client.get("/readyz")).json()["status"] == "ready"
            metrics = (await client.get(ready["metrics_url"])).text
        assert 'gateway_requests_total{model="tiny:latest",status="200",tenant="demo"} 1.0' in metrics
        assert 'gateway_tokens_total{direction="completion",model="tiny:latest",tenant="demo"}' in metrics
        assert await run.end(signal.SIGTERM) == 0
        rest = await run.process.stdout.receive_some()
        assert rest == b""
    assert left_over(own_folder) == []
    assert ready["api_key"] not in run.errors.decode()
    for line in run.errors.decode().splitlines():
        json.loads(line)


async def test_a_killed_demo_starts_again_on_the_same_data_and_ends_what_was_left(
    own_folder: Path, start: Any, left_over: Any
) -> None:
    async with start(*demo(own_folder, "--json")) as killed:
        killed.process.kill()
        await killed.process.wait()
    async with start(*demo(own_folder, "--json")) as again:
        async with httpx.AsyncClient(base_url=again.ready["base_url"], trust_env=False) as client:
            for ready, status in ((again.ready, 200), (killed.ready, 401)):
                auth = {"authorization": f"Bearer {ready['api_key']}"}
                assert (await client.get("/api/tags", headers=auth)).status_code == status
        assert await again.end(signal.SIGINT) == 0
    assert left_over(own_folder) == []


async def test_the_greetings_commands_do_what_they_say(own_folder: Path, launch: Any) -> None:
    """The curl commands are taken apart and sent as curl would send them."""
    async with launch(*demo(own_folder)) as (process, errors):
        greeting = bytearray()
        with trio.fail_after(60):
            while b"Ctrl-C" not in greeting:
                chunk = await process.stdout.receive_some(65536)
                assert chunk, errors.decode()
                greeting += chunk
        commands = [line.strip() for line in greeting.decode().splitlines() if line.strip().startswith("curl ")]
        assert len(commands) == 6
        statuses = []
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            for command in commands:
                words = shlex.split(command)[1:]
                url = next(word for word in words if word.startswith("http"))
                headers = dict(words[n + 1].split(": ", 1) for n, word in enumerate(words) if word == "-H")
                data = next((words[n + 1] for n, word in enumerate(words) if word == "-d"), None)
                reply = await client.request("POST" if data else "GET", url, headers=headers, content=data)
                statuses.append(reply.status_code)
        assert statuses == [200, 200, 200, 200, 401, 403]
        page = re.search(r"playground +(http\S+)", greeting.decode())
        assert page is not None
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(page[1])).headers["content-type"] == "text/html; charset=utf-8"
        process.send_signal(signal.SIGINT)
        with trio.fail_after(30):
            assert await process.wait() == 0
    assert "Traceback" not in errors.decode()


async def test_down_stops_a_running_demo_and_removes_its_data(
    own_folder: Path, start: Any, run: Any, left_over: Any
) -> None:
    folder = own_folder / "demo"
    async with start(*demo(folder, "--json")) as running, trio.open_nursery() as nursery:
        nursery.start_soon(running.process.wait)  # it stays a zombie, and so there, until somebody waits
        code, _, err = await run("demo", "--data-dir", str(folder), "--down", "--yes")
        assert code == 0, err
    assert running.process.returncode == 0
    assert not folder.exists()
    assert left_over(folder) == []
    code, _, err = await run("demo", "--data-dir", str(folder), "--down", "--yes")
    assert (code, err.strip()) == (0, "nothing to remove")


@pytest.mark.parametrize("command", ["nothing", "dev"])
async def test_down_removes_nothing_but_a_demos_own(own_folder: Path, run: Any, command: str) -> None:
    (own_folder / "precious").write_text("mine")
    (own_folder / "redis").mkdir()
    if command == "dev":
        (own_folder / "pid").write_text("1")
    code, _, err = await run("demo", "--data-dir", str(own_folder), "--down", "--yes")
    assert code == 1
    assert "nothing was removed" in err
    assert (own_folder / "redis").exists()
    (own_folder / "neuronetz-demo").touch()
    code, out, err = await run("demo", "--data-dir", str(own_folder), "--down")
    assert (code, out) == (2, "")
    assert "confirm with --yes" in err
    assert (own_folder / "redis").exists()
    assert (await run("demo", "--data-dir", str(own_folder), "--down", "--yes"))[0] == 0
    assert os.listdir(own_folder) == ["precious"]


@pytest.mark.parametrize("more", [(), ("--down",)])
async def test_a_data_folder_that_is_a_file_is_refused_in_one_line(
    own_folder: Path, run: Any, more: tuple[str, ...]
) -> None:
    (own_folder / "file").touch()
    code, _, err = await run("demo", "--port", "0", "--data-dir", str(own_folder / "file"), *more)
    assert code == 1
    assert err.count("\n") == 1


async def test_a_second_demo_on_the_same_data_is_refused_in_one_line(
    own_folder: Path, start: Any, run: Any
) -> None:
    async with start(*demo(own_folder, "--json")) as first:
        code, out, err = await run(*demo(own_folder, "--json"))
        assert code == 1
        assert out == ""
        assert "Traceback" not in err
        assert json.loads(err.splitlines()[-1]).keys() == {"error", "exit_code"}
        assert (own_folder / "pid").read_text() == str(first.process.pid)
        assert await first.end() == 0


async def test_a_port_that_is_taken_is_refused_in_one_line(own_folder: Path, run: Any) -> None:
    with await _listener() as taken:
        port = str(taken.getsockname()[1])
        code, _, err = await run("demo", "--port", port, "--metrics-port", "0", "--data-dir", str(own_folder))
    assert code == 1
    assert "Traceback" not in err
    assert "--port 0" in err.splitlines()[-1]


async def _listener() -> Any:
    sock = trio.socket.socket()
    await sock.bind(("127.0.0.1", 0))
    sock.listen(1)
    return sock


@pytest.mark.parametrize("ollama_first", [False])
async def test_dev_becomes_ready_without_an_ollama_and_picks_it_up_when_it_appears(
    own_folder: Path, start: Any, launch: Any, ollama_first: bool
) -> None:
    with held_port() as port:
        args = ("dev", *ANYWHERE, "--ollama", f"http://127.0.0.1:{port}", "--data-dir", str(own_folder), "--json")
        async with start(*args) as run:
            assert run.ready["models"] == []
            with trio.fail_after(5):
                while b"no models" not in run.errors:
                    await trio.sleep(0.01)
            auth = {"authorization": f"Bearer {run.ready['api_key']}"}
            async with (
                launch("mock-ollama", "--port", str(port)),
                httpx.AsyncClient(base_url=run.ready["base_url"], headers=auth, trust_env=False) as client,
            ):
                with trio.fail_after(30):
                    while not (await client.get("/api/tags")).json()["models"]:
                        await trio.sleep(0.1)
            assert await run.end() == 0
        async with start(*args) as again:
            async with httpx.AsyncClient(base_url=again.ready["base_url"], trust_env=False) as client:
                # A developer's earlier key stands in some client's settings: it goes on working.
                assert (await client.get("/api/tags", headers=auth)).status_code == 200
            assert await again.end() == 0


async def test_a_folder_that_holds_something_else_is_never_made_a_demos(own_folder: Path, run: Any) -> None:
    (own_folder / "postgres-backups").mkdir()
    code, _, err = await run("demo", "--data-dir", str(own_folder))
    assert code == 1
    assert "is not empty and no folder of a demo" in err
    assert (own_folder / "postgres-backups").is_dir()
