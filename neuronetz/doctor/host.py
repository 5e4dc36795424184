"""Checks of this host: clocks, open files, the metrics' address, the gateway that runs here."""

import ipaddress
import resource
import time
from collections.abc import Awaitable, Callable

import httpx
import msgspec
import trio

from neuronetz.doctor.finding import Finding, Patient, failed, ok, warning
from neuronetz.stores.redis import ClusterRedis
from neuronetz.web.server import address_of

_SKEW_S = 1.0
# From here on (seconds) limits, expiry and the days of the ledger are not what they seem.
_WRONG_S = 30.0
_TIMEOUT_S = 5.0

# Open files beside a stream's two connections: listeners, logs, the interpreter.
_OTHER_FILES = 64


class _Readiness(msgspec.Struct):
    status: str
    checks: dict[str, str]
    services: dict[str, str]


async def clocks(patient: Patient) -> list[Finding]:
    """Whether this host, Redis and PostgreSQL agree about the time."""

    async def of_postgres() -> float:
        return float(await patient.postgres.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8"))

    async def of_redis() -> float:
        seconds, micros = await patient.redis.command("TIME")
        return int(seconds) + int(micros) / 1e6

    found = []
    for name, ask in (("PostgreSQL", of_postgres), ("Redis", of_redis)):
        skew_s = await _skew(ask)
        if abs(skew_s) > _SKEW_S:
            say = failed if abs(skew_s) > _WRONG_S else warning
            hint = "have all hosts keep the time by NTP"
            found.append(say(f"{name}'s clock is {skew_s:+.1f} s from this host's", hint))
    return found or [ok("the clocks of this host, Redis and PostgreSQL agree")]


async def _skew(ask: Callable[[], Awaitable[float]]) -> float:
    await ask()  # a connection's making would count as half its time
    before = time.time()
    theirs = await ask()
    return theirs - (before + time.time()) / 2


async def files(patient: Patient) -> list[Finding]:
    """Whether as many files may be open as connections are taken."""
    settings = patient.settings
    of_redis = settings.redis_pool if isinstance(patient.redis, ClusterRedis) else 1
    needed = 2 * settings.max_connections + settings.postgres_pool + of_redis + _OTHER_FILES
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        hint = f"raise it (ulimit -n, LimitNOFILE) to {needed}, or lower MAX_CONNECTIONS"
        return [warning(f"{soft} files may be open here, and MAX_CONNECTIONS needs {needed}", hint)]
    return [ok("enough files may be open for MAX_CONNECTIONS")]


async def metrics(patient: Patient) -> list[Finding]:
    """Whether the metrics' listener is off the network."""
    host = patient.settings.metrics_host
    try:
        answers = await trio.socket.getaddrinfo(host or "0.0.0.0", None)
    except OSError:
        return [failed(f"METRICS_HOST {host} has no address", "see METRICS_HOST")]
    addresses = [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in answers]
    if any(address.is_unspecified or address.is_global for address in addresses):
        hint = "it needs no key and names tenants and models: set METRICS_HOST to loopback or a private address"
        return [warning("the metrics' listener is on a public address, or on all of them", hint)]
    return [ok("the metrics' listener is off the public network")]


async def running(patient: Patient) -> list[Finding]:
    """What a gateway says of itself that listens at this host's LISTEN_HOST and LISTEN_PORT."""
    settings = patient.settings
    if settings.listen_port == 0:
        return [ok("LISTEN_PORT is 0, so a gateway here could not be asked how it is")]
    url = address_of(settings.listen_host, settings.listen_port)
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as client:
            reply = await client.get(f"{url}/readyz")
        state = msgspec.json.decode(reply.content, type=_Readiness)
    except (httpx.HTTPError, OSError):
        return [warning(f"no gateway answers at {url}", "start it: neuronetz serve")]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [failed(f"what answers at {url} is no gateway", "see LISTEN_PORT")]
    wrong = [f"{name} {value}" for name, value in state.checks.items() if value != "ok"]
    wrong += [f"{name} {value}" for name, value in state.services.items() if value != "running"]
    if not wrong and state.status == "ready":
        return [ok(f"the gateway at {url} is ready")]
    say = failed if state.status == "unavailable" else warning
    return [say(f"the gateway at {url} is {state.status}: {', '.join(wrong)}", "see docs/ALERTS.md")]
