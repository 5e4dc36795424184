"""Ollama's replies in its own dialect, without I/O: what passes, what ends them, and what they counted.

The bytes of a good line pass unchanged. Upstream's own words about an error never do (G9).
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from neuronetz.dialects.call import Counts, ReplyState
from neuronetz.dialects.framing import LineSplitter
from neuronetz.dialects.transcript import Transcript
from neuronetz.errors import GatewayError

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class _Object(msgspec.Struct):
    """The fields that matter of a reply's object. The decoder skips the rest, which makes it cheap: a
    line costs less than looking for byte patterns in it would.
    """

    error: Any = None
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    remote_model: Any = None
    remote_host: Any = None


class _Line(_Object):
    done: bool = False
    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_whole = msgspec.json.Decoder(_Object).decode


class NativeStream:
    """A streamed reply (NDJSON). Whole lines come out; the line with ``done`` ends it.

    Until then ``counts`` has about one completion token a line. ``prompt_estimate`` stands in where Ollama
    does not report the prompt's tokens (it leaves them out when the prompt was cached). A line of more
    than ``max_line_bytes`` is a failure. What passes is added to ``transcript``, where there is one.
    """

    content_type: str = "application/x-ndjson"

    def __init__(self, prompt_estimate: int, max_line_bytes: int, transcript: Transcript | None = None) -> None:
        self.state: ReplyState = ReplyState.OPEN
        self.too_large = False
        self._prompt_estimate = prompt_estimate
        self._transcript = transcript
        self._lines = LineSplitter(max_line_bytes)
        self._delivered = 0
        self._final: Counts | None = None

    @property
    def counts(self) -> Counts:
        """See ``dialects.call.Reply``."""
        return self._final or Counts(self._prompt_estimate, self._delivered)

    def feed(self, data: bytes) -> bytes:
        """See ``dialects.call.Reply``."""
        if self.state is not ReplyState.OPEN:
            return b""
        passed = self._take(self._lines.feed(data))
        if self._lines.overflow and self.state is ReplyState.OPEN:
            self.state = ReplyState.FAILED
            self.too_large = True
        return passed

    def eof(self) -> bytes:
        """See ``dialects.call.Reply``. A last line needs no newline: Ollama sends none after a mere load."""
        if self.state is not ReplyState.OPEN:
            return b""
        passed = self._take([self._lines.tail()])
        if self._final is None:
            self.state = ReplyState.FAILED
            return b""
        return passed

    def error_tail(self, error: GatewayError) -> bytes:
        """See ``dialects.call.Reply``."""
        return _error_object(error) + b"\n"

    def _take(self, lines: Sequence[bytes]) -> bytes:
        passed: list[bytes] = []
        for line in lines:
            # A blank line is no JSON, and breaks clients that expect it on every line.
            if line.isspace() or not line:
                continue
            passed.append(self._line(line))
            if self.state is not ReplyState.OPEN:
                break
        return b"".join(passed)

    def _line(self, line: bytes) -> bytes:
        try:
            parsed = _decode_line(line)
        except _UNREADABLE:
            self.state = ReplyState.FAILED
            return b""
        if parsed.error is not None:
            self.state = ReplyState.FAILED
            return b""
        if parsed.done:
            self.state = ReplyState.FINISHED
            self._final = _reported(parsed, self._prompt_estimate)
        else:
            self._delivered += _tokens(parsed)
        if self._transcript is not None:
            _transcribe(parsed, self._transcript)
        return _without_remote(parsed, line)


class NativeWhole:
    """A reply that is one JSON object, of at most ``max_bytes``. It comes out whole, at the end."""

    content_type: str = "application/json; charset=utf-8"

    def __init__(self, prompt_estimate: int, max_bytes: int, transcript: Transcript | None = None) -> None:
        self.state: ReplyState = ReplyState.OPEN
        self.too_large = False
        self._prompt_estimate = prompt_estimate
        self._transcript = transcript
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._final: Counts | None = None

    @property
    def counts(self) -> Counts:
        """See ``dialects.call.Reply``. Nothing is delivered before the end, so nothing is counted."""
        return self._final or Counts(self._prompt_estimate, 0)

    def feed(self, data: bytes) -> bytes:
        """See ``dialects.call.Reply``."""
        if self.state is ReplyState.OPEN:
            self._parts.append(data)
            self._size += len(data)
            if self._size > self._max_bytes:
                self.too_large = True
                self._fail()
        return b""

    def eof(self) -> bytes:
        """See ``dialects.call.Reply``."""
        if self.state is not ReplyState.OPEN:
            return b""
        body = b"".join(self._parts)
        self._parts.clear()
        try:
            parsed = _decode_whole(body)
        except _UNREADABLE:
            return self._fail()
        if parsed.error is not None:
            return self._fail()
        self.state = ReplyState.FINISHED
        self._final = _reported(parsed, self._prompt_estimate)
        if self._transcript is not None:
            # Read again, since what is logged must not decide about what is passed on.
            with suppress(*_UNREADABLE):
                _transcribe(_decode_line(body), self._transcript)
        return _without_remote(parsed, body)

    def error_tail(self, error: GatewayError) -> bytes:
        """See ``dialects.call.Reply``."""
        return _error_object(error)

    def _fail(self) -> bytes:
        self.state = ReplyState.FAILED
        self._parts.clear()
        return b""


def _tokens(line: _Line) -> int:
    """About the tokens of a line that is not the last: Ollama sends one a line, and a tool call whole."""
    message = line.message
    if message is not None and len(message.tool_calls) > 4:
        return max(1, len(message.tool_calls) // 4)
    if line.response or line.thinking or (message is not None and (message.content or message.thinking)):
        return 1
    return 0


def _transcribe(line: _Line, transcript: Transcript) -> None:
    message = line.message
    if message is None:
        transcript.thinking(line.thinking)
        transcript.answer(line.response)
        return
    transcript.thinking(message.thinking)
    transcript.answer(message.content)
    if len(message.tool_calls) > 4:
        transcript.tool_calls(bytes(message.tool_calls))


def _reported(last: _Object, prompt_estimate: int) -> Counts:
    """The counts of the last object. Ollama leaves out what is 0."""
    if last.done_reason in {"load", "unload"}:
        return Counts(exact=True)
    prompt, completion = last.prompt_eval_count or 0, max(0, last.eval_count or 0)
    if prompt <= 0:
        return Counts(prompt_estimate, completion)
    return Counts(prompt, completion, exact=True)


def _without_remote(parsed: _Object, raw: bytes) -> bytes:
    """The object as it came, unless it names the remote host that a cloud model runs on."""
    if parsed.remote_model is None and parsed.remote_host is None:
        return raw
    fields: dict[str, msgspec.Raw] = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    kept = {name: value for name, value in fields.items() if name not in {"remote_model", "remote_host"}}
    return msgspec.json.encode(kept) + (b"\n" if raw.endswith(b"\n") else b"")


def _error_object(error: GatewayError) -> bytes:
    return msgspec.json.encode({"error": error.message})
