"""The bodies of Anthropic's messages."""

from neuronetz.dialects.ollama_fields import MOST_STOPS, MOST_TOOLS
from neuronetz.web.openapi.shapes import (
    BOOLEAN,
    MODEL,
    OBJECT,
    REAL,
    SHORT,
    TEXT,
    TOKENS,
    Schema,
    any_of,
    body,
    constant,
    list_of,
    messages,
    one_of,
    ref,
    reply,
    said,
    whole,
)

_NAME: Schema = {**SHORT, "minLength": 1}
_SAID: Schema = {"type": "string", "minLength": 1}
_TEXT_BLOCK = body({"type": constant("text"), "text": TEXT}, ("type", "text"))
_SPOKEN = body({"type": constant("text"), "text": _SAID}, ("type", "text"))
_IMAGE = body(
    {
        "type": constant("image"),
        "source": said(
            body({"type": constant("base64"), "data": ref("Base64")}, ("type", "data")),
            "Images are not fetched from elsewhere: sources of type url are refused.",
        ),
    },
    ("type", "source"),
)
_USE = body({"type": constant("tool_use"), "id": _SAID, "name": _NAME, "input": OBJECT}, ("type", "id", "name"))
_RESULT = body(
    {
        "type": constant("tool_result"),
        "tool_use_id": TEXT,
        "content": any_of(TEXT, list_of(any_of(_TEXT_BLOCK, _IMAGE))),
    },
    ("type",),
)
_THOUGHT = body({"type": constant("thinking"), "thinking": _SAID}, ("type", "thinking"))

ANTHROPIC: dict[str, Schema] = {
    "MessagesRequest": body(
        {
            "model": MODEL,
            "stream": said(BOOLEAN, "Whether the reply is a stream of events; false unless said otherwise."),
            "max_tokens": whole(1),
            "messages": messages(ref("InputMessage"), minItems=1),
            "system": any_of(TEXT, list_of(_TEXT_BLOCK)),
            "temperature": REAL,
            "top_p": REAL,
            "top_k": whole(),
            "stop_sequences": list_of(TEXT, maxItems=MOST_STOPS),
            "thinking": said(
                body({"type": TEXT}), "Of type enabled or disabled; of any other, output_config decides."
            ),
            "output_config": body({"effort": said(TEXT, "low, medium, high, xhigh or max.")}),
            "tools": list_of(ref("InputTool"), maxItems=MOST_TOOLS),
            "tool_choice": said(
                body({"type": TEXT}), "Of type none it leaves the tools out; else it is not heeded."
            ),
        },
        ("model", "max_tokens", "messages"),
        description="Fields that are not listed are taken and dropped, metadata and cache_control among them.",
    ),
    "InputMessage": body(
        {
            "role": ref("Role"),
            "content": said(
                any_of(_SAID, list_of(any_of(_SPOKEN, _IMAGE, _USE, _RESULT, _THOUGHT), minItems=1)),
                "A text or blocks. Blocks of other types are left out.",
            ),
        },
        ("role", "content"),
    ),
    "InputTool": body(
        {
            "type": said(TEXT, "custom, or none. Anthropic's own tools are left out."),
            "name": _NAME,
            "description": TEXT,
            "input_schema": ref("ToolParameters"),
        },
        ("name",),
    ),
    "Message": reply(
        {
            "id": TEXT,
            "type": constant("message"),
            "role": constant("assistant"),
            "model": TEXT,
            "content": list_of(said(OBJECT, "A block of type thinking, text or tool_use.")),
            "stop_reason": said({"type": ["string", "null"]}, "end_turn, max_tokens or tool_use."),
            "stop_sequence": {"type": ["string", "null"]},
            "usage": reply({"input_tokens": TOKENS, "output_tokens": TOKENS}),
        },
        ("stop_sequence",),
    ),
    "MessageEvent": reply(
        {
            "type": one_of(
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop",
                "error",
            )
        }
    ),
}
