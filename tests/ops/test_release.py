"""What ``just release`` asks for before it builds, and what it leaves."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from ops import release

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-31\n\n### Added\n\n- Something.\n"


@pytest.mark.parametrize("version", ["1.2.3", "10.0.0", "1.2.3rc1"])
def test_the_version_is_the_project_s(version: str) -> None:
    assert release.version_of(f'[project]\nversion = "{version}"\n') == version


@pytest.mark.parametrize("version", ["1.2", "1.2.3.dev1", "1.2.3+local", "v1.2.3"])
def test_a_version_that_is_none_for_a_release_is_refused(version: str) -> None:
    with pytest.raises(release.NotReady, match="no version for a release"):
        release.version_of(f'[project]\nversion = "{version}"\n')


def test_a_changelog_with_a_section_is_taken() -> None:
    release.check_changelog(CHANGELOG, "1.2.3")


@pytest.mark.parametrize(
    ("changelog", "says"),
    [
        ("# Changelog\n\n## [Unreleased]\n\n- Something.\n", "no section"),
        (CHANGELOG.replace("1.2.3", "1.2.30"), "no section"),
        (CHANGELOG.replace(" - 2026-01-31", ""), "date"),
        (CHANGELOG.replace("2026-01-31", "soon"), "date"),
        (CHANGELOG.replace("- Something.\n", ""), "says nothing"),
        (CHANGELOG.replace("- Something.\n", "\n## [1.2.2] - 2025-12-31\n\n- Older.\n"), "says nothing"),
    ],
)
def test_a_changelog_without_the_version_is_refused(changelog: str, says: str) -> None:
    with pytest.raises(release.NotReady, match=says):
        release.check_changelog(changelog, "1.2.3")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "somebody@example.org")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.2.3"\n')
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_only_a_clean_tree_with_a_free_tag_is_released(checkout: Path) -> None:
    release.check_tree(checkout, "v1.2.3")
    (checkout / "new").touch()
    with pytest.raises(release.NotReady, match="not clean: 1 paths"):
        release.check_tree(checkout, "v1.2.3")
    (checkout / "new").unlink()
    subprocess.run(["git", "tag", "v1.2.3"], cwd=checkout, check=True)
    with pytest.raises(release.NotReady, match="exists already"):
        release.check_tree(checkout, "v1.2.3")


def test_red_checks_are_no_release(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "justfile").write_text("check:\n    @false\n")
    for command in (["add", "."], ["commit", "--quiet", "--message", "second"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    with pytest.raises(release.NotReady, match="just check failed"):
        release.release(checkout)
    assert not (checkout / "dist").exists()


@pytest.mark.parametrize(
    ("terminal", "answer", "tags"), [(True, "y", "v1.2.3\n"), (True, "", ""), (True, "n", ""), (False, "y", "")]
)
def test_a_tag_needs_a_yes_at_a_terminal(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, answer: str, tags: str
) -> None:
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"isatty": lambda self: terminal})())
    monkeypatch.setattr("builtins.input", lambda question: answer)
    release.tag_if_confirmed(checkout, "v1.2.3")
    found = subprocess.run(["git", "tag"], cwd=checkout, check=True, capture_output=True, text=True).stdout
    assert found == tags


def test_checksums_are_what_sha256sum_reads(tmp_path: Path) -> None:
    for name in ("b.whl", "a.tar.gz"):
        (tmp_path / name).write_text(name)
    lines = release.checksums([tmp_path / "b.whl", tmp_path / "a.tar.gz"]).splitlines()
    assert lines == [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}" for name in ("a.tar.gz", "b.whl")]
    (tmp_path / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)
