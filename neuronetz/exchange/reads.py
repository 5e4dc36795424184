"""The small reads: what is installed, what runs, what a model is. Each shows only the effective set (G9)."""

import msgspec

from neuronetz.dialects.ollama_reads import filter_ps, filter_tags, redact_show
from neuronetz.dialects.openai_reads import list_models, show_model
from neuronetz.errors import ModelDenied, NotFound, UpstreamFailed
from neuronetz.models.discovery import Discovery
from neuronetz.models.effective import Effective, effective
from neuronetz.policy import Principal
from neuronetz.upstream.ollama import Upstream

_TIMEOUT_S = 10.0
_LIMIT_BYTES = 32 * 1024 * 1024


class Reads:
    """Answers that are no inference, as JSON bodies in Ollama's shape, or in OpenAI's under ``/v1``."""

    def __init__(self, upstream: Upstream, discovery: Discovery, *, show_full: bool) -> None:
        self._upstream = upstream
        self._discovery = discovery
        self._show_full = show_full

    async def answer(self, action: str, principal: Principal) -> bytes:
        """The reply to ``tags``, ``models``, ``ps`` or ``version``. Raises what ``Upstream.fetch`` raises."""
        if action == "tags":
            return filter_tags(self._effective(principal))
        if action == "models":
            return list_models(self._effective(principal).values())
        if action == "ps":
            return await self._ps(principal)
        if action == "version":
            return await self._version()
        raise NotFound

    def model(self, name: str, principal: Principal) -> bytes:
        """The reply to ``GET /v1/models/{model}``. Raises ``ModelDenied`` for one that the key may not use."""
        entry = self._effective(principal).get(name)
        if entry is None:
            raise ModelDenied
        return show_model(entry)

    async def show(self, body: bytes) -> bytes:
        """The reply to ``POST /api/show`` for a body that was checked and written anew."""
        reply = await self._upstream.fetch("POST", "/api/show", body, timeout_s=_TIMEOUT_S, limit=_LIMIT_BYTES)
        return redact_show(reply, full=self._show_full)

    def _effective(self, principal: Principal) -> Effective:
        return effective(self._discovery.discovered(), principal.allow_all_models, principal.models)

    async def _ps(self, principal: Principal) -> bytes:
        reply = await self._upstream.fetch("GET", "/api/ps", timeout_s=_TIMEOUT_S, limit=_LIMIT_BYTES)
        return filter_ps(reply, self._effective(principal))

    async def _version(self) -> bytes:
        reply = await self._upstream.fetch("GET", "/api/version", timeout_s=_TIMEOUT_S, limit=65536)
        try:
            version = msgspec.json.decode(reply, type=dict[str, str])["version"]
        except (msgspec.DecodeError, KeyError):
            raise UpstreamFailed from None
        return msgspec.json.encode({"version": version})
