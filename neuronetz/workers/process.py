"""A worker from within: a gateway on an inherited socket, that does as its parent says.

Its parent alone decides when it ends. SIGTERM, however often it comes, is a wish to drain: service managers
send it to all processes at once, and it must not look like the impatient second signal that the parent
would make of two.
"""

import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

import structlog
import trio
import trio_asyncio

from neuronetz.garbage import leave_out_the_start
from neuronetz.gateway import Gateway, open_gateway
from neuronetz.settings import Settings
from neuronetz.web.listening import Listener
from neuronetz.web.sharing import Load
from neuronetz.workers.folder import count_into, in_use, remove_if_unused
from neuronetz.workers.worker import CANCEL, DRAIN, READY, REFRESH, REFRESHED

log = structlog.get_logger("neuronetz.workers")


def run_worker(settings: Settings, *, number: int, listen: Sequence[int], control: int, folder: Path) -> None:
    """Serve until the parent says to drain, or is gone.

    ``listen`` and ``control`` are inherited descriptors: the listening sockets, and the parent's socket.
    """
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    wish = _Wish()
    signal.signal(signal.SIGTERM, wish)
    structlog.contextvars.bind_contextvars(worker=number)
    parent = _Parent(control)
    with in_use(folder):
        count_into(folder, number)
        trio.run(_serve, settings, parent, wish, listen, Load(folder, number))
    if parent.gone:
        remove_if_unused(folder)


class _Wish:
    """SIGTERM's handler for the whole of the process's life: it asks for a drain, and never for more."""

    def __init__(self) -> None:
        self._made = False
        self._grant: Callable[[], None] | None = None

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        self._made = True
        if self._grant is not None:
            self._grant()

    def stops(self, stop: trio.Event) -> None:
        """Have the wish set ``stop``, from within Trio's run."""
        token = trio.lowlevel.current_trio_token()

        def grant() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(stop.set)

        self._grant = grant
        if self._made:
            stop.set()


class _Parent:
    """The parent, at the other end of the socket. ``gone`` is True once that end is closed."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._socket.setblocking(False)
        self.gateway: Gateway | None = None
        self.gone = False

    def say(self, message: bytes) -> None:
        with suppress(OSError):  # its end is noticed by reading
            self._socket.send(message)

    async def heed(self, stop: trio.Event, everything: trio.CancelScope) -> None:
        """Do what the parent says until it is gone; that is a drain too, since nobody would replace this one."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                said = self._socket.recv(64)
            except OSError:
                said = b""
            if CANCEL in said:
                everything.cancel()
            if REFRESH in said:
                if self.gateway is not None:
                    self.gateway.read_gauges()
                self.say(REFRESHED)
            if not said:
                self.gone = True
                log.warning("worker.orphaned", effect="draining")
            if not said or DRAIN in said:
                stop.set()
            if not said:
                return


async def _serve(settings: Settings, parent: _Parent, wish: _Wish, listen: Sequence[int], load: Load) -> None:
    stop = trio.Event()
    wish.stops(stop)
    async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:
        nursery.start_soon(parent.heed, stop, nursery.cancel_scope)
        async with open_gateway(settings) as gateway, trio.open_nursery() as serving:
            parent.gateway = gateway
            listeners = [Listener(socket.socket(fileno=descriptor), load) for descriptor in listen]
            await serving.start(partial(gateway.run, stop, shared=(listeners, load)))
            leave_out_the_start()
            parent.say(READY)
        nursery.cancel_scope.cancel()
