"""neuronetz model: what is installed, and what a tenant or a key may use of it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuronetz.cli import completion
from neuronetz.cli.database import DatabaseUrl, RedisUrl, find_key, find_tenant, with_postgres, with_redis
from neuronetz.cli.failure import Failure
from neuronetz.cli.output import Json, write_rows

if TYPE_CHECKING:
    from neuronetz.stores.postgres import Postgres
    from neuronetz.stores.redis import Redis

commands = typer.Typer(no_args_is_help=True, help="Models: installed and permitted.")

_PERMITTED = """
SELECT coalesce(l.allow_all_models, tl.allow_all_models, false) AS allow_all,
       coalesce(l.models, tl.models, '{}') AS models
FROM gateway.tenants t
LEFT JOIN gateway.tenant_limits tl ON tl.tenant_id = t.id
LEFT JOIN gateway.key_limits l ON l.key_id = $2
WHERE t.id = $1
"""


@commands.command("list")
def list_(
    tenant: Annotated[
        str | None,
        typer.Option(
            metavar="TENANT",
            help="What this tenant's keys may use by default.",
            autocompletion=completion.tenants,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="What this key may use (prefix or id).", autocompletion=completion.keys),
    ] = None,
    json: Json = False,
    redis_url: RedisUrl = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List the models that the gateways found, or the effective set of a tenant or key.

    The effective set is what is both installed and permitted. Without a running gateway, or with one
    that cannot reach Ollama, nothing is known to be installed, and so nothing is permitted.

    \b
    Example: neuronetz model list --key nnz_AbCd1234
    """
    if tenant is not None and key is not None:
        raise typer.BadParameter("give --tenant or --key, not both")
    names = with_redis(redis_url, _discovered)
    if names is None:
        raise Failure(
            "no models are known: no gateway on this Redis has reached its Ollama lately (see its /readyz)"
        )
    if tenant is not None or key is not None:
        allow_all, permitted = with_postgres(database_url, lambda postgres: _permitted(postgres, tenant, key))
        names = _effective(names, allow_all, permitted)
    write_rows(
        [{"name": name} for name in names],
        {"name": "MODEL"},
        json=json,
        empty="no models: none is both installed and permitted",
    )


async def _discovered(redis: "Redis") -> list[str] | None:
    import msgspec

    from neuronetz.models.discovery import REDIS_KEY

    value = await redis.command("GET", REDIS_KEY)
    try:
        return sorted(msgspec.json.decode(value, type=list[str])) if value is not None else None
    except msgspec.MsgspecError:
        raise Failure(
            f"{REDIS_KEY} in Redis holds no list of models; the next poll of a gateway mends it"
        ) from None


async def _permitted(postgres: "Postgres", tenant: str | None, key: str | None) -> tuple[bool, frozenset[str]]:
    if key is not None:
        found = await find_key(postgres, key)
        tenant_id: Any = found["tenant_id"]
        key_id: Any = found["id"]
    else:
        tenant_id, key_id = (await find_tenant(postgres, tenant or ""))["id"], None
    row = await postgres.fetchrow(_PERMITTED, tenant_id, key_id)
    return (row["allow_all"], frozenset(row["models"])) if row is not None else (False, frozenset())


def _effective(names: list[str], allow_all: bool, permitted: frozenset[str]) -> list[str]:
    from neuronetz.models.effective import effective, normalise

    entries = {normalise(name): {"name": name} for name in names}
    return sorted(entry["name"] for entry in effective(entries, allow_all, permitted).values())
