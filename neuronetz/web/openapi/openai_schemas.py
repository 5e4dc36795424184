"""The bodies of OpenAI's chat completions, completions, embeddings and models."""

from neuronetz.dialects.ollama_fields import INT32, MOST_STOPS, MOST_TOOLS
from neuronetz.web.openapi.shapes import (
    ANYTHING,
    BOOLEAN,
    MODEL,
    OBJECT,
    REAL,
    SEED,
    SHORT,
    TEXT,
    TOKENS,
    TOP_LOGPROBS,
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

_NUMBER: Schema = {"type": "number"}
_LOGPROBS = {"type": ["object", "null"]}
_ONE = said({"type": "integer", "const": 1}, "A request has one choice.")

_SHARED = {
    "model": MODEL,
    "stream": said(BOOLEAN, "Whether the reply is a stream of events; false unless said otherwise."),
    "temperature": said(REAL, "1 unless said otherwise."),
    "top_p": said(REAL, "1 unless said otherwise."),
    "seed": SEED,
    "frequency_penalty": REAL,
    "presence_penalty": REAL,
    "max_tokens": whole(),
    "stop": ref("Stop"),
    "stream_options": body({"include_usage": said(BOOLEAN, "Tell the usage in a last chunk without choices.")}),
    "n": _ONE,
}
_PREDICT = said(whole(), "At most so many tokens; it counts before max_tokens.")
_FORMAT = body({"type": said(TEXT, "json_object, json_schema or text."), "json_schema": body({"schema": OBJECT})})

_CHOICE = {"index": TOKENS, "finish_reason": {"type": ["string", "null"]}, "logprobs": _LOGPROBS}
_HEAD = {
    "id": TEXT,
    "created": said(TOKENS, "Unix time in seconds."),
    "model": TEXT,
    "system_fingerprint": TEXT,
}

OPENAI: dict[str, Schema] = {
    "ChatCompletionRequest": body(
        {
            **_SHARED,
            "messages": messages(ref("ChatMessage"), minItems=1),
            "max_completion_tokens": _PREDICT,
            "response_format": _FORMAT,
            "reasoning": said(body({"effort": ref("Effort")}), "It counts before reasoning_effort."),
            "reasoning_effort": ref("Effort"),
            "tools": list_of(ref("Tool"), maxItems=MOST_TOOLS),
            "tool_choice": said(ANYTHING, '"none" leaves the tools out; anything else is not heeded.'),
            "logprobs": BOOLEAN,
            "top_logprobs": TOP_LOGPROBS,
        },
        ("model", "messages"),
        description="Fields that are not listed are taken and dropped: user, metadata, store, logit_bias, "
        "parallel_tool_calls, service_tier and the like.",
    ),
    "ChatMessage": body(
        {
            "role": ref("Role"),
            "content": any_of(TEXT, list_of(ref("ContentPart"))),
            "reasoning": said(TEXT, "What the model had thought."),
            "name": SHORT,
            "tool_call_id": SHORT,
            "tool_calls": list_of(ref("ToolCall"), maxItems=MOST_TOOLS),
        },
        ("role",),
        anyOf=[
            {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
            {"required": ["tool_calls"], "properties": {"tool_calls": {"type": "array", "minItems": 1}}},
        ],
    ),
    "ContentPart": body(
        {
            "type": TEXT,
            "text": TEXT,
            "image_url": any_of(ref("ImageUri"), body({"url": ref("ImageUri")}, ("url",))),
            "input_audio": body({"data": ref("Base64")}, ("data",)),
        },
        ("type",),
        oneOf=[
            {"required": ["type", "text"], "properties": {"type": constant("text"), "text": TEXT}},
            {
                "required": ["type", "image_url"],
                "properties": {"type": constant("image_url"), "image_url": {"type": ["string", "object"]}},
            },
            {
                "required": ["type", "input_audio"],
                "properties": {"type": constant("input_audio"), "input_audio": OBJECT},
            },
        ],
    ),
    "ToolCall": body(
        {
            "id": TEXT,
            "type": ANYTHING,
            "function": body({"name": SHORT, "arguments": ref("Arguments")}, ("name",)),
        },
        ("function",),
    ),
    "CompletionRequest": body(
        {
            **_SHARED,
            "prompt": said(any_of(TEXT, list_of(TEXT, minItems=1, maxItems=1)), "One text; tokens are refused."),
            "suffix": TEXT,
            "logprobs": said(whole(0, 20), "How many alternatives of each token to tell; 0 is none."),
            "stop": said(
                any_of(TEXT, list_of(TEXT, maxItems=MOST_STOPS)), "A text or several that end the completion."
            ),
            "echo": said(BOOLEAN, "Whether the text begins with the prompt."),
            "best_of": _ONE,
        },
        ("model",),
        description="Fields that are not listed are taken and dropped.",
    ),
    "EmbeddingRequest": body(
        {
            "model": MODEL,
            "input": said(any_of(TEXT, list_of(TEXT, minItems=1)), "A text or several; tokens are refused."),
            "dimensions": whole(0, INT32),
            "encoding_format": said(
                one_of("float", "base64", ""),
                "base64 is that of little-endian 32-bit floats. Case does not count.",
            ),
        },
        ("model", "input"),
    ),
    "ChatCompletion": reply(
        {
            **_HEAD,
            "object": constant("chat.completion"),
            "choices": list_of(reply({**_CHOICE, "message": ref("AssistantMessage")}, ("logprobs",))),
            "usage": ref("Usage"),
        }
    ),
    "AssistantMessage": reply(
        {
            "role": constant("assistant"),
            "content": TEXT,
            "reasoning": said(TEXT, "What the model thought first."),
            "tool_calls": list_of(ref("AssistantToolCall")),
        },
        ("reasoning", "tool_calls"),
    ),
    "AssistantToolCall": reply(
        {
            "id": TEXT,
            "index": TOKENS,
            "type": constant("function"),
            "function": reply({"name": TEXT, "arguments": said(TEXT, "A JSON object as text.")}),
        }
    ),
    "ChatCompletionChunk": reply(
        {
            **_HEAD,
            "object": constant("chat.completion.chunk"),
            "choices": list_of(reply({**_CHOICE, "delta": OBJECT}, ("logprobs",))),
            "usage": ref("Usage"),
        },
        ("usage",),
    ),
    "Completion": reply(
        {
            **_HEAD,
            "object": constant("text_completion"),
            "choices": list_of(reply({**_CHOICE, "text": TEXT}, ("logprobs",))),
            "usage": {"anyOf": [ref("Usage"), {"type": "null"}]},
        },
        ("usage", "system_fingerprint"),
    ),
    "Embeddings": reply(
        {
            "object": constant("list"),
            "data": list_of(
                reply(
                    {
                        "object": constant("embedding"),
                        "index": TOKENS,
                        "embedding": any_of(list_of(_NUMBER), said(TEXT, "Base64, where that was asked for.")),
                    }
                )
            ),
            "model": TEXT,
            "usage": reply({"prompt_tokens": TOKENS, "total_tokens": TOKENS}),
        }
    ),
    "Usage": reply({"prompt_tokens": TOKENS, "completion_tokens": TOKENS, "total_tokens": TOKENS}),
    "ModelList": reply({"object": constant("list"), "data": list_of(ref("ModelEntry"))}),
    "ModelEntry": reply(
        {
            "id": TEXT,
            "object": constant("model"),
            "created": said({"type": "integer"}, "Unix time in seconds of the model's last change."),
            "owned_by": said(TEXT, "The name's namespace; library where it has none."),
        }
    ),
}
