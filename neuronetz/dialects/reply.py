"""Ollama's replies being read, without I/O, whatever dialect they are then written in.

A reader finds what ends a reply and what it counted; a writer makes of each object what its client reads.
Upstream's own words about an error never get through (G9): what it sent is then not even given to a writer.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from neuronetz.dialects.call import Counts, ReplyState
from neuronetz.dialects.framing import LineSplitter
from neuronetz.dialects.transcript import Transcript
from neuronetz.errors import GatewayError

# More than any reply holds. A count beyond it would not fit the books, and no row with it could be written.
MOST_TOKENS = 2**31 - 1

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding bytes that are no reply can raise. A writer may raise them too."""


class Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class Object(msgspec.Struct):
    """The fields that every reader looks at. The decoder skips the rest, which makes it cheap: a line
    costs less than looking for byte patterns in it would.
    """

    error: Any = None
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    remote_model: Any = None
    remote_host: Any = None


class Line(Object):
    """An object of a chat or a generate: a line of a stream, or a whole reply.

    ``created_at`` is RFC 3339; ``tool_calls`` and ``logprobs`` are as they came, empty where there are none.
    """

    done: bool = False
    message: Message | None = None
    response: str | None = None
    thinking: str | None = None
    created_at: str = ""
    logprobs: msgspec.Raw = msgspec.Raw()


decode_line = msgspec.json.Decoder(Line).decode
_decode_object = msgspec.json.Decoder(Object).decode


class StreamWriter(Protocol):
    """Writes a streamed reply in a dialect. Any method but ``error`` may raise one of ``UNREADABLE``.

    ``heartbeat`` keeps an idle connection alive; empty where the dialect has nothing of the kind.
    """

    content_type: str
    heartbeat: bytes

    def line(self, line: Line, raw: bytes) -> bytes:
        """What the client reads for a line that is not the last."""
        ...

    def last(self, line: Line, raw: bytes, counts: Counts) -> bytes:
        """What the client reads for the last line, the end of its stream included."""
        ...

    def error(self, error: GatewayError) -> bytes:
        """What ends a stream that failed."""
        ...


class WholeWriter(Protocol):
    """Writes a reply that is one JSON object."""

    content_type: str

    def whole(self, raw: bytes, counts: Counts) -> bytes:
        """What the client reads. May raise one of ``UNREADABLE``."""
        ...

    def error(self, error: GatewayError) -> bytes:
        """An error in the dialect's shape."""
        ...


@dataclass(frozen=True)
class Writers:
    """How the replies to a call are written: fresh writers, ``stream``'s for a prompt of so many tokens, about.

    ``stream`` is None where the endpoint has no streams.
    """

    whole: Callable[[], WholeWriter]
    stream: Callable[[int], StreamWriter] | None = None


class StreamedReply:
    """A streamed reply (NDJSON). The line with ``done`` ends it.

    Until then ``counts`` has about one completion token a line. ``prompt_estimate`` stands in where Ollama
    does not report the prompt's tokens (it leaves them out when the prompt was cached). A line of more
    than ``max_line_bytes`` is a failure. What passes is added to ``transcript``, where there is one.
    """

    def __init__(
        self,
        writer: StreamWriter,
        prompt_estimate: int,
        max_line_bytes: int,
        transcript: Transcript | None = None,
    ) -> None:
        self.state: ReplyState = ReplyState.OPEN
        self.too_large = False
        self.gathered = 0
        self.content_type = writer.content_type
        self.heartbeat = writer.heartbeat
        self._writer = writer
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
        tail = self._lines.tail()
        try:
            ends = decode_line(tail).done
        except UNREADABLE:
            ends = False
        passed = self._take([tail]) if ends else b""
        if self._final is None:
            self.state = ReplyState.FAILED
            return b""
        return passed

    def error_tail(self, error: GatewayError) -> bytes:
        """See ``dialects.call.Reply``."""
        return self._writer.error(error)

    def _take(self, lines: Sequence[bytes]) -> bytes:
        passed: list[bytes] = []
        for line in lines:
            # A blank line is no JSON, and breaks clients that expect it on every line.
            if line.isspace() or not line:
                continue
            try:
                passed.append(self._line(line))
            except UNREADABLE:
                self.state = ReplyState.FAILED
            if self.state is not ReplyState.OPEN:
                break
        return b"".join(passed)

    def _line(self, line: bytes) -> bytes:
        parsed = decode_line(line)
        if parsed.error is not None:
            self.state = ReplyState.FAILED
            return b""
        if parsed.done:
            counts = _reported(parsed, self._prompt_estimate)
            passed = self._writer.last(parsed, line, counts)
            self.state = ReplyState.FINISHED
            self._final = counts
        else:
            passed = self._writer.line(parsed, line)
            self._delivered += _tokens(parsed)
        if self._transcript is not None:
            _transcribe(parsed, self._transcript)
        return passed


class WholeReply:
    """A reply that is one JSON object, of at most ``max_bytes``. It comes out whole, at the end."""

    heartbeat = b""

    def __init__(
        self, writer: WholeWriter, prompt_estimate: int, max_bytes: int, transcript: Transcript | None = None
    ) -> None:
        self.state: ReplyState = ReplyState.OPEN
        self.too_large = False
        self.gathered = 0
        self.content_type = writer.content_type
        self._writer = writer
        self._prompt_estimate = prompt_estimate
        self._transcript = transcript
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._final: Counts | None = None

    @property
    def counts(self) -> Counts:
        """See ``dialects.call.Reply``. Nothing is delivered before the end, so nothing is counted."""
        return self._final or Counts(self._prompt_estimate, 0)

    def feed(self, data: bytes) -> bytes:
        """See ``dialects.call.Reply``."""
        if self.state is ReplyState.OPEN:
            self._parts.append(data)
            self.gathered += len(data)
            if self.gathered > self._max_bytes:
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
            parsed = _decode_object(body)
            if parsed.error is not None:
                return self._fail()
            counts = _reported(parsed, self._prompt_estimate)
            passed = self._writer.whole(body, counts)
        except UNREADABLE:
            return self._fail()
        self.state = ReplyState.FINISHED
        self._final = counts
        if self._transcript is not None:
            # Read again, since what is logged must not decide about what is passed on.
            with suppress(*UNREADABLE):
                _transcribe(decode_line(body), self._transcript)
        return passed

    def error_tail(self, error: GatewayError) -> bytes:
        """See ``dialects.call.Reply``."""
        return self._writer.error(error)

    def _fail(self) -> bytes:
        self.state = ReplyState.FAILED
        self._parts.clear()
        return b""


def _tokens(line: Line) -> int:
    """About the tokens of a line that is not the last: Ollama sends one a line, and a tool call whole."""
    message = line.message
    if message is not None and len(message.tool_calls) > 4:
        return max(1, len(message.tool_calls) // 4)
    if line.response or line.thinking or (message is not None and (message.content or message.thinking)):
        return 1
    return 0


def _transcribe(line: Line, transcript: Transcript) -> None:
    message = line.message
    if message is None:
        transcript.thinking(line.thinking)
        transcript.answer(line.response)
        return
    transcript.thinking(message.thinking)
    transcript.answer(message.content)
    if len(message.tool_calls) > 4:
        transcript.tool_calls(bytes(message.tool_calls))


def _reported(last: Object, prompt_estimate: int) -> Counts:
    """The counts of the last object. Ollama leaves out what is 0."""
    if last.done_reason in {"load", "unload"}:
        return Counts(exact=True)
    prompt = min(last.prompt_eval_count or 0, MOST_TOKENS)
    completion = min(max(0, last.eval_count or 0), MOST_TOKENS)
    if prompt <= 0:
        return Counts(prompt_estimate, completion)
    return Counts(prompt, completion, exact=True)
