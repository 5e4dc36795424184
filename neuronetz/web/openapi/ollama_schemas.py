"""The bodies of Ollama's own dialect (``dialects/ollama_fields.py`` checks them)."""

from neuronetz.dialects.ollama_fields import INT32, MOST_STOPS, MOST_TOOLS
from neuronetz.web.openapi.shapes import (
    ANYTHING,
    BOOLEAN,
    MODEL,
    OBJECT,
    REAL,
    SEED,
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

_NS = said(TOKENS, "Nanoseconds.")
_IMAGES = list_of(ref("Base64"), maxItems=8)
_TYPE = any_of(TEXT, list_of(TEXT))

_KEEP_ALIVE = said(
    any_of(
        {"type": "number", "minimum": -(2**63), "exclusiveMaximum": 0},
        {"type": "number", "minimum": 1e-9, "maximum": 2**63 - 1},
        {"type": "string", "maxLength": 64, "pattern": r"^-?(?:[1-9][0-9]{0,8}(?:\.[0-9]{1,9})?(?:ms|s|m|h))+$"},
    ),
    "Seconds, or a duration such as 1h30m: how long the model stays loaded, raised to 60 s and capped. Negative "
    "is the cap. 0, which would unload the model for everyone, is refused unless ALLOW_UNLOAD.",
)

_SHARED = {"model": MODEL, "keep_alive": _KEEP_ALIVE, "options": ref("OllamaOptions")}
_GENERATION = {
    **_SHARED,
    "stream": said(BOOLEAN, "Whether the reply is a stream; true unless said otherwise."),
    "format": said(any_of(one_of("json", ""), OBJECT), '"json", or a JSON Schema that the reply must meet.'),
    "think": said(
        any_of(BOOLEAN, one_of("low", "medium", "high", "max")),
        "Whether, or how much, the model thinks first. One that cannot is a 400.",
    ),
    "truncate": BOOLEAN,
    "shift": BOOLEAN,
    "logprobs": BOOLEAN,
    "top_logprobs": TOP_LOGPROBS,
}

# What a model says besides is its own: the bytes of a good reply pass unchanged.
_TIMES = ("done_reason", "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration")
_LINE = {
    "model": TEXT,
    "created_at": TEXT,
    "done": said(BOOLEAN, "True on the last line of a stream, and on a whole reply."),
    "done_reason": said(TEXT, "stop, length, load, unload."),
    "total_duration": _NS,
    "load_duration": _NS,
    "prompt_eval_count": TOKENS,
    "prompt_eval_duration": _NS,
    "eval_count": TOKENS,
    "eval_duration": _NS,
    "logprobs": list_of(OBJECT),
}
_RARELY = (*_TIMES, "eval_count", "eval_duration", "logprobs", "thinking", "context")
_DETAILS = said(OBJECT, "Format, family, size and quantization. A parent model is not named.")

OLLAMA: dict[str, Schema] = {
    "OllamaOptions": body(
        {
            "temperature": REAL,
            "top_k": whole(),
            "top_p": REAL,
            "min_p": REAL,
            "typical_p": REAL,
            "seed": SEED,
            "stop": list_of(TEXT, maxItems=MOST_STOPS),
            "repeat_last_n": whole(),
            "repeat_penalty": REAL,
            "presence_penalty": REAL,
            "frequency_penalty": REAL,
            "num_predict": said(
                whole(), "At most so many tokens; no more than the key may, and its budget holds."
            ),
            "num_ctx": said(whole(-(2**63), 2**63 - 1), "At most MAX_NUM_CTX."),
        },
        description="Other options are dropped: they change how a model is loaded, for everyone.",
    ),
    "OllamaMessage": body(
        {
            "role": ref("Role"),
            "content": TEXT,
            "thinking": TEXT,
            "images": _IMAGES,
            "tool_calls": list_of(ref("OllamaToolCall"), maxItems=MOST_TOOLS),
            "tool_name": TEXT,
            "tool_call_id": TEXT,
        },
        ("role",),
    ),
    "OllamaToolCall": body(
        {"id": TEXT, "function": body({"index": whole(0), "name": TEXT, "arguments": OBJECT})},
    ),
    "Tool": body(
        {
            "type": said(TEXT, '"function".'),
            "items": ANYTHING,
            "function": body({"name": TEXT, "description": TEXT, "parameters": ref("ToolParameters")}),
        }
    ),
    "ToolParameters": body(
        {
            "type": TEXT,
            "$defs": ANYTHING,
            "items": ANYTHING,
            "required": list_of(TEXT),
            "properties": {"type": "object", "additionalProperties": ref("ToolProperty")},
        }
    ),
    "ToolProperty": body(
        {
            "anyOf": list_of(ref("ToolProperty")),
            "type": _TYPE,
            "items": ANYTHING,
            "description": TEXT,
            "enum": list_of(ANYTHING),
            "properties": {"type": "object", "additionalProperties": ref("ToolProperty")},
            "required": list_of(TEXT),
        }
    ),
    "OllamaChat": body(
        {
            **_GENERATION,
            "messages": said(messages(ref("OllamaMessage")), "Without any, the model is only loaded."),
            "tools": list_of(ref("Tool"), maxItems=MOST_TOOLS),
        },
        ("model",),
    ),
    "OllamaGenerate": body(
        {
            **_GENERATION,
            "prompt": said(TEXT, "Without one, the model is only loaded."),
            "suffix": TEXT,
            "system": TEXT,
            "template": TEXT,
            "context": said(list_of(whole(0)), "Tokens of an earlier reply."),
            "raw": BOOLEAN,
            "images": _IMAGES,
        },
        ("model",),
    ),
    "OllamaEmbed": body(
        {
            **_SHARED,
            "input": any_of(TEXT, list_of(TEXT)),
            "truncate": BOOLEAN,
            "dimensions": whole(0, INT32),
        },
        ("model",),
    ),
    "OllamaEmbeddings": body({**_SHARED, "prompt": TEXT}, ("model",)),
    "OllamaShow": body(
        {"model": MODEL, "name": said(MODEL, "What model was called in older versions."), "verbose": BOOLEAN},
        anyOf=[
            {"required": ["model"], "properties": {"model": MODEL}},
            {"required": ["name"], "properties": {"name": MODEL}},
        ],
    ),
    "OllamaChatReply": reply({**_LINE, "message": ref("OllamaReplyMessage")}, _RARELY),
    "OllamaReplyMessage": reply(
        {"role": constant("assistant"), "content": TEXT, "thinking": TEXT, "tool_calls": list_of(OBJECT)},
        ("content", "thinking", "tool_calls"),
    ),
    "OllamaGenerateReply": reply(
        {**_LINE, "response": TEXT, "thinking": TEXT, "context": list_of(TOKENS)}, _RARELY
    ),
    "OllamaEmbedReply": reply(
        {
            "model": TEXT,
            "embeddings": list_of(list_of({"type": "number"})),
            "total_duration": _NS,
            "load_duration": _NS,
            "prompt_eval_count": TOKENS,
        },
        _TIMES,
    ),
    "OllamaEmbeddingsReply": reply({"embedding": list_of({"type": "number"})}),
    "OllamaShowReply": said(
        OBJECT,
        "Parameters, details, model_info, capabilities and the like. What the operator wrote into the model "
        "(Modelfile, system prompt, template, licence) is left out unless SHOW_FULL.",
    ),
    "OllamaModels": reply({"models": list_of(ref("OllamaModel"))}),
    "OllamaModel": reply(
        {
            "name": TEXT,
            "model": TEXT,
            "modified_at": TEXT,
            "size": TOKENS,
            "digest": TEXT,
            "details": _DETAILS,
            "capabilities": list_of(TEXT),
            "expires_at": TEXT,
            "size_vram": TOKENS,
            "context_length": TOKENS,
        },
        ("modified_at", "details", "capabilities", "expires_at", "size_vram", "context_length"),
    ),
    "Version": reply({"version": TEXT}),
}
