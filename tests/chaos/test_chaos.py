"""A short run of chaos, so that every change goes through one. ``just chaos`` runs longer, with any seed."""

import sys

import pytest

from tests.chaos.run import run

SEED = 7
SECONDS = 12.0


@pytest.mark.skipif(sys.platform != "linux", reason="clients come from addresses all over 127.0.0.0/8")
@pytest.mark.timeout(400)
async def test_the_invariants_hold_through_chaos() -> None:
    report = await run(SEED, SECONDS)
    assert not report.problems, "\n".join(
        [report.line(), f"to repeat: just chaos --seconds {SECONDS:g} --seed {SEED}", *report.problems]
    )
    # It was chaos: enough was asked, and enough went wrong.
    assert report.figures["requests"] > 100, report.line()
    assert report.figures["rows"] > 50, report.line()
    assert report.figures["looks"] > 10, report.line()
    for kind in ("disconnects", "kills", "stops", "restarts"):
        assert report.figures[kind] > 0, report.line()
