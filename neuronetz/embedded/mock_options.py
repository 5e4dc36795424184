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

MODELS = ("tiny:latest", "tiny:1b", "acme/other:latest", "thinker:latest", "embed:latest", "big:cloud")

MARKERS = {
    "fail": "fail",
    "after": "fail_after",
    "tokens": "tokens",
    "tps": "tokens_per_second",
    "ttft": "time_to_first_token_s",
    "load": "load_delay_s",
    "think": "thinking_tokens",
    "tool": "tool",
    "tools": "tools",
    "together": "together",
    "reason": "reason",
    "both": "both",
    "lastcontent": "lastcontent",
    "lastlogprobs": "lastlogprobs",
}
_MARKER = re.compile(rf"\[\[({'|'.join(MARKERS)}):([\w.-]{{1,64}})\]\]")


class MockOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The mock's behaviour; a request in progress keeps that with which it began.

    ``tokens``: how long a completion is by itself; a smaller ``num_predict`` cuts it short.
    ``tokens_per_second``: the pace, 0 for none. ``load_delay_s``: the wait of the first request to a model.
    ``lines_per_write``: how many lines leave together when unpaced.

    ``thinking``: all models can think; without it those alone that are named for it, ``thinker``. They do so
    unless the request says no, for ``thinking_tokens`` beside the others. ``tool_calls``: a chat with tools
    is answered with a call of the first, ``tools`` of so many, ``tool`` of the one of that name, each with the
    arguments that its schema requires; not where the last message is a tool's answer, so that agents come to
    an end. ``reason``: the ``done_reason`` in place of the true one, ``absent`` for none. A reply with a
    ``format`` is as long as its JSON.

    Shapes that are rare and allowed: ``together`` (all calls in one line, not in one each); ``both`` (the
    last thinking token in one line with the first of the answer); ``lastcontent`` (the last token in the
    line that ends the stream); ``lastlogprobs`` (a logprob in that line, for requests that ask for any).

    ``fail`` is how inference requests fail, ``fail_requests`` how many more of them do (None: all), and
    ``fail_after`` how many tokens come before a failure in mid-stream. ``fail_reads`` is the same for
    ``/api/tags`` and the other reading endpoints. The failures: a status (``500``, ``503``...);
    ``refuse`` (reset at once); ``stall`` (nothing at all); ``stall_stream`` (silence in mid-stream);
    ``reset`` and ``close`` (in mid-line, by RST and by a clean FIN); ``garbage`` (a line that is no JSON);
    ``error_line``; ``eof`` (a proper end without a last line).

    Markers in a prompt, each ``[[NAME:VALUE]]``, set options for its request alone: ``fail``, ``tokens``,
    ``tool``, ``tools``, ``together``, ``reason``, ``both``, ``lastcontent`` and ``lastlogprobs`` by their own
    names, ``after`` (``fail_after``), ``tps`` (``tokens_per_second``), ``ttft``
    (``time_to_first_token_s``), ``load`` (``load_delay_s``) and ``think`` (``thinking_tokens``).
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
    tool: str = ""
    tools: Count = 0
    together: bool = False
    reason: str = ""
    both: bool = False
    lastcontent: bool = False
    lastlogprobs: bool = False
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
        found = {MARKERS[name]: value for name, value in _MARKER.findall(prompt)}
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
