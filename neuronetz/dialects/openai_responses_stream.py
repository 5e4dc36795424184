"""Ollama's streamed chat as the events of OpenAI's responses.

Items come one after another, as agents expect that follow one item at a time: what of another kind comes
closes the item that is open. The last event holds all of the text once more, so a stream is kept as it passes.

A failure is told twice, as at OpenAI: ``error``, for which OpenAI's own client raises, and ``response.failed``.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from neuronetz.dialects import openai_responses_reply as made
from neuronetz.dialects import sse
from neuronetz.dialects.call import Counts
from neuronetz.dialects.openai_errors import openai_error
from neuronetz.dialects.openai_responses_reply import Item
from neuronetz.dialects.reply import Line
from neuronetz.dialects.sse import unique, unix_seconds
from neuronetz.dialects.tool_calls import ToolCall, read_calls
from neuronetz.errors import GatewayError


class ResponseStream:
    """A response in events, numbered from 0; ``echo``: what it repeats of the request."""

    content_type = sse.CONTENT_TYPE
    heartbeat = sse.HEARTBEAT

    def __init__(self, echo: Mapping[str, Any]) -> None:
        self._echo = echo
        self._head: dict[str, Any] = {}
        self._number = 0
        self._output: list[Item] = []
        self._open: _Open | None = None

    def line(self, line: Line, raw: bytes) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        message = line.message or made.NOTHING
        # First, since it may raise: what is numbered must also be sent.
        calls = read_calls(message.tool_calls)
        events = [self._begin(unix_seconds(line.created_at))]
        if message.thinking:
            events.append(self._add(_Reasoning, message.thinking))
        if message.content:
            events.append(self._add(_Message, message.content))
        for call in calls:
            # Joined once: a line may hold many calls.
            events += self._close(), self._called(call)
        return b"".join(events)

    def last(self, line: Line, raw: bytes, counts: Counts) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        events = self.line(line, raw) + self._close(unfinished=made.cut(line))
        response = made.ended(self._echo, self._head, line, self._output, counts)
        return events + self._event(f"response.{response['status']}", response=response)

    def error(self, error: GatewayError) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        events = self._begin(int(time.time()))
        told = openai_error(error)
        events += self._event("error", **{name: told[name] for name in ("code", "message", "param")}, error=told)
        output = [*self._output, made.incomplete(self._open.item())] if self._open is not None else self._output
        reason = {"code": "server_error", "message": error.message}
        failed = made.response(self._echo, self._head, "failed", output, error=reason)
        return events + self._event("response.failed", response=failed)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = sse.event(kind, {"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return event

    def _begin(self, created_at: int) -> bytes:
        if self._head:
            return b""
        self._head = {"id": unique("resp_"), "created_at": created_at}
        response = made.response(self._echo, self._head, "in_progress", [])
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def _add(self, kind: "type[_Open]", text: str) -> bytes:
        events = b""
        if type(self._open) is not kind:
            events = self._close()
            self._open = kind(len(self._output))
            events += self._item("added", self._open.empty) + self._told(self._open.begun())
        return events + self._told(self._open.grown(text))

    def _close(self, *, unfinished: bool = False) -> bytes:
        """End the item that is open, if one is."""
        if self._open is None:
            return b""
        item = self._open.item()
        events = self._told(self._open.ended())
        events += self._item("done", made.incomplete(item) if unfinished else item)
        self._output.append(item)
        self._open = None
        return events

    def _called(self, call: ToolCall) -> bytes:
        item = made.call(unique("fc_"), call)
        at = {"item_id": item["id"], "output_index": len(self._output)}
        events = self._item("added", {**item, "status": "in_progress", "arguments": ""})
        events += self._event("response.function_call_arguments.delta", **at, delta=call.arguments)
        events += self._event(
            "response.function_call_arguments.done", **at, name=call.name, arguments=call.arguments
        )
        events += self._item("done", item)
        self._output.append(item)
        return events

    def _item(self, what: str, item: Item) -> bytes:
        return self._event(f"response.output_item.{what}", output_index=len(self._output), item=item)

    def _told(self, events: "_Events") -> bytes:
        return b"".join([self._event(f"response.{kind}", **fields) for kind, fields in events])


_Events = Iterable[tuple[str, dict[str, Any]]]


class _Open(Protocol):
    """An item that the model is at; ``place``: how many came before it. ``empty``: the item before its text."""

    empty: Item

    def __init__(self, place: int) -> None: ...

    def begun(self) -> _Events: ...

    def grown(self, text: str) -> _Events: ...

    def ended(self) -> _Events: ...

    def item(self) -> Item: ...


class _Reasoning:
    """A reasoning, whose text is the one part of its summary."""

    def __init__(self, place: int) -> None:
        self._id = unique("rs_")
        self._at = {"item_id": self._id, "output_index": place, "summary_index": 0}
        self._texts: list[str] = []
        self.empty: Item = {"id": self._id, "type": "reasoning", "summary": []}

    def begun(self) -> _Events:
        yield "reasoning_summary_part.added", {**self._at, "part": made.summary("")}

    def grown(self, text: str) -> _Events:
        self._texts.append(text)
        yield "reasoning_summary_text.delta", {**self._at, "delta": text}

    def ended(self) -> _Events:
        text = "".join(self._texts)
        yield "reasoning_summary_text.done", {**self._at, "text": text}
        yield "reasoning_summary_part.done", {**self._at, "part": made.summary(text)}

    def item(self) -> Item:
        return made.reasoning(self._id, "".join(self._texts))


class _Message:
    """A message, with one part of text."""

    def __init__(self, place: int) -> None:
        self._id = unique("msg_")
        self._at = {"item_id": self._id, "output_index": place, "content_index": 0}
        self._texts: list[str] = []
        self.empty: Item = {**made.message(self._id, ""), "status": "in_progress", "content": []}

    def begun(self) -> _Events:
        yield "content_part.added", {**self._at, "part": made.output_text("")}

    def grown(self, text: str) -> _Events:
        self._texts.append(text)
        yield "output_text.delta", {**self._at, "delta": text, "logprobs": []}

    def ended(self) -> _Events:
        text = "".join(self._texts)
        yield "output_text.done", {**self._at, "text": text, "logprobs": []}
        yield "content_part.done", {**self._at, "part": made.output_text(text)}

    def item(self) -> Item:
        return made.message(self._id, "".join(self._texts))
