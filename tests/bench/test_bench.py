"""The benchmark works: every peer is measured, the figures are sane, and nothing is left behind. No speed is asserted."""

import sys

import pytest

from tests.bench.peers import PEERS, Neuronetz
from tests.bench.run import QUICK, Left, Report, Row, Sample, run
from tests.bench.shapes import PACED, PACED_LINES, SHAPES, TOKENS_PER_S, WHOLE
from tests.bench.table import per_request_us, rate, table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the load client waits with epoll")


@pytest.mark.timeout(300)
async def test_a_quick_run_measures_every_peer_and_leaves_nothing_behind() -> None:
    report = await run(QUICK, lambda step: None)
    peers = [left.peer for left in report.left]
    assert {"direct", Neuronetz.name} <= set(peers)
    assert len(peers) + len(report.skipped) == len(PEERS)
    assert [(row.shape, row.peer) for row in report.rows] == [(shape, peer) for shape in SHAPES for peer in peers]
    for row in report.rows:
        _is_sane(row)
    [ours] = [left.counts for left in report.left if left.peer == Neuronetz.name]
    assert ours == {"streams": 0, "connections": 0, "slots": 0, "leases": 0}
    assert len(table(report).splitlines()) == 1 + len(report.rows) + len(report.left)


def _is_sane(row: Row) -> None:
    [sample] = row.samples
    assert sample.failures == {}, row
    assert sample.replies >= row.clients, row
    assert 0 < sample.p50_s <= sample.p99_s < sample.seconds, row
    assert sample.rest_s > 0, row
    if row.shape.paced:
        # No reply can be faster than its tokens; and one that were held back would show in its first byte.
        assert sample.seconds > (PACED_LINES - 1.5) / TOKENS_PER_S, row
        assert sample.p50_s < sample.seconds / 2, row
    if row.peer == Neuronetz.name:
        assert sample.peer_s > 0, row
        assert sample.memory_bytes > 10 * 2**20, row


def _sample(replies: int, peer_s: float, p50_s: float) -> Sample:
    return Sample(replies, {"503": 2}, 2.0, peer_s, 0.5, 0.25, p50_s, 2 * p50_s, 50 * 2**20)


def test_figures_are_medians_and_what_is_added_is_over_direct_of_the_same_round() -> None:
    direct = [_sample(1000, 0, wait) for wait in (0.001, 0.100, 0.002)]
    own = [_sample(100, peer_s, wait) for peer_s, wait in ((0.1, 0.004), (9.0, 0.104), (0.2, 0.007))]
    row = Row(WHOLE, 16, "ours", own, direct)
    assert row.median(rate) == 50
    assert per_request_us(row, "peer") == pytest.approx(2000)
    assert per_request_us(row, "stores") == pytest.approx(5000)
    # A neighbour disturbed the second round: both waited, and nothing was added by it.
    assert row.added(lambda sample: sample.p50_s) == pytest.approx(0.004)


def test_the_table_has_a_line_for_each_row() -> None:
    samples = [_sample(100, 0.2, 0.005)]
    rows = [Row(shape, 16, peer, samples, samples) for shape in (WHOLE, PACED) for peer in ("direct", "ours")]
    report = Report(rows, [Left("ours", 200, {"streams": 0, "slots": 3})])
    lines = [line.split() for line in table(report).splitlines()]
    assert lines[1][:4] == ["chat", "16", "direct", "50"]
    assert lines[1][7:9] == ["5.00", "10.00"]
    assert lines[2][2:5] == ["ours", "50", "2000"]
    assert "+0.00" in lines[2]
    assert lines[2][-3:] == ["2", "x", "503"]
    assert "100.0" in lines[4]
    assert lines[5][:3] == ["leaving", "200", "ours"]
    assert lines[5][-4:] == ["0", "streams,", "3", "slots"]
