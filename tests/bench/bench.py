"""The processes of a run, and what can be asked of them."""

import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.bench.peers import Peer, Serving
from tests.bench.processes import READY_WITHIN_S, Lines, connections, cpu_s, memory_bytes, started
from tests.bench.results import Held, Report, Sample
from tests.bench.shapes import HELD, OPENAI_HELD, OPENAI_PACED, PACED, TOKENS_PER_S, Shape

# What is done behind a reply (rows are written in batches) is counted with it.
BEHIND_REPLIES_S = 0.2
LEFT_AFTER_S = 1.0
WARM_S = 0.2
# A token is late once the next one is due.
LATE_S = 1 / TOKENS_PER_S
_OPEN_WITHIN_S = 30.0
_SETTLED_S = 0.5
_GONE_WITHIN_S = 3.0


class Bench:
    """The client, the upstream, and the peers that serve."""

    def __init__(self, client: Lines, upstream: Lines, upstream_port: int, peers: dict[str, tuple[Peer, Serving]]):
        self._client = client
        self._upstream = upstream
        self._upstream_port = upstream_port
        self.peers = peers

    async def ask(self, task: str, **job: Any) -> dict[str, Any]:
        """Have the client do something; what it saw."""
        answer: dict[str, Any] = json.loads(await self._client.ask(json.dumps({"task": task, **job}).encode()))
        return answer

    async def load(self, task: str, serving: Serving, shape: Shape, **job: Any) -> dict[str, Any]:
        """Have the client do something with requests of this shape."""
        request = shape.request(serving.key, serving.headers).decode()
        return await self.ask(task, port=serving.port, request=request, **job)

    async def warm(self, serving: Serving, shape: Shape, clients: int, seconds: float = WARM_S) -> None:
        await self.load("measure", serving, shape, clients=clients, seconds=seconds, spread_s=0.0)

    async def sample(self, serving: Serving, shape: Shape, clients: int, seconds: float) -> Sample:
        before = self._cpu(serving)
        spread_s = shape.takes_s
        seen = await self.load("measure", serving, shape, clients=clients, seconds=seconds, spread_s=spread_s)
        await trio.sleep(BEHIND_REPLIES_S)
        peer, stores, upstream = (now - then for now, then in zip(self._cpu(serving), before, strict=True))
        return Sample(
            replies=seen["replies"],
            failures=seen["failures"],
            seconds=seen["seconds"],
            peer_s=peer,
            stores_s=stores,
            rest_s=upstream + seen["cpu_s"],
            p50_s=seen["p50_s"],
            p99_s=seen["p99_s"],
            memory_bytes=memory_bytes(serving.processes),
        )

    async def held(self, peer: Peer, serving: Serving, count: int, seconds: float) -> Held:
        """So many streams under way at once. All have gone when it returns."""
        shape = HELD if peer.answers(HELD) else OPENAI_HELD
        try:
            opened = await self.load("open", serving, shape, count=count, within_s=_OPEN_WITHIN_S)
            await self.ask("watch", seconds=_SETTLED_S, late_s=LATE_S)
            await self.upstream()
            before = self._cpu(serving)
            seen = await self.ask("watch", seconds=seconds, late_s=LATE_S)
            peer_s, stores_s, upstream_s = (
                now - then for now, then in zip(self._cpu(serving), before, strict=True)
            )
            behind_s = (await self.upstream())["behind_s"]
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(READY_WITHIN_S):
                await self.gone()
        rest_s = upstream_s + seen.pop("cpu_s")
        return Held(
            asked=count, open=opened["open"], seconds=seconds, **seen,
            behind_s=behind_s, peer_s=peer_s, stores_s=stores_s, rest_s=rest_s,
        )  # fmt: skip

    async def gone(self) -> None:
        """Have the client leave all streams, and wait until the upstream has none; what a peer keeps is broken off."""
        await self.ask("close")
        with trio.move_on_after(_GONE_WITHIN_S):
            while (await self.upstream())["streams"]:
                await trio.sleep(0.1)
        await self.upstream("end")

    async def leave(self, peer: Peer, serving: Serving, clients: int) -> dict[str, int]:
        """What is left a second after the clients went, and how many of them had no stream to leave, if any."""
        shape = PACED if peer.answers(PACED) else OPENAI_PACED
        answer = await self.load("leave", serving, shape, clients=clients)
        await trio.sleep(LEFT_AFTER_S)
        counts = {"streams": int((await self.upstream())["streams"])}
        if answer["left"] != clients:
            counts["without a stream"] = clients - answer["left"]
        if serving.processes:
            counts["connections"] = connections(serving.processes, serving.port)
        if serving.books is not None:
            counts |= {"slots": await serving.books.slots(), "leases": await serving.books.leases()}
        await self.upstream("end")
        return counts

    async def upstream(self, what: str = "streams") -> dict[str, float]:
        """The streams that the upstream is at, and by how much it was behind since it was last asked; or their end."""
        async with await trio.open_tcp_stream("127.0.0.1", self._upstream_port) as stream:
            await stream.send_all(f"GET /bench/{what} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
            reply = await stream.receive_some(4096)
        found: dict[str, float] = json.loads(reply.rpartition(b"\r\n\r\n")[2])
        return found

    def _cpu(self, serving: Serving) -> list[float]:
        families = (serving.processes, serving.stores, (self._upstream.pid,))
        return [cpu_s(roots) for roots in families]


@asynccontextmanager
async def opened(report: Report, kinds: tuple[type[Peer], ...]) -> AsyncIterator[Bench]:
    """All of it, with what is absent noted in the report; ended, and its folder removed, at the block's end."""
    folder = _short_folder()
    try:
        async with AsyncExitStack() as stack:
            module = [sys.executable, "-m"]
            upstream = await stack.enter_async_context(
                started([*module, "tests.bench.upstream"], folder / "upstream.log")
            )
            with trio.fail_after(READY_WITHIN_S):
                port = int(await upstream.line())
            client = await stack.enter_async_context(
                started([*module, "tests.bench.client"], folder / "client.log")
            )
            peers = {}
            for peer in (kind() for kind in kinds):
                if reason := peer.absent():
                    report.skipped.append(f"{peer.name} is left out: {reason}")
                else:
                    peers[peer.name] = (peer, await stack.enter_async_context(peer.opened(port, folder)))
            yield Bench(client, upstream, port, peers)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


def _short_folder() -> Path:
    # Sockets lie below it; open to the system user that PostgreSQL may have to run as.
    folder = Path(tempfile.mkdtemp(prefix="nnz-bench-"))
    folder.chmod(0o711)
    return folder
