"""What one client will do, drawn from the run's seed and the visit's number alone."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from neuronetz.access.keys import generate
from tests.chaos.accounts import WEIGHTS, Account
from tests.chaos.replies import Answer
from tests.shapes import SHAPES, STREAMS, Shape

# It must never be found in a gateway's log.
SECRET_WORD = "chaosprompt"

# How many of a hundred visits are of this kind, roughly.
KINDS = {
    "plain": 24,  # asks and reads
    "slow": 6,  # reads a little at a time
    "leaving": 16,  # leaves before or after the first byte
    "early": 5,  # leaves in the middle of its own request
    "half": 5,  # closes its sending half, then reads
    "stalled": 3,  # reads nothing of a large reply, with a full window
    "malformed": 6,  # a body that is none
    "broken": 5,  # no HTTP, or half of it
    "denied": 3,  # a model that nobody has
    "read": 4,  # lists models
    "stranger": 3,  # a key that nobody has
    "kept": 5,  # three requests on one connection
    "failing": 9,  # the model fails, early or in mid-stream
    "trickled": 3,  # a body in small pieces
}
FAILURES = (
    "500",
    "503",
    "400",
    "refuse",
    "reset",
    "close",
    "garbage",
    "error_line",
    "eof",
    "stall",
    "stall_stream",
)
ENDLESS = "[[tokens:99999]] [[tps:20]]"


@dataclass
class Visit:
    """A connection, and what became of it. ``account`` is None for strangers.

    ``ended``: ``whole`` (every reply was read to its end), ``left`` (as it meant to), ``cut`` (by the other
    side), ``hung`` (no end within the client's patience), ``unsent`` (no gateway took the connection).
    """

    number: int
    kind: str
    account: Account | None
    gateway: int
    requests: list[bytes]
    leaves_after_s: float | None = None
    resets: bool = False
    sent: int = 0
    begun: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    ended: str = ""

    def __str__(self) -> str:
        asked = self.requests[0].partition(b"\r\n")[0].decode(errors="replace")
        whose = self.account.model if self.account else "nobody"
        answers = [(answer.status, answer.request_id, answer.whole) for answer in self.answers]
        return (
            f"visit {self.number}, {self.kind}, {asked!r}, of {whose}, at gateway {self.gateway},"
            f" begun {self.begun:.3f}, {self.ended}: {answers}"
        )

    @property
    def address(self) -> str:
        """Where it comes from. Of Linux all of 127.0.0.0/8 is this host: the audit row's client tells the visit."""
        number = self.number + 256
        return f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def draw(seed: int, number: int, accounts: list[Account], gateways: int) -> Visit:
    dice = random.Random(f"{seed}-{number}")
    kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
    tenant = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    account = dice.choice([account for account in accounts if account.tenant == tenant])
    visit = Visit(number, kind, account, dice.randrange(gateways), [])
    shape = dice.choice(STREAMS if kind in ("slow", "stalled") else SHAPES)
    script = _script(kind, dice)
    key = account.key
    match kind:
        case "read":
            path = dice.choice(("/api/tags", "/v1/models", "/api/ps", "/api/version"))
            visit.requests = [
                f"GET {path} HTTP/1.1\r\nHost: chaos\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
            ]
        case "malformed":
            visit.requests = [request(shape.path, key, _malformed(shape, dice))]
        case "broken":
            visit.requests = [_broken(shape, key, dice)]
            visit.leaves_after_s = 5.0
        case "stranger":
            visit.account = None
            visit.requests = [asking(visit, shape, 0, script, generate(dice).text, model=account.model)]
        case "denied":
            visit.requests = [asking(visit, shape, 0, script, key, model="nobody-has-it")]
        case "kept":
            visit.requests = [asking(visit, dice.choice(SHAPES), index, script, key) for index in range(3)]
        case _:
            visit.requests = [asking(visit, shape, 0, script, key)]
    if kind in ("leaving", "early"):
        visit.leaves_after_s = dice.choice((0.0, dice.random() * 0.05, dice.random()))
        visit.resets = dice.random() < 0.5
    elif kind == "stalled":
        visit.leaves_after_s = 6.0
    return visit


def crowd(dice: random.Random, numbers: list[int], accounts: list[Account], gateways: int) -> list[Visit]:
    """Visits of one tenant that has limits, all at once, more than it is allowed."""
    tenant = dice.choice(("narrow", "narrow", "rated", "thrifty"))
    theirs = [account for account in accounts if account.tenant == tenant]
    visits = []
    for number in numbers:
        visit = Visit(number, "crowd", dice.choice(theirs), dice.randrange(gateways), [])
        assert visit.account is not None
        visit.requests = [asking(visit, dice.choice(STREAMS), 0, "[[tokens:30]] [[tps:40]]", visit.account.key)]
        visits.append(visit)
    return visits


def endless(number: int, account: Account, gateway: int) -> Visit:
    """A stream that ends only when somebody ends it."""
    visit = Visit(number, "endless", account, gateway, [])
    visit.requests = [asking(visit, STREAMS[number % len(STREAMS)], 0, ENDLESS, account.key)]
    return visit


def request(path: str, key: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: chaos\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def asking(visit: Visit, shape: Shape, index: int, script: str, key: str, model: str | None = None) -> bytes:
    more: dict[str, Any] = {"max_tokens": 400} if shape.path == "/v1/messages" else {}
    if visit.kind in ("stalled", "endless"):
        more = {"max_tokens": 90_000} if shape.path == "/v1/messages" else {}
    prompt = f"{SECRET_WORD} #{visit.number}.{index}# {script}"
    named = model or (visit.account.model if visit.account else "")
    return request(shape.path, key, json.dumps(shape.body(prompt, **more) | {"model": named}).encode())


def _script(kind: str, dice: random.Random) -> str:
    if kind == "stalled":
        return "[[tokens:20000]]"
    pace = dice.choice(("", "[[tps:50]]", "[[tps:200]]", "[[ttft:0.2]]"))
    script = f"[[tokens:{dice.randint(1, 60)}]] {pace} " + "x" * dice.choice((0, 100, 3000))
    if kind == "failing":
        script += f" [[fail:{dice.choice(FAILURES)}]] [[after:{dice.randint(0, 5)}]]"
    return script


def _malformed(shape: Shape, dice: random.Random) -> bytes:
    good = json.dumps(shape.body(SECRET_WORD))
    return dice.choice(
        (
            b"",
            b"[1,2",
            good[: len(good) // 2].encode(),
            good.encode() + b" {}",
            good.replace('"model"', '"MODEL"').encode(),
            good.replace('"tiny"', '["tiny"]').encode(),
            b"\xff\xfe" + good.encode(),
            b"[" * 500,
            dice.randbytes(50),
        )
    )


def _broken(shape: Shape, key: str, dice: random.Random) -> bytes:
    line = f"POST {shape.path} HTTP/1.1\r\n"
    named = f"{line}Host: chaos\r\nAuthorization: Bearer {key}\r\n"
    return dice.choice(
        (
            b"NONSENSE\r\n\r\n",
            dice.randbytes(80) + b"\r\n\r\n",
            line.encode() + b"Host chaos\r\n\r\n",
            named.encode() + b"Content-Length: abc\r\n\r\n",
            named.encode() + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
            named.encode() + b"Content-Length: 100\r\n\r\n{",
            named.encode() + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n",
            named.encode() + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
            named.encode() + b"X: " + b"x" * 100_000,
            named.encode(),
        )
    )
