"""What one completion of the mock says, decided before its first token. Pure but for the ids of calls."""

import secrets
from typing import Any

from neuronetz.embedded.mock_options import MockOptions
from neuronetz.embedded.mock_replies import Part, logprob, word
from neuronetz.embedded.mock_requests import Body
from neuronetz.embedded.mock_schema import json_pieces, value_for

# The reason that stands for none at all.
_NO_REASON = "absent"


class Script:
    """The parts of a completion.

    ``tokens``: how many there are, the thinking ones included. ``calls``: what is called behind them.
    ``reason``: the last line's ``done_reason``, empty for none. Tools that have answered are not called again.
    """

    def __init__(self, body: Body, options: MockOptions, *, chat: bool, thinks: bool) -> None:
        self._thinking = options.thinking_tokens if thinks and body.get("think") is not False else 0
        self._pieces = _structured(body.get("format"))
        wanted = self._thinking + (options.tokens if self._pieces is None else len(self._pieces))
        self.tokens = wanted if body.predict is None else min(wanted, body.predict)
        reason = options.reason or ("stop" if self.tokens == wanted else "length")
        self.reason = "" if reason == _NO_REASON else reason
        calls = _called(body.get("tools") or [], options) if chat and not body.ends_with_tool else []
        self.calls = [Part(calls=calls)] if calls and options.together else [Part(calls=[call]) for call in calls]
        self._top: int | None = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
        self._last_logprobs = options.lastlogprobs and self._top is not None
        # Tokens that do not leave by themselves: the one goes with the next token, the other with the last line.
        both = options.both and 0 < self._thinking < self.tokens
        self._joined = self._thinking - 1 if both else None
        self._kept = self.tokens - 1 if options.lastcontent and self.tokens > self._thinking else None

    def part(self, index: int) -> Part | None:
        """Token ``index``, as its line carries it; None where it leaves with a later line."""
        if index in (self._joined, self._kept):
            return None
        if index < self._thinking:
            return Part(thinking=word(index))
        return self._content(index)

    def ending(self) -> Part:
        """What the last line of a stream carries."""
        part = Part() if self._kept is None else self._content(self._kept)
        if self._last_logprobs:
            part.logprobs = [*part.logprobs, logprob("", self.tokens, self._top or 0)]
        return part

    def whole(self) -> Part:
        """All of it in one."""
        parts = [part for index in range(self.tokens) if (part := self.part(index)) is not None]
        parts += [*self.calls, self.ending()]
        return Part(
            text="".join(part.text for part in parts),
            thinking="".join(part.thinking for part in parts),
            calls=[call for part in parts for call in part.calls],
            logprobs=[entry for part in parts for entry in part.logprobs],
        )

    def _content(self, index: int) -> Part:
        place = index - self._thinking
        part = Part(text=word(place) if self._pieces is None else self._pieces[place])
        if self._joined is not None and place == 0:
            part.thinking = word(self._joined)
        if self._top is not None:
            part.logprobs = [logprob(part.text, place, self._top)]
        return part


def _structured(form: object) -> list[str] | None:
    if form is None or form == "":
        return None
    return json_pieces({"answer": "quick"} if form == "json" else value_for(form))


def _called(tools: list[Any], options: MockOptions) -> list[dict[str, Any]]:
    if not (options.tool or options.tools or options.tool_calls):
        return []
    functions = [function for tool in tools if (function := _function(tool)) is not None]
    if options.tool:
        chosen = [function for function in functions if function["name"] == options.tool][:1]
    else:
        chosen = functions[: options.tools or 1]
    return [
        {
            "id": f"call_{secrets.token_hex(4)}",
            "function": {"index": index, "name": function["name"], "arguments": _arguments(function)},
        }
        for index, function in enumerate(chosen)
    ]


def _function(tool: object) -> dict[str, Any] | None:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function if isinstance(function, dict) and isinstance(function.get("name"), str) else None


def _arguments(function: dict[str, Any]) -> dict[str, Any]:
    """Arguments that the tool's schema allows; none where it does not speak of an object."""
    arguments = value_for(function.get("parameters") or {})
    return arguments if isinstance(arguments, dict) else {}
