"""The tutorial, from its first page to its last, against the demo that it begins with."""

import re
import shlex
import signal
from pathlib import Path

import trio

from tests.docs.commands import BASE, METRICS, Heard, blocks, read_along
from tests.docs.exceptions import NOT_RUN
from tests.local.conftest import launched

PAGE = "docs/TUTORIAL.md"


async def greeted(process: trio.Process, errors: bytearray) -> str:
    """What the demo says when it is ready."""
    said = bytearray()
    with trio.fail_after(60):
        while b"Ctrl-C" not in said:
            chunk = await process.stdout.receive_some(65536)  # type: ignore[union-attr]
            assert chunk, errors.decode()
            said += chunk
    return said.decode()


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match, text
    return match[1]


async def test_the_tutorial_does_what_it_says(own_folder: Path) -> None:
    demo = ("demo", "--port", "0", "--metrics-port", "0", "--data-dir", str(own_folder))
    async with launched(*demo) as (process, errors):
        greeting = await greeted(process, errors)
        variables = dict(
            word.split("=", 1) for word in shlex.split(found(r"^ *export (DATABASE_URL=.*)$", greeting))
        )
        own = {
            BASE: found(r"^ *base URL +(\S+)$", greeting),
            METRICS: found(r"^ *metrics +(http://[\w.:]+)", greeting),
        }
        told = [block for block in blocks(PAGE) if block.first not in NOT_RUN[PAGE]]
        heard = await read_along(told, own, variables, own_folder)
        process.send_signal(signal.SIGINT)
        with trio.fail_after(30):
            assert await process.wait() == 0
    check(heard)


def check(heard: list[Heard]) -> None:
    """Each claim of the page, in its order."""
    [
        chat,
        tenant,
        key,
        models,
        denied,
        rate,
        limited,
        unlimited,
        budget,
        spending,
        spent,
        reset,
        left,
        audit,
        metrics,
        usage,
        revoked,
        refused,
    ] = heard
    [cut] = left.failed
    assert cut.startswith("28 ")  # curl's own word for a time that is over
    assert [block.failed for block in heard if block is not left and block.failed] == []
    assert chat.output.splitlines()[-1].count('"done":true') == 1
    assert "tenant acme created" in tenant.output
    assert re.search(r"^nnz_\w{8} +acme +laptop +active", key.output, re.MULTILINE)
    assert re.findall(r'"id":"([^"]+)"', models.output) == ["tiny:latest"]
    assert denied.output == '{"error":"model not available for this key"}'
    assert rate.output.split() == ["200"] * 3 + ["429"] * 3
    assert limited.output.startswith("HTTP/1.1 429")
    assert 1 <= int(found(r"^retry-after: (\d+)", limited.output)) <= 61
    assert found(r"^x-ratelimit-remaining-requests: (\d+)", limited.output) == "0"
    assert re.search(r"^rpm +- *$", unlimited.output, re.MULTILINE)
    assert "60 / day" in budget.output
    statuses = spending.output.split()
    assert statuses == sorted(statuses)
    assert {statuses[0], statuses[-1]} == {"200", "429"}
    assert spent.output.startswith("HTTP/1.1 429")
    assert '"code":"insufficient_quota"' in spent.output
    assert found(r"^x-should-retry: (\w+)", spent.output) == "false"
    assert re.search(r"^acme .* 60 +day ", spent.output, re.MULTILINE)
    first, second = (int(made) for made in reversed(re.findall(r"completed +\d+\+(\d+)", spent.output)))
    assert first > second > 0
    assert "count no more" in reset.output
    assert 1 < left.output.count('"done":false') < 150
    assert 0 < int(found(r"client_disconnected +~\d+\+(\d+)", audit.output)) < 150
    assert " 499 " in audit.output
    assert float(found(r"client_disconnected\"} (\S+)", metrics.output)) == 1
    assert re.search(r"^\d{4}-\d\d-\d\d +tiny:latest ", usage.output, re.MULTILINE)
    assert "budget_exhausted" in usage.output
    assert re.search(r"^nnz_\w{8} +acme +laptop +revoked", revoked.output, re.MULTILINE)
    assert refused.output.startswith("HTTP/1.1 401")
