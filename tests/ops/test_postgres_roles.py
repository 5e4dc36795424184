"""The role that compose's PostgreSQL is set up with may do what a gateway does, and is no superuser."""

from pathlib import Path
from typing import Any

import asyncpg
import trio_asyncio

from neuronetz.doctor.examination import examine
from neuronetz.doctor.finding import Finding
from neuronetz.embedded.postgres import EmbeddedPostgres
from neuronetz.stores.migrations import migrate

SCRIPT = (Path(__file__).parents[2] / "ops/postgres/roles.sh").read_text()


async def _set_up(url: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in SCRIPT.partition("<<'SQL'\n")[2].partition("SQL\n")[0].split(";\n"):
        if statement.strip():
            await connection.execute(statement.replace(":'password'", "'secret'"))
    await connection.close()


async def test_the_doctor_finds_nothing_wrong_with_the_role(
    asyncio_loop: Any, own_folder: Path, settings: Any
) -> None:
    server = EmbeddedPostgres(own_folder / "fresh", fsync=False)
    await server.start()
    try:
        await trio_asyncio.aio_as_trio(_set_up)(server.dsn())
        url = server.dsn("gateway").replace("//postgres@", "//gateway@")
        await migrate(url)
        found: list[Finding] = []
        patient = settings.model_copy(update={"database_url": url})
        await examine(patient, found.append, days=2, timeout_s=10)
    finally:
        await server.stop(immediate=True)
    states = {
        each.check: each.state for each in found if each.check in ("postgres", "schema", "rights", "partitions")
    }
    assert states == dict.fromkeys(("postgres", "schema", "rights", "partitions"), "ok"), found
