"""Valkey servers as a cluster on loopback, for the tests: the nodes can be stopped, started and paused."""

import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import trio

from neuronetz.embedded.child import POLL_S, Account, EmbeddedServerError
from neuronetz.embedded.ports import held_port
from neuronetz.embedded.server import START_TIMEOUT_S, exchange
from neuronetz.embedded.valkey import EmbeddedValkey

NODES = 3
SLOTS = 16384
_HOST = "127.0.0.1"


class ClusterNode(EmbeddedValkey):
    """One node. It forgets its data when it stops, but not its place in the cluster."""

    def __init__(self, data_dir: Path, *, port: int, bus_port: int, timeout_ms: int) -> None:
        super().__init__(data_dir, persist=False, databases=1)
        self.port = port
        self.bus_port = bus_port
        self._timeout_ms = timeout_ms
        self._new = True

    async def _prepare(self) -> Account | None:
        if self._new:
            # An earlier run's node would look for that run's others.
            shutil.rmtree(self.data_dir, ignore_errors=True)
            self._new = False
        return await super()._prepare()

    def _command(self) -> list[str]:
        settings = {
            # A cluster's nodes find each other by TCP alone; the later port overrides the earlier.
            "port": str(self.port),
            "bind": _HOST,
            "cluster-enabled": "yes",
            "cluster-port": str(self.bus_port),
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": str(self._timeout_ms),
            # What one node does not serve is its own keys' trouble alone.
            "cluster-require-full-coverage": "no",
            "repl-diskless-sync-delay": "0",
        }
        return [*super()._command(), *(part for name, value in settings.items() for part in (f"--{name}", value))]

    async def tell(self, *words: str) -> None:
        """A command that is to answer OK. Raises ``EmbeddedServerError``."""
        answer = await self.ask(*words)
        if not answer.startswith("+OK"):
            raise EmbeddedServerError(f"{' '.join(words[:2])}: {answer.strip()[:100]}")

    async def ask(self, *words: str) -> str:
        """The first 512 bytes of a command's reply; empty where nobody answers."""
        return (await exchange(self.socket_path, (" ".join(words) + "\r\n").encode())).decode()

    async def node_id(self) -> str:
        """The id by which the nodes know each other."""
        return (await self.ask("CLUSTER", "MYID")).splitlines()[1]

    async def in_order(self, nodes: int) -> bool:
        """Whether this node sees a whole cluster of so many nodes."""
        answer = await self.ask("CLUSTER", "INFO")
        wanted = (f"cluster_slots_ok:{SLOTS}", f"cluster_known_nodes:{nodes}", "cluster_state:ok")
        return all(line in answer for line in wanted)


class EmbeddedValkeyCluster:
    """Three primaries without replicas, the slots divided among them in the order of ``nodes``.

    The ports are free ones, held for as long as the cluster is started so that a stopped node finds its own
    again. For tests: whoever can reach loopback can reach the data.
    """

    def __init__(self, data_dir: Path, *, timeout_ms: int = 1000) -> None:
        self.data_dir = data_dir.resolve()
        self.nodes: list[ClusterNode] = []
        self._timeout_ms = timeout_ms
        self._ports = ExitStack()

    def url(self) -> str:
        """A URL with all nodes as seeds."""
        return "redis+cluster://" + ",".join(f"{_HOST}:{node.port}" for node in self.nodes)

    def node_of(self, slot: int) -> ClusterNode:
        """The node that owns a slot from the start."""
        return next(node for node, (_, last) in zip(self.nodes, _ranges(), strict=False) if slot <= last)

    async def start(self) -> None:
        """Start the nodes and wait until each sees a whole cluster: at least two seconds, by Valkey's rule.

        What an earlier run left in the folder is ended first. Raises ``EmbeddedServerError``; then, and when
        cancelled, nothing is left running.
        """
        self.nodes = [self._node(number) for number in range(NODES)]
        try:
            async with trio.open_nursery() as nursery:
                for node in self.nodes:
                    nursery.start_soon(node.start)
            for epoch, (node, (first, last)) in enumerate(zip(self.nodes, _ranges(), strict=True), 1):
                await node.tell("CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
                await node.tell("CLUSTER", "SET-CONFIG-EPOCH", str(epoch))
            for node in self.nodes[1:]:
                await self.nodes[0].tell("CLUSTER", "MEET", _HOST, str(node.port), str(node.bus_port))
            await self.wait_in_order()
        except BaseException:
            await self.stop()
            raise

    async def add_replica(self, primary: ClusterNode) -> ClusterNode:
        """Another node, which follows ``primary`` and takes over from it; return once it has its data."""
        replica = self._node(len(self.nodes))
        self.nodes.append(replica)
        await replica.start()
        await self.nodes[0].tell("CLUSTER", "MEET", _HOST, str(replica.port), str(replica.bus_port))
        await self.wait_in_order()
        await replica.tell("CLUSTER", "REPLICATE", await primary.node_id())
        with trio.fail_after(START_TIMEOUT_S):
            while "master_link_status:up" not in await replica.ask("INFO", "replication"):  # noqa: ASYNC110
                await trio.sleep(POLL_S)
        return replica

    async def wait_in_order(self) -> None:
        """Wait until every node sees a whole cluster. Raises ``EmbeddedServerError`` if that takes too long."""
        with trio.move_on_after(START_TIMEOUT_S):
            for node in self.nodes:
                while not await node.in_order(len(self.nodes)):  # noqa: ASYNC110 - a server tells nobody
                    await trio.sleep(POLL_S)
            return
        raise EmbeddedServerError("the cluster's nodes did not find each other in time")

    async def stop(self) -> None:
        """Stop all nodes at once, as a crash would. Shielded from cancellation."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for node in self.nodes:
                    nursery.start_soon(node.stop, True)
        self._ports.close()

    def _node(self, number: int) -> ClusterNode:
        return ClusterNode(
            self.data_dir / f"node{number}",
            port=self._ports.enter_context(held_port()),
            bus_port=self._ports.enter_context(held_port()),
            timeout_ms=self._timeout_ms,
        )


@asynccontextmanager
async def run_valkey_cluster(data_dir: Path) -> AsyncIterator[EmbeddedValkeyCluster]:
    """A cluster for the length of the block."""
    cluster = EmbeddedValkeyCluster(data_dir)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


def _ranges() -> list[tuple[int, int]]:
    size = -(-SLOTS // NODES)
    return [(first, min(first + size, SLOTS) - 1) for first in range(0, SLOTS, size)]
