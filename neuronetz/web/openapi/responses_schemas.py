"""The bodies of OpenAI's responses."""

from neuronetz.dialects.ollama_fields import MOST_MESSAGES, MOST_TOOLS
from neuronetz.web.openapi.shapes import (
    ANYTHING,
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
    one_of,
    ref,
    reply,
    said,
    whole,
)

_TEXTS = list_of(body({"type": TEXT, "text": TEXT}))
_OUTPUT = any_of(TEXT, list_of(ref("InputPart")))

RESPONSES: dict[str, Schema] = {
    "ResponseRequest": body(
        {
            "model": MODEL,
            "stream": said(BOOLEAN, "Whether the reply is a stream of events; false unless said otherwise."),
            "instructions": said(TEXT, "What stands before the conversation, as the system's message."),
            "input": any_of(
                {"type": "string", "minLength": 1}, list_of(ref("InputItem"), minItems=1, maxItems=MOST_MESSAGES)
            ),
            "max_output_tokens": whole(),
            "temperature": said(REAL, "1 unless said otherwise."),
            "top_p": REAL,
            "metadata": said({"type": "object", "additionalProperties": TEXT}, "Echoed in the reply."),
            "parallel_tool_calls": said(BOOLEAN, "Echoed in the reply."),
            "reasoning": body({"effort": ref("Effort"), "summary": TEXT}),
            "text": body({"format": ref("ResponseFormat")}),
            "tools": list_of(ref("FunctionTool"), maxItems=MOST_TOOLS),
            "tool_choice": said(ANYTHING, '"none" leaves the tools out; anything else is not heeded.'),
        },
        ("model", "input"),
        description="Fields that are not listed are taken and dropped. Nothing is stored: previous_response_id, "
        "conversation, store, background and include change nothing.",
    ),
    "ResponseFormat": body(
        {
            "type": said(TEXT, "text, json_object or json_schema, which needs a schema."),
            "name": TEXT,
            "description": TEXT,
            "schema": OBJECT,
            "strict": BOOLEAN,
        },
        anyOf=[
            {"properties": {"type": {"enum": ["text", "json_object", None]}}},
            {"properties": {"type": constant("json_schema"), "schema": OBJECT}, "required": ["type", "schema"]},
        ],
    ),
    "InputItem": {
        "anyOf": [
            body(
                {
                    "type": constant("message"),
                    "role": ref("Role"),
                    "content": any_of(TEXT, list_of(ref("InputPart"))),
                },
                ("role", "content"),
            ),
            body(
                {
                    "type": constant("function_call"),
                    "call_id": TEXT,
                    "name": SHORT,
                    "namespace": SHORT,
                    "arguments": ref("Arguments"),
                },
                ("type", "call_id", "name"),
            ),
            body(
                {"type": constant("function_call_output"), "call_id": TEXT, "output": _OUTPUT},
                ("type", "call_id"),
            ),
            body(
                {"type": constant("reasoning"), "encrypted_content": TEXT, "content": _TEXTS, "summary": _TEXTS},
                ("type",),
            ),
        ],
        "description": "A message, a call of a function, its output, or what was thought before.",
    },
    "InputPart": body(
        {
            "type": one_of("input_text", "output_text", "text", "refusal", "input_image"),
            "text": TEXT,
            "refusal": TEXT,
            "image_url": ref("ImageUri"),
        },
        ("type",),
        anyOf=[
            {"properties": {"type": one_of("input_text", "output_text", "text", "refusal")}},
            {
                "properties": {"type": constant("input_image"), "image_url": TEXT},
                "required": ["type", "image_url"],
            },
        ],
        description="Files are refused.",
    ),
    "FunctionTool": body(
        {
            "type": constant("function"),
            "name": SHORT,
            "description": TEXT,
            "parameters": ref("ToolParameters"),
            "strict": BOOLEAN,
        },
        ("type", "name"),
        description="Or a namespace of functions: of type namespace, with a name and tools. Tools of other types "
        "are left out: nothing here runs them.",
    ),
    "Response": reply(
        {
            "id": TEXT,
            "object": constant("response"),
            "created_at": said({"type": "number"}, "Unix time in seconds."),
            "status": one_of("completed", "incomplete", "in_progress", "failed"),
            "model": TEXT,
            "output": list_of(said(OBJECT, "An item of type reasoning, function_call or message.")),
            "usage": {
                "anyOf": [
                    reply({"input_tokens": TOKENS, "output_tokens": TOKENS, "total_tokens": TOKENS}),
                    {"type": "null"},
                ]
            },
        },
    ),
    "ResponseEvent": reply(
        {
            "type": said(TEXT, "response.created, response.output_text.delta, response.completed and the like."),
            "sequence_number": TOKENS,
        }
    ),
}
