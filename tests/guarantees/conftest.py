"""What the proofs covered, told at the end of a run, whichever worker they ran in."""

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    points = [
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "checkpoints"
    ]
    if points:
        terminalreporter.write_line(f"cancelled at {sum(points)} checkpoints of {len(points)} exchanges")
