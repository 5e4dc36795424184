"""The reckoning itself: what it must find, as tables."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.accounts import Account
from tests.chaos.gateways import Gateway, Span
from tests.chaos.reckoning import Reckoning, busiest, forgettable, leased_until, most_at_once
from tests.chaos.replies import Answer, Replies
from tests.chaos.visits import Visit
from tests.chaos.witness import Work, read_notes

ID = "6f1c0f2e-0000-4000-8000-000000000001"


def gateway(**more: Any) -> Gateway:
    return Gateway(0, 1, {}, Path("nowhere"), **more)


def account(**limits: Any) -> Account:
    return Account("narrow", "narrow-0:latest", "nnz_prefix" + "s" * 39, "nnz_prefix", "t", "k", limits)


def visit(ended: str = "whole", *answers: Answer, sent: int = 1) -> Visit:
    return Visit(1, "plain", account(), 0, [b"POST / HTTP/1.1"], sent=sent, ended=ended, answers=list(answers))


def row(request_id: str = ID, **more: Any) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "client_ip": visit().address,
        "tenant_id": "t",
        "key_id": "k",
        "budget_day": "2026-01-01",
        "started_at": datetime(2026, 1, 1, tzinfo=UTC),
        "duration_ms": 1000,
        "status": 200,
        "outcome": "completed",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        **more,
    }


HEARD = Answer(200, ID, 100.0, whole=True)
REFUSED = Answer(429, ID, 100.0, whole=True)
AWAY = Answer(503, ID, 100.0, whole=True)
STRANGER = f'{{"event":"request.refused","request_id":"{ID}","outcome":"unauthenticated"}}'.encode()


@pytest.mark.parametrize(
    ("visited", "rows", "log", "problems"),
    [
        (visit("whole", HEARD), [row()], b"", 0),
        (visit("whole", HEARD), [], b"", 1),
        (visit("whole", HEARD), [row(), row()], b"", 2),
        (visit("whole", HEARD), [row(), row(ID[:-1] + "2")], b"", 2),
        (visit("left"), [row()], b"", 0),
        (visit("left"), [], b"", 0),
        (visit("hung"), [], b"", 1),
        (visit("whole", REFUSED), [row(status=200)], b"", 1),
        (visit("whole", REFUSED), [row(status=499, outcome="abandoned")], b"", 0),
        (visit("whole", Answer(401, ID, 100.0, whole=True)), [], STRANGER, 0),
        (visit("whole", Answer(401, ID, 100.0, whole=True)), [row(status=401)], STRANGER, 1),
        (visit("whole", AWAY), [], b"", 1),
        (visit("left"), [row(client_ip="127.9.9.9")], b"", 1),
    ],
)
def test_rows(visited: Visit, rows: list[dict[str, Any]], log: bytes, problems: int) -> None:
    reckoning = Reckoning([visited], rows)
    reckoning.check_rows(log, [gateway()], [])
    assert len(reckoning.problems) == problems, reckoning.problems


@pytest.mark.parametrize(
    ("kills", "outages", "forgotten"),
    [
        ([101.0], [Span(99, 101)], True),
        ([], [Span(99, 101)], False),
        ([101.0], [], False),
        ([99.0], [Span(99, 101)], False),
    ],
)
def test_what_only_a_killed_process_knew(kills: list[float], outages: list[Span], forgotten: bool) -> None:
    assert forgettable(100.0, gateway(kills=kills), outages) is forgotten


@pytest.mark.parametrize(
    ("stated", "problems"),
    [([3, 4, 1], 0), ([3, 5, 1], 1), ([3, 4, 2], 1)],
)
def test_the_ledger(stated: list[int], problems: int) -> None:
    reckoning = Reckoning([], [row()])
    names = ("prompt_tokens", "completion_tokens", "requests")
    reckoning.check_ledger([{"key_id": "k", "day": "2026-01-01", **dict(zip(names, stated, strict=True))}])
    assert len(reckoning.problems) == problems


@pytest.mark.parametrize(
    ("spans", "most"),
    [
        ([], 0),
        ([Span(0, 1), Span(2, 59), Span(58, 59.9)], 3),
        ([Span(0, 1), Span(2, 59), Span(58, 60.1)], 2),
        ([Span(0, 30), Span(61, 62), Span(62, 120)], 2),
    ],
)
def test_the_busiest_minute(spans: list[Span], most: int) -> None:
    assert busiest(spans) == most


@pytest.mark.parametrize(
    ("freezes", "tokens"), [([], 0), ([Span(-1, 0.5)], 0), ([Span(-1, 4)], 7), ([Span(-9, -3)], 0)]
)
def test_what_may_go_beyond_a_budget(freezes: list[Span], tokens: int) -> None:
    begun = row()["started_at"].timestamp()
    shifted = [Span(begun + freeze.begun, begun + freeze.ended) for freeze in freezes]
    reckoning = Reckoning([visit()], [row()])
    for owner, expected in (("k", tokens), ("another", 0)):
        assert reckoning.beyond_budget("key_id", owner, [gateway(freezes=shifted)]) == expected


@pytest.mark.parametrize(
    ("kills", "freezes", "problems"),
    [([], [], 1), ([5.0], [], 0), ([-5.0], [], 1), ([], [Span(-1, 4)], 0), ([], [Span(-1, 0.5)], 1)],
)
def test_who_is_given_up_without_cause(kills: list[float], freezes: list[Span], problems: int) -> None:
    begun = row()["started_at"].timestamp()
    one = gateway(
        kills=[begun + kill for kill in kills],
        freezes=[Span(begun + freeze.begun, begun + freeze.ended) for freeze in freezes],
    )
    reckoning = Reckoning([visit()], [row(outcome="abandoned"), row(ID[:-1] + "2")])
    reckoning.check_abandoned([one])
    assert len(reckoning.problems) == problems


def test_more_admitted_in_a_minute_than_allowed() -> None:
    rows = [row(), row(ID[:-1] + "2"), row(ID[:-1] + "3", outcome="rate_limited")]
    for limit, problems in ((2, 0), (1, 1)):
        reckoning = Reckoning([], rows)
        reckoning.check_rates([account(key_rpm=limit)])
        assert len(reckoning.problems) == problems


@pytest.mark.parametrize(
    ("freezes", "until"),
    [
        ([], 20.0),
        ([Span(2, 4)], 20.0),  # too short for anybody to notice
        ([Span(2, 9)], 5.0),
        ([Span(30, 40)], 20.0),
    ],
)
def test_a_lease_is_surely_held_until(freezes: list[Span], until: float) -> None:
    assert leased_until(Work("1.0", "narrow-0:latest", 1.0, 20.0), gateway(freezes=freezes)) == until


def test_most_at_once() -> None:
    assert most_at_once([Span(0, 3), Span(1, 2), Span(2, 4), Span(3, 5), Span(6, 5)]) == 2


def test_more_at_the_mock_than_allowed_and_a_request_that_came_twice() -> None:
    works = [Work(tag, "narrow-0:latest", 0.0, 9.0) for tag in ("1.0", "1.1", "1.1")]
    reckoning = Reckoning([visit()], [])
    reckoning.check_slots(works, [account(key_concurrency=2)], [gateway()])
    assert len(reckoning.problems) == 2


@pytest.mark.parametrize("said", [b"Traceback (most", b"#1# chaosprompt", b"secret upstream text: x", b"s" * 39])
def test_what_no_log_may_say(said: bytes) -> None:
    reckoning = Reckoning([], [])
    reckoning.check_log(b'{"event":"fine"}\n', [account()])
    assert not reckoning.problems
    reckoning.check_log(b'{"event":"' + said + b'"}\n', [account()])
    assert len(reckoning.problems) == 1


def test_replies_in_pieces_and_one_behind_the_other() -> None:
    data = (
        b"HTTP/1.1 429 \r\nX-Request-Id: a\r\nContent-Length: 2\r\n\r\n{}"
        b"HTTP/1.1 200 \r\nx-request-id: b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"
        b"HTTP/1.1 200 \r\nx-request-id: c\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    )
    for size in (1, 7, len(data)):
        replies = Replies()
        for begin in range(0, len(data), size):
            replies.feed(data[begin : begin + size])
        assert [(a.status, a.request_id, a.whole) for a in replies.answers] == [
            (429, "a", True),
            (200, "b", True),
            (200, "c", False),
        ]


def test_notes_of_a_witness_that_was_killed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text("1.0 + 0 5.0 free-0:latest\n2.0 + 1 6.0 free-0:latest\n3.0 - 0\n")
    assert read_notes(notes, 9.0) == [
        Work("5.0", "free-0:latest", 1.0, 3.0),
        Work("6.0", "free-0:latest", 2.0, 9.0),
    ]
