"""The operator's commands, as their pages show them, beside a running gateway."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from neuronetz import errors
from neuronetz.errors import GatewayError
from tests.conftest import TEMPLATE
from tests.docs.commands import BASE, METRICS, ROOT, Heard, blocks, read_along
from tests.docs.exceptions import NOT_RUN

PAGE = "docs/OPERATIONS.md"
PREFIX = "nnz_AbCd1234"

Reader = Callable[..., Awaitable[list[Heard]]]


@pytest.fixture
def own(gateway: Any, key: str) -> dict[str, str]:
    """What stands in the pages for this test's gateway and key."""
    return {BASE: gateway.base_url, METRICS: gateway.metrics_url.removesuffix("/metrics"), PREFIX: key[:12]}


@pytest.fixture
def reader(gateway: Any, own: dict[str, str], key: str, tmp_path: Path) -> Reader:
    """Runs a page's commands in the gateway's environment."""
    settings = gateway.settings
    variables = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "OLLAMA_URL": settings.ollama_url,
        "LISTEN_PORT": str(urlsplit(gateway.base_url).port),
        "METRICS_PORT": str(urlsplit(gateway.metrics_url).port),
        "KEY": key,
    }

    async def read(page: str, more: dict[str, str] | None = None, **extra: str) -> list[Heard]:
        told = [block for block in blocks(page) if block.first not in NOT_RUN.get(page, {})]
        return await read_along(told, own | (more or {}), variables | extra, tmp_path)

    return read


async def emptied(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("DROP SCHEMA gateway, public CASCADE; CREATE SCHEMA public")
    await connection.close()


@pytest.fixture
def restored_url(postgres_cluster: Any, database_url: str) -> Any:
    """The URL of an empty database beside the test's own."""
    name = urlsplit(database_url).path.removeprefix("/") + "_restored"
    postgres_cluster.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    url = postgres_cluster.server.dsn(name)
    postgres_cluster.run(emptied(url))
    yield url
    postgres_cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_operations(reader: Reader, client: Any, postgres: Any, restored_url: str) -> None:
    await client.post("/api/chat", json={"model": "tiny", "stream": False, "messages": []})
    heard = await reader(PAGE, RESTORED_URL=restored_url)
    well, tenant, rotated, leaked, suspended, models, budget, usage, migrated, _, restored, purged = heard
    assert [block.failed for block in heard if block.failed] == []
    assert '"status":"ready"' in well.output
    assert re.search(r"^globex +active|^name +globex", tenant.output, re.MULTILINE)
    assert re.search(r"^nnz_\w{8} +globex +ci +active", tenant.output, re.MULTILINE)
    assert re.search(r"^key nnz_\w{8} revoked$", rotated.output, re.MULTILINE)
    assert "was revoked already" in leaked.output
    assert '"client_ip":"127.0.0.1"' in leaked.output
    assert suspended.output.split("\n")[:2] == ["tenant globex is suspended", "tenant globex is active"]
    assert models.output.split("MODEL")[2].split()[0] == "tiny:latest"
    assert "of 8,000,000 / month" in budget.output
    assert "tiny:latest" in usage.output
    assert "up to date" in migrated.output
    assert "nothing to apply" in restored.output
    assert "ci-next" in restored.output
    assert "0 rows deleted" in purged.output


async def test_operations_statements(postgres: Any, key: str) -> None:
    revoke, drop = blocks(PAGE, "sql")
    await postgres.execute(revoke.text.replace(PREFIX, key[:12]))
    assert await postgres.fetchval("SELECT revoked_at IS NOT NULL FROM gateway.api_keys")
    await postgres.execute(
        "CREATE TABLE gateway.audit_log_202601 PARTITION OF gateway.audit_log"
        " FOR VALUES FROM ('2026-01-01 00:00Z') TO ('2026-02-01 00:00Z')"
    )
    await postgres.execute(drop.text)


async def test_budgets(reader: Reader) -> None:
    [heard] = await reader("docs/BUDGETS.md")
    assert heard.failed == ()
    assert "of 5,000,000 / month" in heard.output
    assert "of 100,000 / day" in heard.output


async def test_the_doctor(reader: Reader) -> None:
    [heard] = await reader("docs/DOCTOR.md")
    assert heard.failed == ()
    assert re.search(r"^(ok|warning) +postgres: ", heard.output, re.MULTILINE)
    assert '"check":' in heard.output


async def test_the_prompt_log(reader: Reader, client: Any, postgres: Any) -> None:
    await postgres.execute("UPDATE gateway.api_keys SET log_prompts = true")
    reply = await client.post("/api/generate", json={"model": "tiny", "prompt": "rivers", "stream": False})
    heard = await reader("docs/PROMPT_LOG.md", {"REQUEST_ID": reply.headers["x-request-id"]})
    [logged] = heard
    assert logged.failed == ()
    assert "rivers" in logged.output
    assert "1 rows deleted" in logged.output


def test_the_outcomes_are_those_that_a_row_can_have() -> None:
    text = (ROOT / PAGE).read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", text, re.MULTILINE))
    known = {
        error.outcome: str(error.status)
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, GatewayError)
    }
    # These two have no row: nobody is known to whom it would belong, or no row can be taken.
    del known["unauthenticated"], known["audit_denied"]
    assert listed == known | {"completed": "200", "abandoned": listed["abandoned"]}


def test_the_alerts_of_the_outages_exist() -> None:
    named = set(re.findall(r"\b(Neuronetz\w+)", (ROOT / PAGE).read_text()))
    assert named <= set(re.findall(r"alert: (\w+)", (ROOT / "ops/prometheus/alerts.yml").read_text()))


async def test_the_command_lines_page(reader: Reader, client: Any) -> None:
    await client.post("/api/chat", json={"model": "tiny", "stream": False, "messages": []})
    heard = await reader("docs/CLI.md")
    assert [block.failed for block in heard if block.failed] == []
    assert "acme" in heard[0].output
