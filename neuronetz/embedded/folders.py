"""Folders of an embedded server: one owner at a time, and a place for its socket that is short and private."""

import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import IO

from neuronetz.embedded.child import Account, EmbeddedServerError

# The smallest limit of the systems we run on (macOS 104 bytes with the final zero, Linux 108).
SOCKET_PATH_BYTES = 103
# What stands for itself in a URL, in a server's settings and in a list of hosts.
_PLAIN = re.compile(r"[A-Za-z0-9/._-]+")


class FolderLock:
    """A lock beside a data folder, held by a living process alone: the system drops it at any death."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder.with_name(folder.name + ".lock")
        self._file: IO[bytes] | None = None

    def acquire(self) -> None:
        """Take the lock at once, or raise ``EmbeddedServerError`` where another run holds it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise EmbeddedServerError(f"{self._folder} is in use by another run") from None
        self._file = file

    @property
    def held(self) -> bool:
        return self._file is not None

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class SocketFolder:
    """Where a server's Unix socket lies: in its data folder, or in a short one where that path is too long."""

    def __init__(self, data_dir: Path, socket_name: str) -> None:
        self._own = not _fits(data_dir / socket_name)
        self.path = _short_folder(data_dir, socket_name) if self._own else data_dir

    def prepare(self, account: Account | None) -> None:
        """Make the short folder, for its owner alone. Raises ``EmbeddedServerError`` if another user has it."""
        if not self._own:
            return
        self.path.mkdir(mode=0o700, exist_ok=True)
        found = self.path.lstat()
        owners = {os.geteuid(), account.uid if account else os.geteuid()}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners:
            raise EmbeddedServerError(f"{self.path} belongs to somebody else")
        self.path.chmod(0o700)
        if account:
            os.chown(self.path, account.uid, account.gid)

    def remove(self) -> None:
        """Remove the short folder and the socket in it."""
        if self._own:
            shutil.rmtree(self.path, ignore_errors=True)


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES and _PLAIN.fullmatch(str(path)) is not None


def _short_folder(data_dir: Path, socket_name: str) -> Path:
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    for parent in (Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - made 0700, its owner checked
        folder = parent / f"neuronetz-{os.geteuid()}-{digest}"
        if _fits(folder / socket_name):
            return folder
    raise EmbeddedServerError("no folder with a path short enough for a Unix socket")
