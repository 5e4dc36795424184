"""The page of clients: its commands and its Python, in processes of their own, as they stand there."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import trio
import yaml

from tests.docs.commands import BASE, ROOT, Block, blocks, environment, read_along

PAGE = "docs/CLIENTS.md"
PYTHON = [*blocks(PAGE, "python"), *blocks("README.md", "python")]


# In one process, since they import each other's libraries, which takes seconds. README's begin with a key.
RUN = """
import json, os, sys
for name, code in json.load(sys.stdin):
    print(f"@@ {name}")
    exec(compile(code, name, "exec"), {"key": os.environ["KEY"]})
    print()
"""


async def test_each_snippet_is_answered(gateway: Any, key: str, books: Any, tmp_path: Path) -> None:
    named = [(f"{block.page} {number}", block.text) for number, block in enumerate(PYTHON)]
    # LiteLLM would fetch the prices of models as it is imported.
    variables = environment(KEY=key, LITELLM_LOCAL_MODEL_COST_MAP="True")
    with trio.fail_after(100):
        done = await trio.run_process(
            [sys.executable, "-c", RUN],
            stdin=json.dumps(named).replace(BASE, gateway.base_url).encode(),
            env=variables,
            cwd=tmp_path,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    answers = done.stdout.decode().split("@@ ")[1:]
    assert [answer.partition("\n")[0] for answer in answers] == [name for name, _ in named]
    assert [answer for answer in answers if "quick brown" not in answer] == []
    # Each asked once, and one of them for an embedding too.
    rows = await books.rows(len(named) + 1)
    assert {row["outcome"] for row in rows} == {"completed"}


async def test_the_commands_are_answered(gateway: Any, key: str, tmp_path: Path) -> None:
    [models, *_] = blocks(PAGE, "yaml")
    (tmp_path / "extra-openai-models.yaml").write_text(models.text.replace(BASE, gateway.base_url))
    variables = {"KEY": key, "LLM_USER_PATH": str(tmp_path)}
    curl, llm = await read_along(blocks(PAGE), {BASE: gateway.base_url}, variables, tmp_path)
    assert curl.failed == llm.failed == ()
    assert curl.output.rstrip().endswith("data: [DONE]")
    assert llm.output.startswith("the quick brown")


async def test_the_command_that_names_llms_folder(tmp_path: Path) -> None:
    named = re.search(r"`(dirname [^`]+)`", (ROOT / PAGE).read_text())
    assert named
    block = Block(PAGE, "sh", f"{named[1]}\n")
    [heard] = await read_along([block], {}, {"LLM_USER_PATH": str(tmp_path)}, tmp_path)
    assert (heard.output.strip(), heard.failed) == (str(tmp_path), ())


def test_files_of_settings_can_be_read() -> None:
    for block in blocks(PAGE, "yaml"):
        assert yaml.safe_load(block.text)


def test_what_is_said_to_be_tested_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / PAGE).read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []
    tried = {path.stem for path in (ROOT / "tests/clients").glob("test_*.py")}
    assert {stem.split("_")[1] for stem in tried} == {Path(path).stem.split("_")[1] for path in named} - {
        "clients"
    }
