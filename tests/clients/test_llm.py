"""The command line tool ``llm``, told of the gateway as its manual says, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.threads import in_thread
from tests.clients.upstream import last_body


@pytest.fixture
def folder(tmp_path: Path, gateway: Any, key: str) -> Path:
    """The tool's folder of settings."""
    model = {
        "model_id": "ours",
        "model_name": "tiny",
        "api_base": f"{gateway.base_url}/v1",
        "api_key_name": "ours",
        "supports_schema": True,
    }
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump([model]))
    (tmp_path / "keys.json").write_text(json.dumps({"ours": key}))
    return tmp_path


async def llm(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "LLM_USER_PATH": str(folder)}
    command = [sys.executable, "-m", "llm", *arguments]
    return await in_thread(
        lambda: subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    )


async def test_a_prompt_is_answered(folder: Path, books: Any) -> None:
    done = await llm(folder, "-m", "ours", "-o", "max_tokens", "4", "tell me of rivers")
    assert (done.returncode, done.stdout) == (0, "the quick brown fox\n"), done.stderr
    [row] = await books.rows(1)
    assert (row["endpoint"], row["stream"]) == ("/v1/chat/completions", True)


async def test_a_schema_is_kept(folder: Path, mock_ollama: Any) -> None:
    done = await llm(folder, "-m", "ours", "--no-stream", "--schema", "name, length int", "a river")
    assert json.loads(done.stdout) == {"name": "quick", "length": 7}, done.stderr
    assert last_body(mock_ollama)["format"]["required"] == ["name", "length"]
