"""OpenAI's responses: their body as one of ``/api/chat`` (Ollama's ``openai/responses.go``).

Nothing is stored here: ``previous_response_id``, ``conversation``, ``store`` and ``background`` change nothing,
as at Ollama, and the reply says so (``previous_response_id: null``, ``store: false``). A client that wants a
conversation to go on sends all of it.

Tools are functions, alone or in a namespace. What OpenAI would run itself (web search, file search, MCP, code,
images, shells) and custom tools are left out: agents offer these beside their functions as a matter of course,
and nothing here may run in the name of the host's account. The reply's ``tools`` are those that were kept.
"""

from collections.abc import Mapping
from typing import Any

from neuronetz.dialects.fields import (
    ABSENT,
    Struct,
    Wrong,
    anything_in_object,
    boolean,
    list_of,
    map_of,
    text,
)
from neuronetz.dialects.ollama_fields import MOST_TOOLS, short_text
from neuronetz.dialects.openai_fields import MODEL_AND_STREAM, SAMPLING, effort, predict, sampling
from neuronetz.dialects.openai_responses_input import Conversation, given_input, qualified
from neuronetz.dialects.openai_responses_reply import ResponseObject
from neuronetz.dialects.openai_responses_stream import ResponseStream
from neuronetz.dialects.reply import Writers
from neuronetz.dialects.translation import Translation

# Unlike for chats, Ollama's layer leaves an absent ``top_p`` to the model.
_DEFAULTS = {"temperature": 1.0}

_CHOICES = ("none", "auto", "required")
_SUMMARIES = ("auto", "concise", "detailed")


def translate(given: dict[str, Any]) -> Translation:
    """The body for ``/api/chat``. Raises ``Wrong``."""
    body = _BODY(given)
    messages = Conversation().translated(body.get("instructions", ""), body.get("input", ""))
    if not messages:
        raise Wrong("is required", "input")
    options = sampling(body, _DEFAULTS)
    if "max_output_tokens" in body:
        options["num_predict"] = body["max_output_tokens"]
    native: dict[str, Any] = {
        **{name: body[name] for name in ("model", "stream") if name in body},
        "messages": messages,
        "options": options,
        **_thinking(body.get("reasoning", {})),
        **_format(body.get("text", {}).get("format", {})),
    }
    functions = [function for tool in body.get("tools", ()) for function in _functions(tool)]
    if functions and body.get("tool_choice") != "none":
        native["tools"] = functions
    echo = _echo(body)
    return Translation(native, Writers(whole=lambda: ResponseObject(echo), stream=lambda _: ResponseStream(echo)))


def _thinking(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {"think": effort(asked["effort"])} if "effort" in asked else {}


def _format(asked: Mapping[str, Any]) -> dict[str, Any]:
    kind = asked.get("type")
    if kind == "json_object":
        return {"format": "json"}
    return {"format": asked["schema"]} if kind == "json_schema" else {}


def _functions(tool: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The functions of a tool, as Ollama's tools; those of a namespace bear its name before their own."""
    if tool["type"] == "namespace":
        return [_function(member, qualified(tool["name"], member["name"])) for member in tool["tools"]]
    return [_function(tool, tool["name"])]


def _function(tool: Mapping[str, Any], name: str) -> dict[str, Any]:
    taken = {field: tool[field] for field in ("description", "parameters") if field in tool}
    return {"type": "function", "function": {"name": name, **taken}}


def _echo(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a response repeats of its request, and what is the same in every response."""
    return {
        "model": body.get("model", ""),
        "background": False,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata", {}),
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None, **body.get("reasoning", {})},
        "service_tier": "default",
        "store": False,
        "temperature": body.get("temperature", 1.0),
        "text": {"format": body.get("text", {}).get("format", {"type": "text"})},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": [_echoed(tool) for tool in body.get("tools", ())],
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
    }


def _echoed(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool["type"] == "namespace":
        return {"description": "", **tool, "tools": [_echoed(member) for member in tool["tools"]]}
    return {"description": None, "parameters": None, "strict": None, **tool}


def _known_effort(value: Any) -> Any:
    # Read for the echo: what Ollama calls it comes later.
    return ABSENT if effort(value) is ABSENT else value


def _summary(value: Any) -> Any:
    return value if text(value) in _SUMMARIES else ABSENT


def _choice(value: Any) -> Any:
    """``tool_choice``: heeded only where it is ``none``, and repeated where it can be."""
    if value in _CHOICES:
        return value
    if type(value) is dict and value.get("type") == "function" and type(value.get("name")) is str:
        return {"type": "function", "name": value["name"]}
    return ABSENT


def _text_format(value: Any) -> dict[str, Any]:
    asked = _FORMAT(value)
    kind = asked.get("type", "").strip().lower()
    if kind == "json_object":
        return {"type": kind}
    if kind != "json_schema":
        return {"type": "text"}
    if "schema" not in asked:
        raise Wrong("is required", "schema")
    return {"name": "", **asked, "type": kind}


def _tools(value: Any) -> list[dict[str, Any]]:
    return [tool for tool in _tool_list(value) if tool is not ABSENT]


def _tool(value: Any) -> Any:
    if anything_in_object(value).get("type") == "namespace":
        return {**_NAMESPACE(value), "type": "namespace"}
    return _member(value)


def _members(value: Any) -> list[dict[str, Any]]:
    return [tool for tool in _member_list(value) if tool is not ABSENT]


def _member(value: Any) -> Any:
    kind = anything_in_object(value).get("type") or "function"
    return {"type": kind, **_FUNCTION(value)} if kind == "function" else ABSENT


_tool_list = list_of(_tool, MOST_TOOLS)
_member_list = list_of(_member, MOST_TOOLS)

_FORMAT = Struct(
    {"type": text, "name": text, "description": text, "schema": anything_in_object, "strict": boolean}
)
_FUNCTION = Struct(
    {
        "type": text,
        "name": short_text,
        "description": text,
        "parameters": anything_in_object,
        "strict": boolean,
    },
    required=("name",),
)
_NAMESPACE = Struct(
    {"type": text, "name": short_text, "description": text, "tools": _members}, required=("name", "tools")
)

_BODY = Struct(
    {
        **MODEL_AND_STREAM,
        **{name: SAMPLING[name] for name in ("temperature", "top_p")},
        "instructions": text,
        "input": given_input,
        "max_output_tokens": predict,
        "metadata": map_of(text),
        "parallel_tool_calls": boolean,
        "reasoning": Struct({"effort": _known_effort, "summary": _summary}),
        "text": Struct({"format": _text_format}),
        "tools": _tools,
        "tool_choice": _choice,
    }
)
