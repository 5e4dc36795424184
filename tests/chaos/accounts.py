"""The tenants of a run, each with limits of another kind, and a model for each key so that the mock can tell keys apart."""

from dataclasses import dataclass
from typing import Any

from neuronetz.access.keys import Hasher, parse
from neuronetz.stores.postgres import Postgres
from tests.gateway_fixtures import insert_key

# What each tenant and each of its keys may do (as for the fixture ``make_key``), and how many keys it has.
TENANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "free": (1, {}),
    "narrow": (2, {"concurrency": 4, "key_concurrency": 3}),
    "rated": (2, {"rpm": 50, "key_rpm": 30}),
    "thrifty": (
        2,
        {"budget_tokens": 5000, "budget_period": "month", "key_budget_tokens": 3000, "key_budget_period": "month"},
    ),
    "fleeting": (6, {"concurrency": 30}),
}
WEIGHTS = {"free": 6, "narrow": 3, "rated": 2, "thrifty": 3, "fleeting": 2}


@dataclass
class Account:
    """A key, the model that it alone asks for, and its limits (None: no such)."""

    tenant: str
    model: str
    key: str
    prefix: str
    tenant_id: str
    key_id: str
    limits: dict[str, Any]
    revoked: bool = False

    def limit(self, scope: str, name: str) -> int | None:
        """A limit of the ``tenant`` or of the ``key``."""
        return self.limits.get(name if scope == "tenant" else f"key_{name}")


async def open_accounts(postgres: Postgres) -> list[Account]:
    hasher = Hasher(1, 8, 1, 1, 8)
    accounts = []
    for tenant, (count, limits) in TENANTS.items():
        for number in range(count):
            text = await insert_key(postgres, hasher, tenant, **limits)
            key = parse(text)
            assert key is not None
            row = await postgres.fetchrow(
                "SELECT id::text, tenant_id::text FROM gateway.api_keys WHERE prefix = $1", key.prefix
            )
            assert row is not None
            model = f"{tenant}-{number}:latest"
            accounts.append(Account(tenant, model, text, key.prefix, row["tenant_id"], row["id"], limits))
    return accounts
