"""The page of guarantees names proofs that exist, all of them, and shows the matrix that is run."""

import re
from pathlib import Path

import pytest

from tests.guarantees.fault_matrix import table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/GUARANTEES.md").read_text()
PROOFS = sorted(path.name for path in (ROOT / "tests/guarantees").glob("test_g*.py"))


def test_every_proof_of_a_guarantee_is_named_in_its_section() -> None:
    sections = dict(re.findall(r"^## (G\d+):.*\n((?:(?!^## ).*\n)*)", PAGE, re.MULTILINE))
    assert list(sections) == [f"G{number}" for number in range(1, 11)]
    proofs = {name: re.findall(r"`tests/guarantees/(test_g\d+_\w+\.py)`", text) for name, text in sections.items()}
    assert proofs == {
        name: [proof for proof in PROOFS if proof.startswith(f"test_{name.lower()}_")] for name in sections
    }


@pytest.mark.parametrize("file", ["docs/GUARANTEES.md", *(f"tests/guarantees/{name}" for name in PROOFS)])
def test_every_test_that_is_named_exists(file: str) -> None:
    named = re.findall(r"tests/[\w/]+\.py", (ROOT / file).read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", PROOFS)
def test_a_proof_says_which_guarantee_it_proves_and_where_to_read_on(name: str) -> None:
    first, *rest = (ROOT / "tests/guarantees" / name).read_text().split('"""')[1].splitlines()
    assert first.startswith(name.split("_")[1].upper() + ", ")
    assert "tests/" in "".join(rest)


def test_the_matrix_is_the_one_that_is_run() -> None:
    shown = re.search(r"<!-- fault matrix -->\n(.*)<!-- end of the fault matrix -->", PAGE, re.DOTALL)
    assert shown
    assert shown[1].rstrip("\n") == table()
