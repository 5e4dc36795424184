"""The embedded cluster: whole when started, gone when stopped or when its run is killed."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import trio

from neuronetz.embedded.child import processes_in
from neuronetz.embedded.valkey_cluster import EmbeddedValkeyCluster, run_valkey_cluster

_RUNNER = """
import sys, pathlib, trio
from neuronetz.embedded.valkey_cluster import EmbeddedValkeyCluster

async def main():
    cluster = EmbeddedValkeyCluster(pathlib.Path(sys.argv[1]))
    await cluster.start()
    cluster.nodes[1].pause()
    sys.stderr.write("ready " + " ".join(str(node.pid) for node in cluster.nodes) + "\\n")
    sys.stderr.flush()
    await trio.sleep_forever()

trio.run(main)
"""


def left_in(folder: Path) -> list[int]:
    return [found.pid for number in range(3) for found in processes_in(folder / f"node{number}", "valkey-server")]


async def test_it_is_whole_when_started_and_gone_behind_its_block(own_folder: Path) -> None:
    async with run_valkey_cluster(own_folder / "c") as cluster:
        assert [await node.in_order(3) for node in cluster.nodes] == [True] * 3
        assert [cluster.nodes.index(cluster.node_of(slot)) for slot in (0, 5461, 5462, 16383)] == [0, 0, 1, 2]
        assert len(left_in(own_folder / "c")) == 3
    assert left_in(own_folder / "c") == []


async def test_a_stopped_node_comes_back_to_its_place(own_folder: Path) -> None:
    async with run_valkey_cluster(own_folder / "c") as cluster:
        node = cluster.nodes[2]
        before = await node.node_id()
        await node.stop(immediate=True)
        assert not await node.in_order(3)
        await node.start()
        await cluster.wait_in_order()
        assert await node.node_id() == before


async def test_a_run_killed_by_sigkill_leaves_nothing_that_a_new_start_does_not_end(own_folder: Path) -> None:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", _RUNNER, str(own_folder / "c")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        text = b""
        while b"\n" not in text.partition(b"ready ")[2]:
            more = await process.stderr.receive_some()
            assert more, text
            text += more
    finally:
        process.send_signal(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stderr.aclose()
    pids = [int(pid) for pid in text.partition(b"ready ")[2].split()[:3]]
    with trio.fail_after(15):
        # The two that run are told of their parent's death; the one that is frozen cannot hear it.
        while any(map(psutil.pid_exists, (pids[0], pids[2]))):
            await trio.sleep(0.02)
    cluster = EmbeddedValkeyCluster(own_folder / "c")
    await cluster.start()
    try:
        assert sorted(left_in(own_folder / "c")) == sorted(node.pid or 0 for node in cluster.nodes)
        assert not set(pids) & set(left_in(own_folder / "c"))
    finally:
        await cluster.stop()
