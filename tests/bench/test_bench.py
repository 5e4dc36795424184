"""The benchmark works: every peer is measured, the figures are sane, and nothing is left behind. No speed is asserted."""

import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.bench.peers import PEERS, LiteLLM, Neuronetz, Portkey
from tests.bench.results import Finding, Held, Left, Report, Row, Sample
from tests.bench.run import IDLE, MANY, QUICK, START_UP, STREAMS, WORKERS, run
from tests.bench.shapes import OPENAI_WHOLE, PACED, SHAPES, TOKENS_PER_S, WHOLE
from tests.bench.table import table, targets
from tests.bench.targets import verdicts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the load client waits with epoll")


@pytest.mark.timeout(300)
async def test_a_quick_run_measures_every_peer_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # Wherever they are installed: they would take longer to start than all the rest takes.
    monkeypatch.setenv("BENCH_LITELLM", "/nonexistent/litellm")
    monkeypatch.setenv("BENCH_PORTKEY", "/nonexistent")
    report = await run(QUICK, lambda step: None)
    peers = [left.peer for left in report.left]
    assert {"direct", Neuronetz.name} <= set(peers)
    assert len(peers) + len(report.skipped) == len(PEERS)
    assert [(row.shape.name, row.peer) for row in report.rows] == [
        (shape.name, peer) for shape in SHAPES for peer in peers
    ]
    for row in report.rows:
        _is_sane(row)
    [ours] = [left.counts for left in report.left if left.peer == Neuronetz.name]
    assert ours == {"streams": 0, "connections": 0, "slots": 0, "leases": 0}
    own = {finding.load: finding for finding in report.findings if finding.peer.startswith(Neuronetz.name)}
    assert set(own) == {STREAMS, IDLE, START_UP, WORKERS, MANY}
    assert own[STREAMS].figures["held"] in {0, 8}
    assert own[START_UP].figures["seconds"] > 0
    assert own[WORKERS].figures["rate"] > 0
    assert "opened" not in own[IDLE].text + own[MANY].text, report.findings
    assert len(table(report).splitlines()) == 1 + len(report.rows) + len(report.left) + len(report.findings)


def _is_sane(row: Row) -> None:
    [sample] = row.samples
    assert sample.failures == {}, row
    assert sample.replies >= row.clients, row
    assert 0 < sample.p50_s <= sample.p99_s < sample.seconds, row
    assert sample.rest_s > 0, row
    if row.shape.paced:
        # No reply can be faster than its tokens; and one that were held back would show in its first byte.
        assert sample.seconds > (row.shape.lines - 2) / TOKENS_PER_S, row
        assert sample.p50_s < sample.seconds / 2, row
    if row.peer == Neuronetz.name:
        # Paced streams leave it idle: so short, they may use less than the hundredth of a second that is counted.
        assert sample.peer_s > 0 or row.shape.paced, row
        assert sample.memory_bytes > 10 * 2**20, row


def test_peers_that_are_not_there_say_how_they_are_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("BENCH_LITELLM", "BENCH_PORTKEY"):
        monkeypatch.delenv(variable, raising=False)
    assert "uv tool install 'litellm[proxy]'" in str(LiteLLM().absent())
    assert "npm install @portkey-ai/gateway" in str(Portkey().absent())


def test_the_client_library_of_litellm_is_not_taken_for_its_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("litellm") is None:
        pytest.skip("the client library is not installed")
    script = Path(sys.executable).with_name("litellm")
    monkeypatch.setenv("BENCH_LITELLM", str(script))
    assert script.is_file()
    assert "without the proxy" in str(LiteLLM().absent())


def test_a_proxy_of_litellm_is_known_by_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An interpreter that finds everything, in a script as pip and as uv write it."""
    script = tmp_path / "litellm"
    monkeypatch.setenv("BENCH_LITELLM", str(script))
    for name in ("litellm", "fastapi", "uvicorn", "backoff", "apscheduler"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for head in (f"#!{sys.executable}\n", f"#!/bin/sh\n'''exec' '{sys.executable}' \"$0\" \"$@\"\n' '''\n"):
        script.write_text(head)
        assert LiteLLM().absent() is None
    (tmp_path / "backoff.py").unlink()
    assert "without the proxy" in str(LiteLLM().absent())


def test_portkey_is_left_out_with_a_server_that_cannot_stream(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "node_modules/@portkey-ai/gateway/build"
    server = tmp_path / "node_modules/@hono/node-server"
    package.mkdir(parents=True)
    server.mkdir(parents=True)
    (package / "start-server.js").touch()
    node = tmp_path / "node"
    node.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("BENCH_PORTKEY", str(tmp_path))
    for version, usable in (("1.14.1", True), ("1.14.2", False), ("1.19.19", False)):
        (server / "package.json").write_text(f'{{"version": "{version}"}}')
        assert (Portkey().absent() is None) is usable


def _sample(replies: int, peer_s: float, p50_s: float) -> Sample:
    return Sample(replies, {"503": 2}, 2.0, peer_s, 0.5, 0.25, p50_s, 2 * p50_s, 50 * 2**20)


def test_figures_are_medians_and_what_is_added_is_over_direct_of_the_same_round() -> None:
    direct = [_sample(1000, 0, wait) for wait in (0.001, 0.100, 0.002)]
    own = [_sample(100, peer_s, wait) for peer_s, wait in ((0.1, 0.004), (9.0, 0.104), (0.2, 0.007))]
    row = Row(WHOLE, 16, "ours", own, direct)
    assert row.median(lambda sample: sample.rate) == 50
    assert row.cpu_us() == pytest.approx(2000)
    assert row.cpu_us("stores") == pytest.approx(5000)
    # A neighbour disturbed the second round: both waited, and nothing was added by it.
    assert row.added(lambda sample: sample.p50_s) == pytest.approx(0.004)


def test_the_table_has_a_line_for_each_row() -> None:
    samples = [_sample(100, 0.2, 0.005)]
    rows = [Row(shape, 16, peer, samples, samples) for shape in (WHOLE, PACED) for peer in ("direct", "ours")]
    found = [Finding("idle streams", 256, "ours", "42.0 KiB each")]
    report = Report(rows, [Left("ours", 200, {"streams": 0, "slots": 3})], found)
    lines = [line.split() for line in table(report).splitlines()]
    assert lines[1][:4] == ["chat", "16", "direct", "50"]
    assert lines[1][7:9] == ["5.00", "10.00"]
    assert lines[2][2:5] == ["ours", "50", "2000"]
    assert "+0.00" in lines[2]
    assert lines[2][-3:] == ["2", "x", "503"]
    assert f"{2000 / PACED.tokens:.1f}" in lines[4]
    assert lines[5][:3] == ["leaving", "200", "ours"]
    assert lines[5][-4:] == ["0", "streams,", "3", "slots"]
    assert lines[6][-3:] == ["42.0", "KiB", "each"]


_HELD = Held(64, 64, 2.0, 2560, 0, 0, 0, 0.001, 0.004, 0.049, 0.0, 0.1, 0.1, 0.1)


def test_streams_are_held_where_no_token_is_late_and_none_is_missing() -> None:
    assert _HELD.held
    assert _HELD.token_us == pytest.approx(1e5 / 2560)
    for change in ({"late": 1}, {"silent": 1}, {"ended": 1}, {"open": 63}, {"tokens": 0}):
        assert not replace(_HELD, **change).held


def test_targets_are_met_missed_or_not_judged() -> None:
    direct = [replace(_sample(1000, 0, 0.001), failures={})]
    fast = [replace(_sample(1000, 1.4, 0.0025), failures={})]
    slow = [replace(_sample(1000, 1.6, 0.0025), failures={})]
    rows = [Row(WHOLE, 1, Neuronetz.name, fast, direct), Row(OPENAI_WHOLE, 1, Neuronetz.name, slow, direct)]
    rows += [Row(PACED, 16, Neuronetz.name, fast, direct), Row(PACED, 64, Neuronetz.name, slow, direct)]
    rows += [Row(WHOLE, 1, "nginx", slow, direct)]
    figures = {"rate": 1.6, "cost": 1.0, "workers": 2.0}
    findings = [
        Finding("streams held", 64, Neuronetz.name, "", {"held": 64, "token_us at 64": 61.0}),
        Finding("idle streams", 256, Neuronetz.name, "", {"kib": 100.0}),
        Finding("idle streams", 256, "nginx", "", {"kib": 200.0}),
        Finding("workers", 2, Neuronetz.name, "", {**figures, "free": 1.5}),
        Finding("workers", 2, Neuronetz.name, "", {**figures, "free": 2.5}),
        Finding("workers", 2, Neuronetz.name, "", {**figures, "free": 0.7, "share": 0.3, "rate": 1.7}),
        Finding("workers", 2, Neuronetz.name, "", {**figures, "free": 0.5, "share": 0.3}),
        Finding("many streams", 1000, f"{Neuronetz.name} x2", "", {"missed": 1.0}),
        Finding("start-up", 1, Neuronetz.name, "", {"seconds": 0.99}),
    ]
    report = Report(rows, findings=findings)
    assert [verdict.met for verdict in verdicts(report)] == [
        *(True, False, True),
        *(False, True, None, False, True, None, False, True),
    ]
    assert targets(report).count("MISSED") == 4
    failing = Row(WHOLE, 256, Neuronetz.name, [_sample(1000, 1.4, 0.0025)], direct)
    assert [verdict.met for verdict in verdicts(Report([failing]))] == [True, False]
