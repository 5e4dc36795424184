"""The pages as a site: it builds, it fetches nothing from elsewhere, and a test runs every command it shows."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import BASE, ROOT, blocks, pages, read_along
from tests.docs.exceptions import NOT_RUN

# Page, then the test that runs its commands: all of them but those in the table of exceptions.
RUN_BY = {
    "README.md": "tests/docs/test_site.py",
    "docs/index.md": "tests/docs/test_site.py",
    "docs/API.md": "tests/docs/test_api_page.py",
    "docs/CLI.md": "tests/docs/test_operations.py",
    "docs/BUDGETS.md": "tests/docs/test_operations.py",
    "docs/CLIENTS.md": "tests/docs/test_clients_page.py",
    "docs/DOCTOR.md": "tests/docs/test_operations.py",
    "docs/OPERATIONS.md": "tests/docs/test_operations.py",
    "docs/PROMPT_LOG.md": "tests/docs/test_operations.py",
    "docs/TUTORIAL.md": "tests/docs/test_tutorial.py",
}
LANGUAGES = {"sh", "sql", "python", "js", "yaml", "toml", "ini", "json", "text", ""}
COMMAND = re.compile(
    r"^\$? ?(?:just|neuronetz|curl|pip|uv|python|systemctl|docker|kubectl|psql|pg_dump) ", re.MULTILINE
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_strictly_with_every_page(site: Path) -> None:
    made = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert made == {page.removeprefix("docs/").removesuffix(".md") for page in pages()} - {"README"} | {"404"}


def test_a_page_fetches_nothing_from_elsewhere(site: Path) -> None:
    fetched = re.compile(
        r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//"""
    )
    assert [path.name for path in site.rglob("*.html") if fetched.search(path.read_text())] == []
    styles = re.compile(r"@import[^;]*//|url\([\"']?(?:https?:)?//")
    assert [path.name for path in site.rglob("*.css") if styles.search(path.read_text())] == []


def test_a_test_runs_every_command_or_it_says_why_not() -> None:
    shown = {page: {block.first for block in blocks(page)} for page in pages()}
    left = {page: firsts - NOT_RUN.get(page, {}).keys() for page, firsts in shown.items()}
    assert {page for page, firsts in left.items() if firsts} == set(RUN_BY)
    for page, test in RUN_BY.items():
        assert page in (ROOT / test).read_text()


def test_no_exception_outlives_its_command() -> None:
    shown = {page: {block.first for block in blocks(page)} for page in pages()}
    stale = {(page, first) for page, firsts in NOT_RUN.items() for first in firsts if first not in shown[page]}
    assert stale == set()


@pytest.mark.parametrize("page", pages())
def test_commands_stand_in_blocks_that_are_run(page: str) -> None:
    text = (ROOT / page).read_text()
    languages = set(re.findall(r"^```(\w*)", text, re.MULTILINE))
    assert languages <= LANGUAGES
    assert not re.search(r"^[ \t]+```", text, re.MULTILINE), "an indented block would be run by nobody"
    for language in ("text", ""):
        assert [block.first for block in blocks(page, language) if COMMAND.search(block.text)] == []


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
async def test_the_first_request_is_answered(gateway: Any, key: str, tmp_path: Path, page: str) -> None:
    told = [block for block in blocks(page) if block.first not in NOT_RUN[page]]
    [heard] = await read_along(told, {BASE: gateway.base_url}, {"KEY": key}, tmp_path)
    assert heard.failed == ()
    assert '"done":true' in heard.output


@pytest.mark.parametrize("page", ["docs/THREAT_MODEL.md", "docs/OPERATIONS.md", "docs/DEVELOPMENT.md"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`((?:tests|docs|ops|schema|neuronetz)/[\w/.]*)`", (ROOT / page).read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_threat_has_a_control_and_a_test() -> None:
    text = (ROOT / "docs/THREAT_MODEL.md").read_text()
    rows = [
        row
        for table in re.findall(r"^\| threat \|.*\n\|-.*\n((?:\|.*\n)+)", text, re.MULTILINE)
        for row in table.splitlines()
    ]
    assert len(rows) > 30
    assert [
        row for row in rows if not re.fullmatch(r"\| [^|]+ \| [^|]+ \| (?:`tests/[\w/]+\.py`(?:, )?)+ \|", row)
    ] == []
