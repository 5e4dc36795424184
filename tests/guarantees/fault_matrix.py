"""Every fault at every stage of a request: what its client reads, and what the books say. Data, and its table.

``python -m tests.guarantees.fault_matrix`` prints the table as docs/GUARANTEES.md has it.
"""

import sys
from itertools import product
from typing import NamedTuple

STAGES = {
    "authenticate": "the key is being looked up",
    "read the body": "half of the body has come",
    "admit": "Redis is being asked for a lease",
    "open": "the request is with the upstream, which has not answered",
    "first byte": "the upstream has sent its headers and nothing else",
    "mid-stream": "the client has read the first piece of the reply",
    "last line": "the upstream has sent its last line; the end of its body is awaited",
    "settle": "Redis is being told that the lease ends",
    "commit": "PostgreSQL is being given the row",
}

CLIENT = ("client closes", "client half-closes", "client stalls")
REDIS = ("Redis refuses", "Redis stalls", "Redis drops")
POSTGRES = ("PostgreSQL refuses", "PostgreSQL stalls", "PostgreSQL drops")
UPSTREAM = (
    "upstream answers 500",
    "upstream refuses",
    "upstream stalls",
    "upstream resets",
    "upstream sends garbage",
    "upstream sends an error line",
)
OURS = ("key is revoked", "deadline passes", "SIGTERM", "exception")
FAULTS = (*CLIENT, *REDIS, *POSTGRES, *UPSTREAM, *OURS)

FAILURE, NEUTRAL, SUCCESS = "failure", "neutral", "success"


class Cell(NamedTuple):
    """``wire``: the status that the client reads, None where it reads none. ``row``: the audit row's status, and its
    ``outcome``; None where there is no row. ``verdict``: what the breaker learns.
    """

    stage: str
    fault: str
    wire: int | None
    row: int | None
    outcome: str | None
    verdict: str


CELLS = (
    Cell("authenticate", "client closes", None, 499, "client_disconnected", NEUTRAL),
    Cell("authenticate", "client half-closes", None, 499, "client_disconnected", NEUTRAL),
    Cell("authenticate", "Redis refuses", 503, None, None, NEUTRAL),
    Cell("authenticate", "Redis stalls", 503, None, None, NEUTRAL),
    Cell("authenticate", "Redis drops", 503, None, None, NEUTRAL),
    Cell("authenticate", "PostgreSQL refuses", 503, None, None, NEUTRAL),
    Cell("authenticate", "PostgreSQL stalls", 503, None, None, NEUTRAL),
    Cell("authenticate", "PostgreSQL drops", 503, None, None, NEUTRAL),
    Cell("authenticate", "key is revoked", 401, None, None, NEUTRAL),
    Cell("authenticate", "deadline passes", 504, 504, "deadline_exceeded", NEUTRAL),
    Cell("authenticate", "SIGTERM", None, None, None, NEUTRAL),
    Cell("authenticate", "exception", 500, None, None, NEUTRAL),
    Cell("read the body", "client closes", None, 499, "client_disconnected", NEUTRAL),
    Cell("read the body", "client half-closes", 400, 499, "client_disconnected", NEUTRAL),
    Cell("read the body", "client stalls", 408, 408, "body_timeout", NEUTRAL),
    Cell("read the body", "key is revoked", 401, 401, "revoked", NEUTRAL),
    Cell("read the body", "deadline passes", 504, 504, "deadline_exceeded", NEUTRAL),
    Cell("read the body", "SIGTERM", 503, 503, "shutdown", NEUTRAL),
    Cell("read the body", "exception", 500, 500, "internal_error", NEUTRAL),
    Cell("admit", "client closes", None, 499, "client_disconnected", NEUTRAL),
    Cell("admit", "client half-closes", None, 499, "client_disconnected", NEUTRAL),
    Cell("admit", "Redis refuses", 503, 503, "unavailable", NEUTRAL),
    Cell("admit", "Redis stalls", 503, 503, "unavailable", NEUTRAL),
    Cell("admit", "Redis drops", 503, 503, "unavailable", NEUTRAL),
    Cell("admit", "PostgreSQL refuses", 503, 503, "unavailable", NEUTRAL),
    Cell("admit", "PostgreSQL stalls", 503, 503, "unavailable", NEUTRAL),
    Cell("admit", "PostgreSQL drops", 503, 503, "unavailable", NEUTRAL),
    Cell("admit", "key is revoked", 401, 401, "revoked", NEUTRAL),
    Cell("admit", "deadline passes", 504, 504, "deadline_exceeded", NEUTRAL),
    Cell("admit", "SIGTERM", 503, 503, "shutdown", NEUTRAL),
    Cell("admit", "exception", 500, 500, "internal_error", NEUTRAL),
    Cell("open", "client closes", None, 499, "client_disconnected", NEUTRAL),
    Cell("open", "client half-closes", None, 499, "client_disconnected", NEUTRAL),
    Cell("open", "upstream answers 500", 502, 502, "upstream_error", FAILURE),
    Cell("open", "upstream refuses", 502, 502, "upstream_error", FAILURE),
    Cell("open", "upstream stalls", 504, 504, "upstream_timeout", FAILURE),
    Cell("open", "upstream resets", 502, 502, "upstream_error", FAILURE),
    Cell("open", "upstream sends garbage", 502, 502, "upstream_error", FAILURE),
    Cell("open", "key is revoked", 401, 401, "revoked", NEUTRAL),
    Cell("open", "deadline passes", 504, 504, "deadline_exceeded", NEUTRAL),
    Cell("open", "SIGTERM", 503, 503, "shutdown", NEUTRAL),
    Cell("open", "exception", 500, 500, "internal_error", NEUTRAL),
    Cell("first byte", "client closes", None, 499, "client_disconnected", NEUTRAL),
    Cell("first byte", "client half-closes", None, 499, "client_disconnected", NEUTRAL),
    Cell("first byte", "upstream stalls", 504, 504, "upstream_timeout", FAILURE),
    Cell("first byte", "upstream resets", 502, 502, "upstream_error", FAILURE),
    Cell("first byte", "upstream sends garbage", 502, 502, "upstream_error", FAILURE),
    Cell("first byte", "upstream sends an error line", 502, 502, "upstream_error", FAILURE),
    Cell("first byte", "key is revoked", 401, 401, "revoked", NEUTRAL),
    Cell("first byte", "deadline passes", 504, 504, "deadline_exceeded", NEUTRAL),
    Cell("first byte", "SIGTERM", 503, 503, "shutdown", NEUTRAL),
    Cell("first byte", "exception", 500, 500, "internal_error", NEUTRAL),
    Cell("mid-stream", "client closes", None, 499, "client_disconnected", NEUTRAL),
    Cell("mid-stream", "client half-closes", 200, 499, "client_disconnected", NEUTRAL),
    Cell("mid-stream", "client stalls", 200, 499, "client_stalled", NEUTRAL),
    Cell("mid-stream", "Redis drops", 200, 200, "completed", SUCCESS),
    Cell("mid-stream", "PostgreSQL drops", 200, 200, "completed", SUCCESS),
    Cell("mid-stream", "upstream stalls", 200, 504, "upstream_timeout", FAILURE),
    Cell("mid-stream", "upstream resets", 200, 502, "upstream_error", FAILURE),
    Cell("mid-stream", "upstream sends garbage", 200, 502, "upstream_error", FAILURE),
    Cell("mid-stream", "upstream sends an error line", 200, 502, "upstream_error", FAILURE),
    Cell("mid-stream", "key is revoked", 200, 401, "revoked", NEUTRAL),
    Cell("mid-stream", "deadline passes", 200, 504, "deadline_exceeded", NEUTRAL),
    Cell("mid-stream", "SIGTERM", 200, 503, "shutdown", NEUTRAL),
    Cell("mid-stream", "exception", 200, 500, "internal_error", NEUTRAL),
    Cell("last line", "client closes", None, 499, "client_disconnected", NEUTRAL),
    Cell("last line", "client half-closes", 200, 499, "client_disconnected", NEUTRAL),
    Cell("last line", "upstream stalls", 200, 200, "completed", SUCCESS),
    Cell("last line", "upstream resets", 200, 200, "completed", SUCCESS),
    Cell("last line", "upstream sends garbage", 200, 200, "completed", SUCCESS),
    Cell("last line", "upstream sends an error line", 200, 200, "completed", SUCCESS),
    Cell("last line", "key is revoked", 200, 401, "revoked", NEUTRAL),
    Cell("last line", "deadline passes", 200, 504, "deadline_exceeded", NEUTRAL),
    Cell("last line", "SIGTERM", 200, 503, "shutdown", NEUTRAL),
    Cell("last line", "exception", 200, 500, "internal_error", NEUTRAL),
    Cell("settle", "client closes", None, 200, "completed", SUCCESS),
    Cell("settle", "client half-closes", 200, 200, "completed", SUCCESS),
    Cell("settle", "Redis refuses", 200, 200, "completed", SUCCESS),
    Cell("settle", "Redis stalls", 200, 200, "completed", SUCCESS),
    Cell("settle", "Redis drops", 200, 200, "completed", SUCCESS),
    Cell("settle", "key is revoked", 200, 200, "completed", SUCCESS),
    Cell("settle", "deadline passes", 200, 200, "completed", SUCCESS),
    Cell("settle", "SIGTERM", 200, 200, "completed", SUCCESS),
    Cell("settle", "exception", 200, 200, "completed", SUCCESS),
    Cell("commit", "client closes", None, 200, "completed", SUCCESS),
    Cell("commit", "client half-closes", 200, 200, "completed", SUCCESS),
    Cell("commit", "PostgreSQL refuses", 200, 200, "completed", SUCCESS),
    Cell("commit", "PostgreSQL stalls", 200, 200, "completed", SUCCESS),
    Cell("commit", "PostgreSQL drops", 200, 200, "completed", SUCCESS),
    Cell("commit", "key is revoked", 200, 200, "completed", SUCCESS),
    Cell("commit", "deadline passes", 200, 200, "completed", SUCCESS),
    Cell("commit", "SIGTERM", 200, 200, "completed", SUCCESS),
    Cell("commit", "exception", 200, 200, "completed", SUCCESS),
)

# Why a cell is not there: its stages, its faults, the reason.
_NOT_THERE: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("authenticate", "read the body", "admit"), UPSTREAM, "the upstream is asked after admission alone"),
    (("settle", "commit"), UPSTREAM, "the upstream's connection is closed, or back in its pool, by then"),
    (
        ("authenticate", "admit", "open", "first byte", "last line", "settle"),
        ("client stalls",),
        "nothing is read from the client at this stage, nor written to it",
    ),
    (
        ("commit",),
        ("client stalls",),
        "the row waits for no client; that the connection ends is shown by `tests/guarantees/test_stalled_clients.py`",
    ),
    (
        ("read the body", "open", "first byte", "last line"),
        (*REDIS, *POSTGRES),
        "no store is asked at this stage; what then finds it away is the next stage that asks",
    ),
    (
        ("mid-stream",),
        ("Redis refuses", "Redis stalls", "PostgreSQL refuses", "PostgreSQL stalls"),
        "no store is asked while a reply runs; what finds it away is `settle`, or `commit`",
    ),
    (("settle",), POSTGRES, "settling asks Redis alone"),
    (("commit",), REDIS, "PostgreSQL is given the row whether Redis is there or not"),
    (("open",), ("upstream sends an error line",), "an error before the reply begins is a status"),
    (
        ("first byte", "mid-stream", "last line"),
        ("upstream answers 500", "upstream refuses"),
        "the upstream has taken the connection and answered 200",
    ),
)


def reasons() -> dict[tuple[str, str], str]:
    """Why each cell that is not there cannot be."""
    return {pair: reason for stages, faults, reason in _NOT_THERE for pair in product(stages, faults)}


def table() -> str:
    """The matrix in Markdown: a row for each cell, then why the others cannot be."""
    lines = ["| stage | fault | client reads | row | outcome | breaker |", "|---|---|---|---|---|---|"]
    for cell in CELLS:
        wire, row, outcome = (
            cell.wire or "nothing",
            cell.row or "none",
            f"`{cell.outcome}`" if cell.outcome else "",
        )
        lines.append(f"| {cell.stage} | {cell.fault} | {wire} | {row} | {outcome} | {cell.verdict} |")
    lines += ["", "The stages:", ""]
    lines += [f"- *{stage}*: {meaning}." for stage, meaning in STAGES.items()]
    lines += ["", "What is not in the table cannot be:", ""]
    for stages, faults, reason in _NOT_THERE:
        lines.append(f"- {', '.join(faults)} (at *{', '.join(stages)}*): {reason}.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
