"""What each endpoint is for, what it takes and what it replies."""

from dataclasses import dataclass
from typing import Any

NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"


@dataclass(frozen=True)
class Operation:
    """An endpoint as a client sees it. ``takes``, ``gives`` and ``item`` name schemas.

    ``stream``: the content type of its streamed reply, whose lines' or events' data are each an ``item``;
    empty where it never streams. ``model``: whether it names a model, which a key may have to do without.
    ``example``: a body that a fresh demo answers.
    """

    name: str
    summary: str
    gives: str
    takes: str = ""
    stream: str = ""
    item: str = ""
    model: bool = False
    description: str = ""
    example: Any = None


_HELLO = [{"role": "user", "content": "Hello!"}]
_WHOLE = {"model": "tiny", "messages": _HELLO, "stream": False}

OPERATIONS: dict[str, Operation] = {
    "/api/version": Operation("version", "The version of the Ollama that serves", "Version"),
    "/api/tags": Operation("listModels", "The models that the key may use", "OllamaModels"),
    "/api/ps": Operation("listRunning", "Those of them that are loaded", "OllamaModels"),
    "/api/show": Operation(
        "showModel", "What a model is", "OllamaShowReply", "OllamaShow", model=True, example={"model": "tiny"}
    ),
    "/api/chat": Operation(
        "chat",
        "The next message of a conversation",
        "OllamaChatReply",
        "OllamaChat",
        NDJSON,
        "OllamaChatReply",
        model=True,
        description='Streams unless `stream` is false. A stream that fails ends with a line `{"error": …}`.',
        example=_WHOLE,
    ),
    "/api/generate": Operation(
        "generate",
        "The completion of a prompt",
        "OllamaGenerateReply",
        "OllamaGenerate",
        NDJSON,
        "OllamaGenerateReply",
        model=True,
        description='Streams unless `stream` is false. A stream that fails ends with a line `{"error": …}`.',
        example={"model": "tiny", "prompt": "Hello!", "stream": False},
    ),
    "/api/embed": Operation(
        "embed",
        "Embeddings of one text or several",
        "OllamaEmbedReply",
        "OllamaEmbed",
        model=True,
        example={"model": "embed", "input": ["Hello!"]},
    ),
    "/api/embeddings": Operation(
        "embeddings",
        "The embedding of a text, in an older form",
        "OllamaEmbeddingsReply",
        "OllamaEmbeddings",
        model=True,
        example={"model": "embed", "prompt": "Hello!"},
    ),
    "/v1/chat/completions": Operation(
        "createChatCompletion",
        "OpenAI's chat completions",
        "ChatCompletion",
        "ChatCompletionRequest",
        EVENTS,
        "ChatCompletionChunk",
        model=True,
        description='A stream ends with `data: [DONE]`, and one that fails with `data: {"error": …}` instead.',
        example={"model": "tiny", "messages": _HELLO},
    ),
    "/v1/completions": Operation(
        "createCompletion",
        "OpenAI's older completions",
        "Completion",
        "CompletionRequest",
        EVENTS,
        "Completion",
        model=True,
        description='A stream ends with `data: [DONE]`, and one that fails with `data: {"error": …}` instead.',
        example={"model": "tiny", "prompt": "Hello!"},
    ),
    "/v1/embeddings": Operation(
        "createEmbeddings",
        "OpenAI's embeddings",
        "Embeddings",
        "EmbeddingRequest",
        model=True,
        example={"model": "embed", "input": "Hello!"},
    ),
    "/v1/models": Operation("listOpenAIModels", "The models that the key may use", "ModelList"),
    "/v1/models/{model}": Operation("getOpenAIModel", "One of these models", "ModelEntry", model=True),
    "/v1/responses": Operation(
        "createResponse",
        "OpenAI's responses, of which none is stored",
        "Response",
        "ResponseRequest",
        EVENTS,
        "ResponseEvent",
        model=True,
        description="A stream ends with `response.completed` or `response.incomplete`, and one that fails with "
        "`response.failed`.",
        example={"model": "tiny", "input": "Hello!"},
    ),
    "/v1/messages": Operation(
        "createMessage",
        "Anthropic's messages",
        "Message",
        "MessagesRequest",
        EVENTS,
        "MessageEvent",
        model=True,
        description="A stream ends with the event `message_stop`, and one that fails with `error`.",
        example={"model": "tiny", "max_tokens": 16, "messages": _HELLO},
    ),
}
