"""The reckoning at the end of a run: what clients heard, what the mock did and what the rows say, side by side."""

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.accounts import Account
from tests.chaos.gateways import Gateway, Span
from tests.chaos.visits import SECRET_WORD, Visit
from tests.chaos.witness import Work
from tests.chaos.world import DEAD_AFTER_S, HEARTBEAT_S

Row = dict[str, Any]

# A mock that is busy, on a machine that is, sees later that a connection was closed.
SEEN_CLOSED_WITHIN_S = 1.0
WINDOW_S = 60.0
# No request takes longer, but for those that end only with their gateway.
LONGEST_S = 40.0
# Outcomes of requests that were surely not admitted, and of those that may have been.
NOT_ADMITTED = {"rate_limited", "concurrency_limited", "budget_exhausted", "unavailable"}
PERHAPS_ADMITTED = {"client_disconnected", "revoked", "shutdown", "deadline_exceeded", "internal_error"}


@dataclass
class Reckoning:
    """``problems``: in words, whatever does not hold. The numbers are the run's figures."""

    visits: list[Visit]
    rows: list[Row]
    problems: list[str] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    unheard: int = 0

    def __post_init__(self) -> None:
        self._visits = {visit.address: visit for visit in self.visits}

    def hold(self, condition: object, problem: str) -> None:
        if not condition:
            self.problems.append(problem)

    def check_rows(self, log: bytes, gateways: list[Gateway], outages: list[Span]) -> None:
        """Exactly one row for each request that is known to have been authenticated, and none for nobody's."""
        strangers = refused(log)
        times = Counter(str(row["request_id"]) for row in self.rows)
        self.doubled = sum(count - 1 for count in times.values())
        self.hold(not self.doubled, f"request ids with several rows: {[i for i, n in times.items() if n > 1]}")
        self.hold(not set(strangers) & set(times), "rows of requests that were refused as strangers")
        by_address: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            by_address[row["client_ip"]].append(row)
        self.hold(set(by_address) <= set(self._visits), "rows of clients that never were")
        for visit in self.visits:
            self._check_visit(visit, by_address[visit.address], strangers, gateways, outages)

    def _check_visit(
        self,
        visit: Visit,
        rows: list[Row],
        strangers: dict[str, str],
        gateways: list[Gateway],
        outages: list[Span],
    ) -> None:
        known = {str(row["request_id"]): row for row in rows}
        heard = {answer.request_id: answer for answer in visit.answers if answer.request_id}
        self.hold(visit.ended != "hung", f"no end: {visit}")
        self.hold(len(rows) <= visit.sent, f"{len(rows)} rows: {visit}")
        # Whoever read all the replies knows of all the rows. Where HTTP itself breaks in mid-body, the server
        # answers in the exchange's place and knows no request id.
        if visit.ended == "whole" and visit.kind != "broken":
            self.hold(set(known) <= set(heard), f"rows that its client did not hear of: {visit}")
        self.unheard += len(set(known) - set(heard))
        for request_id, answer in heard.items():
            if request_id in strangers:
                self.hold(answer.status in (401, 503), f"a stranger's status: {visit}")
                continue
            row = known.get(request_id)
            if row is None:
                if not (answer.status == 503 and forgettable(answer.at, gateways[visit.gateway], outages)):
                    self.lost += 1
                    self.problems.append(f"no row for {request_id}: {visit}")
            elif answer.status != 200 and answer.whole and row["outcome"] != "abandoned":
                self.hold(row["status"] == answer.status, f"row says {row['status']} {row['outcome']}: {visit}")

    def check_abandoned(self, gateways: list[Gateway]) -> None:
        """Nobody's requests were given up but those of processes that were killed, or stood still too long."""
        for row in self.rows:
            if row["outcome"] != "abandoned":
                continue
            visit = self._visits[row["client_ip"]]
            gateway, begun = gateways[visit.gateway], row["started_at"].timestamp()
            killed = any(0 <= kill - begun <= LONGEST_S for kill in gateway.kills)
            self.hold(
                killed or frozen(begun, gateway),
                f"given up though its gateway lived: {row['request_id']} of {visit}",
            )

    def beyond_budget(self, column: str, owner: str, gateways: list[Gateway]) -> int:
        """Tokens whose reservation may have been given back before they were used.

        A process that comes back after its leases were reaped goes on with its streams, and where its row is
        committed before the reaper's, what they used counts.
        """
        return sum(
            row["prompt_tokens"] + row["completion_tokens"]
            for row in self.rows
            if str(row[column]) == owner
            and frozen(row["started_at"].timestamp(), gateways[self._visits[row["client_ip"]].gateway])
        )

    def check_ledger(self, ledger: Iterable[Row]) -> None:
        """The ledger is the sum of the rows, by key and day."""
        sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        for row in self.rows:
            total = sums[str(row["key_id"]), str(row["budget_day"])]
            for index, value in enumerate((row["prompt_tokens"], row["completion_tokens"], 1)):
                total[index] += value
        stated = {
            (str(row["key_id"]), str(row["day"])): [
                row["prompt_tokens"],
                row["completion_tokens"],
                row["requests"],
            ]
            for row in ledger
        }
        self.hold(stated == dict(sums), f"ledger {stated} but rows {dict(sums)}")

    def check_rates(self, accounts: list[Account]) -> None:
        """No more than the limit was admitted in any 60 s, as far as rows can tell.

        A row says when its request came and ended, not when it was admitted: requests count as admitted within
        a window only where they lie in it from their beginning to their end.
        """
        for scope, column in (("tenant", "tenant_id"), ("key", "key_id")):
            limits = {getattr(account, column): account.limit(scope, "rpm") for account in accounts}
            for owner, limit in limits.items():
                mine = [row for row in self.rows if str(row[column]) == owner and admitted(row)]
                if limit is not None and (most := busiest([lifetime(row) for row in mine])) > limit:
                    self.problems.append(f"{most} admitted within {WINDOW_S} s, of {limit}: {scope} {owner}")

    def check_slots(self, works: list[Work], accounts: list[Account], gateways: list[Gateway]) -> None:
        """The mock was never at more than N requests of a key or tenant, but for those that were frozen too long."""
        tags = Counter(work.tag for work in works)
        self.hold(max(tags.values(), default=0) <= 1, f"asked twice: {[t for t, n in tags.items() if n > 1]}")
        numbers = {visit.number: visit for visit in self.visits}
        spans: dict[str, list[Span]] = defaultdict(list)
        for work in works:
            gateway = gateways[numbers[int(work.tag.split(".")[0])].gateway]
            spans[work.model].append(Span(work.begun, leased_until(work, gateway) - SEEN_CLOSED_WITHIN_S))
        for scope in ("tenant", "key"):
            groups: dict[tuple[str, int], list[Span]] = defaultdict(list)
            for account in accounts:
                if (limit := account.limit(scope, "concurrency")) is not None:
                    groups[account.tenant if scope == "tenant" else account.model, limit] += spans[account.model]
            for (name, limit), theirs in groups.items():
                most = most_at_once(theirs)
                self.hold(most <= limit, f"the mock was at {most} requests of {scope} {name}, of {limit}")

    def check_log(self, log: bytes, accounts: list[Account]) -> None:
        """Nothing came apart, and nothing secret was said."""
        for line in log.splitlines():
            self.hold(b"Traceback" not in line, f"traceback: {line[:3000].decode(errors='replace')}")
        self.hold(SECRET_WORD.encode() not in log, "a prompt in the log")
        self.hold(b"secret upstream text" not in log, "the upstream's own text in the log")
        for account in accounts:
            self.hold(account.key.removeprefix(account.prefix).encode() not in log, "a key in the log")


def frozen(begun: float, gateway: Gateway) -> bool:
    """Whether the gateway of a request that came then may have been taken for dead while it had it."""
    return any(
        freeze.ended - freeze.begun >= DEAD_AFTER_S - HEARTBEAT_S - SEEN_CLOSED_WITHIN_S
        and freeze.begun - LONGEST_S <= begun <= freeze.ended
        for freeze in gateway.freezes
    )


def refused(log: bytes) -> dict[str, str]:
    """The requests that were refused before there was anything to audit, with the outcome."""
    events = [
        json.loads(line) for line in log.splitlines() if line.startswith(b"{") and b"request.refused" in line
    ]
    return {event["request_id"]: event["outcome"] for event in events}


def forgettable(at: float, gateway: Gateway, outages: list[Span]) -> bool:
    """Whether a 503 of that moment may have no row.

    While Redis is away nothing but the process's memory holds the row of a request that is refused for that,
    until PostgreSQL has it; a process that is killed then takes it along.
    """
    away = any(outage.begun - 1 <= at <= outage.ended + 2 for outage in outages)
    return away and any(0 <= kill - at <= 10 for kill in gateway.kills)


def admitted(row: Row) -> bool:
    if row["outcome"] in PERHAPS_ADMITTED:
        return bool(row["prompt_tokens"])  # charged at admission or later
    return row["outcome"] not in NOT_ADMITTED


def lifetime(row: Row) -> Span:
    """From when a request came until when it was surely admitted."""
    begun = row["started_at"].timestamp()
    # A stub was written before its admission, by a process that may then have stood still.
    spare = 3 * DEAD_AFTER_S if row["outcome"] == "abandoned" else 0.0
    return Span(begun, begun + row["duration_ms"] / 1000 + spare)


def busiest(spans: list[Span]) -> int:
    """The most of them that lie wholly within some window of less than 60 s."""
    ends = sorted(spans, key=lambda span: span.ended)
    most = 0
    for first in spans:
        last = bisect_left(ends, first.begun + WINDOW_S, key=lambda span: span.ended)
        most = max(most, sum(span.begun >= first.begun for span in ends[:last]))
    return most


def leased_until(work: Work, gateway: Gateway) -> float:
    """Until when this work's lease was surely held: others may reap it while its gateway stands still too long."""
    for freeze in gateway.freezes:
        dead_at = freeze.begun + DEAD_AFTER_S - HEARTBEAT_S
        if work.begun < freeze.ended and work.ended > dead_at and freeze.ended > dead_at:
            return dead_at
    return work.ended


def most_at_once(spans: list[Span]) -> int:
    changes = sorted(
        [(span.begun, 1) for span in spans if span.ended > span.begun]
        + [(span.ended, -1) for span in spans if span.ended > span.begun]
    )
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most
