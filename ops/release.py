"""Build a release: `just release`. It checks, builds, tries what it built, and tags where that is confirmed.

Nothing is pushed or uploaded. The version is the one in pyproject.toml; CHANGELOG.md must have a section of it,
and the working tree must be clean.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_DIST = "dist"


class NotReady(Exception):
    """Why there is no release; one line."""


def version_of(pyproject: str) -> str:
    """The version that a pyproject.toml names. Raises ``NotReady`` where it is none for a release."""
    version: str = tomllib.loads(pyproject)["project"]["version"]
    if not re.fullmatch(r"\d+\.\d+\.\d+(-?(a|b|rc)\d+)?", version):
        raise NotReady(f"{version} in pyproject.toml is no version for a release: X.Y.Z, perhaps with rcN behind")
    return version


def check_changelog(changelog: str, version: str) -> None:
    """Raises ``NotReady`` unless the changelog has a dated section of ``version`` with something in it."""
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    own = [section for section in sections if section.startswith(f"[{version}]")]
    if not own:
        raise NotReady(f"CHANGELOG.md has no section [{version}]: rename [Unreleased], and begin a new one")
    heading, _, text = own[0].partition("\n")
    if not re.fullmatch(re.escape(f"[{version}]") + r" - \d{4}-\d{2}-\d{2}", heading.strip()):
        raise NotReady(f"CHANGELOG.md must date its section: ## [{version}] - YYYY-MM-DD")
    if not re.search(r"^- ", text, re.MULTILINE):
        raise NotReady(f"CHANGELOG.md says nothing in its section [{version}]")


def check_tree(root: Path, tag: str) -> None:
    """Raises ``NotReady`` unless everything is committed and ``tag`` is free."""
    if changed := _git(root, "status", "--porcelain"):
        raise NotReady(f"the working tree is not clean: {len(changed.splitlines())} paths; see git status")
    if _git(root, "tag", "--list", tag):
        raise NotReady(f"the tag {tag} exists already: raise the version in pyproject.toml")


def checksums(files: Sequence[Path]) -> str:
    """What ``sha256sum --check`` reads."""
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(files))


def build(root: Path) -> list[Path]:
    """The sdist and the wheel in a fresh ``dist/``, with their checksums beside them."""
    dist = root / _DIST
    for old in dist.glob("*") if dist.is_dir() else ():
        old.unlink()
    # The same commit gives the same bytes.
    environment = os.environ | {"SOURCE_DATE_EPOCH": _git(root, "log", "-1", "--format=%ct")}
    _run(["uv", "build", "--quiet", "--out-dir", str(dist)], root, environment)
    built = [*dist.glob("*.tar.gz"), *dist.glob("*.whl")]
    if len(built) != 2:
        raise NotReady(f"{dist} has not one sdist and one wheel after the build")
    (dist / "SHA256SUMS").write_text(checksums(built))
    return built


def try_wheel(wheel: Path, version: str) -> None:
    """Install the wheel in an environment of its own, outside the checkout, and ask it. Raises ``NotReady``."""
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        _run(["uv", "venv", "--quiet", "--python", sys.executable, "venv"], there)
        _run(["uv", "pip", "install", "--quiet", "--python", "venv/bin/python", str(wheel)], there)
        told = _output(["venv/bin/neuronetz", "--version"], there)
        if told != f"neuronetz {version}":
            raise NotReady(f"the wheel's --version says {told!r}")
        _output(["venv/bin/neuronetz", "migrate", "--help"], there)
        # The schema travels inside the package.
        count = "from neuronetz.stores.migrations import known_migrations; print(len(known_migrations()))"
        if _output(["venv/bin/python", "-c", count], there) == "0":
            raise NotReady("the wheel has no schema")


def tag_if_confirmed(root: Path, tag: str) -> None:
    """Make the tag after a yes at a terminal; elsewhere say how to."""
    command = ["git", "tag", "--annotate", tag, "--message", f"neuronetz {tag}"]
    if not sys.stdin.isatty() or input(f"Tag this commit as {tag}? [y/N]: ").strip().lower() not in ("y", "yes"):
        _say(f"not tagged; to tag it: git tag --annotate {tag}")
        return
    _run(command, root)
    _say(f"tagged {tag}; to publish the tag: git push origin {tag}")


def release(root: Path) -> None:
    """All of it, in order; what can be known early is checked first. Raises ``NotReady``."""
    version = version_of((root / "pyproject.toml").read_text())
    tag = f"v{version}"
    check_changelog((root / "CHANGELOG.md").read_text(), version)
    check_tree(root, tag)
    _say("running the checks and the tests …")
    _run(["just", "check"], root)
    # The tests must not have left anything behind that a build would take in.
    check_tree(root, tag)
    _say("building …")
    built = build(root)
    _say("trying the wheel …")
    try_wheel(next(path for path in built if path.suffix == ".whl"), version)
    for path in sorted((root / _DIST).iterdir()):
        _say(f"  {path.relative_to(root)}  {path.stat().st_size:,} bytes")
    tag_if_confirmed(root, tag)


def _git(root: Path, *args: str) -> str:
    return _output(["git", *args], root)


def _output(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotReady(f"{' '.join(command)} failed: {' '.join(done.stderr.split()[-40:])}")
    return done.stdout.strip()


def _run(command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    if subprocess.run(command, cwd=folder, env=environment, check=False).returncode != 0:
        raise NotReady(f"{' '.join(command[:3])} failed")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    try:
        release(_ROOT)
    except NotReady as reason:
        sys.exit(f"no release: {reason}")
