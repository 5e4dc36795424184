"""The discovered set: what Ollama has installed, polled, and forgotten when it cannot be confirmed (G7)."""

import math
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import structlog
import trio

from neuronetz.errors import GatewayError, ModelDenied, StoreUnavailable
from neuronetz.models.effective import Entry, find, is_addressable, is_remote, normalise
from neuronetz.policy import Principal
from neuronetz.stores.redis import Redis

log = structlog.get_logger("neuronetz.models")

REDIS_KEY = "gateway:models:discovered"

_MAX_BYTES = 16 * 1024 * 1024
_FIRST_RETRY_S = 0.2
_NOTHING: Mapping[str, Entry] = MappingProxyType({})


class _Tags(msgspec.Struct):
    models: list[dict[str, Any]] | None = None


def read_tags(reply: bytes, *, remote_models: bool) -> dict[str, Entry]:
    """The usable models of a reply to ``/api/tags``, by normalised name.

    Models that run elsewhere are left out unless ``remote_models``. Raises ``ValueError`` if it is no
    such reply.
    """
    if len(reply) > _MAX_BYTES:
        raise ValueError("reply too large")
    try:
        listed = msgspec.json.decode(reply, type=_Tags).models or []
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError("no list of models") from error
    models: dict[str, Entry] = {}
    for entry in listed:
        name = entry.get("name") or entry.get("model")
        if not isinstance(name, str) or not is_addressable(name) or (is_remote(entry) and not remote_models):
            continue
        models.setdefault(normalise(name), MappingProxyType({**entry, "name": name}))
    return models


class Discovery:
    """A service that keeps the discovered set.

    ``fetch`` gives the reply to ``/api/tags`` or raises ``GatewayError``, ``OSError`` or
    ``trio.TooSlowError``. The set counts for ``ttl_s`` seconds after it was last confirmed; then it is
    empty, which denies every model. While polls fail they are repeated faster than every ``interval_s``
    seconds. A poll that takes ``timeout_s`` seconds has failed.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        redis: Redis,
        *,
        interval_s: float,
        ttl_s: float,
        remote_models: bool,
        timeout_s: float = 5.0,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._fetch = fetch
        self._redis = redis
        self._interval_s = interval_s
        self._ttl_s = ttl_s
        self._remote_models = remote_models
        self._timeout_s = timeout_s
        self._clock = clock
        self._confirmed_at: float | None = None
        self._refreshed = trio.Event()
        self.models: Mapping[str, Entry] = _NOTHING
        self.failing: str | None = None
        """The class of the error that the last poll ended in; None when it succeeded."""

    @property
    def age_s(self) -> float:
        """Seconds since the set was confirmed; infinite before the first time."""
        return math.inf if self._confirmed_at is None else self._clock() - self._confirmed_at

    @property
    def fresh(self) -> bool:
        """Whether the set may be relied on."""
        return self.age_s <= self._ttl_s

    def discovered(self) -> Mapping[str, Entry]:
        """The installed models by normalised name; empty when that is not known."""
        return self.models if self.fresh else _NOTHING

    def resolve(self, principal: Principal, asked: str) -> str:
        """The name under which the model ``asked`` for is installed.

        Raises ``ModelDenied`` for one that is not installed, not permitted, or not known to be either.
        """
        entry = find(self.discovered(), principal.allow_all_models, principal.models, asked)
        if entry is None:
            raise ModelDenied
        name: str = entry["name"]
        return name

    def thinks(self, name: str) -> bool:
        """Whether the installed model ``name`` is known to be able to think. Older Ollamas do not tell."""
        capabilities = self.discovered().get(normalise(name), {}).get("capabilities")
        return isinstance(capabilities, list) and "thinking" in capabilities

    async def wait_until_known(self, timeout_s: float) -> bool:
        """Wait until the set is fresh, for at most ``timeout_s`` seconds; return whether it is.

        May be cancelled freely.
        """
        with trio.move_on_after(timeout_s):
            while not self.fresh:
                await self._refreshed.wait()
        return self.fresh

    async def wait_refreshed(self) -> None:
        """Wait for the next successful poll. May be cancelled freely."""
        await self._refreshed.wait()

    async def run(self) -> None:
        """Poll until cancelled. Failures are logged when they begin and end, and never raised."""
        retry_s = _FIRST_RETRY_S
        while True:
            if await self.poll():
                retry_s = _FIRST_RETRY_S
                await trio.sleep(self._interval_s)
            else:
                await trio.sleep(min(retry_s, self._interval_s))
                retry_s = min(retry_s * 2, self._interval_s)

    async def poll(self) -> bool:
        """Ask once; whether it succeeded. When cancelled, the set stays as it was or is the new one."""
        try:
            with trio.fail_after(self._timeout_s):
                reply = await self._fetch()
            models = read_tags(reply, remote_models=self._remote_models)
        except (GatewayError, OSError, trio.TooSlowError, ValueError) as error:
            self._failed(type(error).__name__)
            return False
        self._confirmed(models)
        await self._share()
        return True

    def _failed(self, reason: str) -> None:
        if reason != self.failing:
            log.warning("models.discovery_failed", reason=reason, known=len(self.models))
        self.failing = reason

    def _confirmed(self, models: dict[str, Entry]) -> None:
        if self.failing is not None:
            log.info("models.discovery_recovered", models=len(models))
        elif models.keys() != self.models.keys():
            log.info("models.discovered", models=len(models))
        self.models = MappingProxyType(models)
        self._confirmed_at = self._clock()
        self.failing = None
        refreshed, self._refreshed = self._refreshed, trio.Event()
        refreshed.set()

    async def _share(self) -> None:
        """Show the set to whoever looks into Redis. Nothing here depends on it, so a failure is none."""
        names = msgspec.json.encode([entry["name"] for entry in self.models.values()])
        try:
            await self._redis.command("SET", REDIS_KEY, names, "EX", max(1, math.ceil(self._ttl_s)))
        except StoreUnavailable as error:
            log.debug("models.not_shared", reason=error.reason)
