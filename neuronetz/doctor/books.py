"""Checks of the books: ledger against audit log, budget counters against the ledger, revoked keys."""

import trio

from neuronetz.access.cache import TOMBSTONE_TTL_S, KeyCache, Missing, Revoked
from neuronetz.admission import ledger_books
from neuronetz.admission.ledger_check import compare, look_at
from neuronetz.doctor.finding import Finding, Patient, failed, ok, warning

# The ledger moves in the statement that inserts the rows, so one statement sees both at one moment.
_LEDGER = """
WITH booked AS (
    SELECT tenant_id, key_id, day, prompt_tokens + completion_tokens AS tokens, requests
    FROM gateway.budget_usage WHERE day > (now() AT TIME ZONE 'UTC')::date - $1::int
), written AS (
    SELECT tenant_id, key_id, budget_day AS day, sum(prompt_tokens + completion_tokens)::bigint AS tokens,
           count(*) AS requests
    FROM gateway.audit_log
    WHERE budget_day > (now() AT TIME ZONE 'UTC')::date - $1::int
      AND started_at > now() - make_interval(days => $1::int + 2)
    GROUP BY 1, 2, 3
)
SELECT key_id::text, day, coalesce(b.tokens, 0) - coalesce(w.tokens, 0) AS tokens,
       coalesce(b.requests, 0) - coalesce(w.requests, 0) AS requests
FROM booked b FULL JOIN written w USING (tenant_id, key_id, day)
WHERE b.tokens IS DISTINCT FROM w.tokens OR b.requests IS DISTINCT FROM w.requests
ORDER BY day DESC LIMIT 20
"""

_REVOKED = """
SELECT k.prefix, extract(epoch FROM now() - k.revoked_at)::float8 AS age_s,
       EXISTS (SELECT FROM gateway.revocations r WHERE r.prefix = k.prefix) AS told
FROM gateway.api_keys k WHERE k.revoked_at IS NOT NULL ORDER BY k.revoked_at DESC LIMIT 1000
"""

_LOOKS = 4
_PAUSE_S = 0.1

# How long (seconds) a gateway gets to have heard of a revocation.
_HEARD_S = 5.0


async def ledger(patient: Patient) -> list[Finding]:
    """Whether the ledger says of each key and day what its audit rows say."""
    hint = (
        "rows or the ledger were changed by hand, or partitions of these days dropped: budgets follow the ledger"
    )
    return [
        failed(
            f"the ledger of key {row['key_id']} on {row['day']} differs from its audit rows "
            f"by {row['tokens']:+} tokens, {row['requests']:+} requests",
            hint,
        )
        for row in await patient.postgres.fetch(_LEDGER, patient.days)
    ] or [ok(f"the ledger is the sum of the audit rows, for {patient.days} days")]


async def budgets(patient: Patient) -> list[Finding]:
    """Whether Redis's budget counters say what the ledger says, and no budget is overspent."""
    tenants = await ledger_books.tenants_with_budgets(patient.postgres)
    found = []
    for tenant_id in tenants:
        found += await _budgets_of(patient, tenant_id)
    return found or [ok(f"budget counters agree with the ledger, tenants with a budget: {len(tenants)}")]


async def _budgets_of(patient: Patient, tenant_id: str) -> list[Finding]:
    hint = (
        "a running gateway repairs it within LEDGER_CHECK_INTERVAL_S; one that comes back means that "
        "something else writes to Redis, or that it loses data"
    )
    before: dict[str, int] = {}
    for _ in range(_LOOKS):
        look = await look_at(patient.redis, patient.postgres, tenant_id, tidy=False)
        if look is None or not look.counters:
            return []
        drifts = {
            counter.place.name: tokens for counter, tokens in await compare(patient.postgres, tenant_id, look)
        }
        # One look proves nothing: Redis and PostgreSQL were not read at one moment.
        same = [name for name, tokens in drifts.items() if before.get(name) == tokens]
        if same:
            return [failed(f"the counter {name} lacks {drifts[name]:+} tokens", hint) for name in sorted(same)]
        if not drifts:
            return []
        before = drifts
        await trio.sleep(_PAUSE_S)
    return []


async def revocations(patient: Patient) -> list[Finding]:
    """Whether no key that was revoked is still cached as valid."""
    cache = KeyCache(patient.redis, ttl_s=patient.settings.key_cache_ttl_s)
    rows = await patient.postgres.fetch(_REVOKED)
    found = []
    for row in rows:
        prefix = row["prefix"]
        if not row["told"]:
            hint = f"the gateways were not told; have them told: neuronetz key revoke {prefix}"
            found.append(warning(f"key {prefix} is revoked without a row in gateway.revocations", hint))
        match await cache.get(prefix):
            case Revoked():
                continue
            case Missing():
                # Gone after its time, or never there: PostgreSQL is asked for such a key, and refuses it.
                if _HEARD_S < row["age_s"] < TOMBSTONE_TTL_S / 2:
                    hint = "no gateway ran, or none listened: see the service policy_listener in /readyz"
                    found.append(warning(f"no gateway took notice of the revocation of key {prefix}", hint))
            case _:
                hint = "it is served until the entry ends (KEY_CACHE_TTL_S): see policy_listener in /readyz"
                found.append(failed(f"key {prefix} is revoked, and cached as valid", hint))
    return found or [ok(f"revoked keys are not cached, of the last {len(rows)}")]
