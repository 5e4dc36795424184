"""Every command of the API's page works."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import trio

from neuronetz.web.routes import ROUTES

PAGE = (Path(__file__).parents[2] / "docs/API.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
BASE = "http://127.0.0.1:8080"

# An error's status is to be curl's exit code.
FAILING = 'curl() { command curl --silent --show-error --fail-with-body "$@"; }\n'


def target(block: str) -> str:
    return re.search(rf"{BASE}(\S+)", block)[1]  # type: ignore[index]


def serves(route: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\\\{\w+\\\}", ".+", re.escape(route)), path) is not None


def test_the_page_has_a_command_for_every_route() -> None:
    paths = [target(block) for block in BLOCKS]
    for route in ROUTES:
        assert any(serves(route.path, path) for path in paths), route.path


@pytest.mark.parametrize("block", BLOCKS, ids=[f"{number}-{target(block)}" for number, block in enumerate(BLOCKS)])
async def test_a_command_is_answered(gateway: Any, key: str, block: str) -> None:
    assert block.count("curl ") == block.count(BASE) == 1
    script = FAILING + block.replace(BASE, gateway.base_url)
    with trio.fail_after(30):
        done = await trio.run_process(
            ["bash", "-euc", script],
            env={"PATH": os.environ["PATH"], "KEY": key},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert done.stdout
    assert not re.search(rb'^(data: )?{"error"', done.stdout, re.MULTILINE)
