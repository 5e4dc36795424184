"""How the mock Ollama behaves, and how a single request asks for something else by markers in its prompt."""

import re
from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
# A status, or what goes wrong and where; see `MockOptions`.
Failure = Annotated[
    str,
    msgspec.Meta(pattern=r"^([45]\d\d|refuse|stall|stall_stream|reset|close|garbage|error_line|eof)$"),
]

MODELS = ("tiny:latest", "tiny:1b", "acme/other:latest", "embed:latest", "big:cloud")

_MARKER = re.compile(r"\[\[(fail|after|tokens|tps|ttft|load):([\w.]{1,20})\]\]")
_MARKED = {
    "fail": "fail",
    "after": "fail_after",
    "tokens": "tokens",
    "tps": "tokens_per_second",
    "ttft": "time_to_first_token_s",
    "load": "load_delay_s",
}


class MockOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The mock's behaviour; a request in progress keeps that with which it began.

    ``tokens``: how long a completion is by itself; a smaller ``num_predict`` cuts it short.
    ``tokens_per_second``: the pace, 0 for none. ``load_delay_s``: the wait of the first request to a model.
    ``thinking``: the models can think, and do so by default. ``tool_calls``: a request with tools is
    answered with a call of the first. ``lines_per_write``: how many lines leave together when unpaced.

    ``fail`` is how inference requests fail, ``fail_requests`` how many more of them do (None: all), and
    ``fail_after`` how many tokens come before a failure in mid-stream. ``fail_reads`` is the same for
    ``/api/tags`` and the other reading endpoints. The failures: a status (``500``, ``503``...);
    ``refuse`` (reset at once); ``stall`` (nothing at all); ``stall_stream`` (silence in mid-stream);
    ``reset`` and ``close`` (in mid-line, by RST and by a clean FIN); ``garbage`` (a line that is no JSON);
    ``error_line``; ``eof`` (a proper end without a last line).
    """

    models: tuple[str, ...] = MODELS
    tokens: Count = 16
    tokens_per_second: Seconds = 0.0
    time_to_first_token_s: Seconds = 0.0
    load_delay_s: Seconds = 0.0
    lines_per_write: Annotated[int, msgspec.Meta(ge=1)] = 1
    omit_prompt_count: bool = False
    thinking: bool = False
    thinking_tokens: Count = 4
    tool_calls: bool = False
    fail: Failure | None = None
    fail_requests: Count | None = None
    fail_after: Count = 3
    fail_reads: Failure | None = None

    def changed(self, changes: dict[str, object]) -> "MockOptions":
        """These options with changes. Raises ``msgspec.ValidationError`` for an unknown or wrong one."""
        return msgspec.convert({**msgspec.structs.asdict(self), **changes}, MockOptions, strict=False)

    def marked(self, prompt: str) -> "MockOptions":
        """These options with what the prompt asks for, as in ``[[fail:reset]] [[after:5]] [[tokens:200]]``."""
        if "[[" not in prompt:
            return self
        found = {_MARKED[name]: value for name, value in _MARKER.findall(prompt)}
        return self.changed(found) if found else self

    @property
    def waits(self) -> bool:
        """Whether a request may take its time, so that its client may leave meanwhile."""
        return bool(
            self.tokens_per_second
            or self.time_to_first_token_s
            or self.load_delay_s
            or (self.fail or "").startswith("stall")
        )
