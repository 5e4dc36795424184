"""The names of admission's keys in Redis.

All of a tenant's keys carry its id as hash tag, so that a script's keys lie on one node of a cluster. What
names no tenant shares one slot: only the loss of that slot's node concerns everybody.
"""

INSTANCES = "gateway:instances"


# Until when nobody counts as dead, after a time in which nobody at all had beaten.
SILENCE = "{gateway:instances}:silence"


def instance_tenants(instance: str) -> str:
    """The set of tenants for which an instance ever admitted: where to look when it is dead."""
    return f"{{{INSTANCES}}}:{instance}:tenants"


def reaped(instance: str) -> str:
    """There once others have begun to give back what an instance held, for a day."""
    return f"{{{INSTANCES}}}:{instance}:reaped"


def rpm(tenant_id: str, key_id: str | None = None) -> str:
    return f"gateway:{{{tenant_id}}}:rpm" + (f":{key_id}" if key_id else "")


def slots(tenant_id: str, key_id: str | None = None) -> str:
    return f"gateway:{{{tenant_id}}}:slots" + (f":{key_id}" if key_id else "")


def leases(tenant_id: str, instance: str) -> str:
    return f"gateway:{{{tenant_id}}}:leases:{instance}"


def rows(tenant_id: str, instance: str) -> str:
    return f"gateway:{{{tenant_id}}}:rows:{instance}"


def hashes(tenant_id: str) -> str:
    """The set of the names of a tenant's hashes of leases and rows, of all instances."""
    return f"gateway:{{{tenant_id}}}:hashes"


def checked(tenant_id: str) -> str:
    """There while a tenant's budgets have been checked lately, by any instance."""
    return f"gateway:{{{tenant_id}}}:checked"


def aborted(tenant_id: str, request_id: str) -> str:
    return f"gateway:{{{tenant_id}}}:aborted:{request_id}"


def budget(tenant_id: str, key_id: str | None, period: str, start: int) -> str:
    """The budget counter of a tenant (``key_id`` None) or a key in the period that starts at ``start``."""
    scope = f"k:{key_id}" if key_id else "t"
    return f"gateway:{{{tenant_id}}}:budget:{scope}:{period}:{start}"
