"""OpenAI's older completions: their body as one of ``/api/generate`` (Ollama's ``openai/openai.go``)."""

from typing import Any

from neuronetz.dialects.fields import ABSENT, Struct, Wrong, boolean, list_of, text, whole
from neuronetz.dialects.openai_completions_reply import CompletionObject, CompletionStream
from neuronetz.dialects.openai_fields import MODEL_AND_STREAM, SAMPLING, one, predict, sampling
from neuronetz.dialects.reply import Writers
from neuronetz.dialects.translation import Translation

# Ollama's layer sends all four, whether the client did or not.
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}


def translate(given: dict[str, Any]) -> Translation:
    """The body for ``/api/generate``. Raises ``Wrong``.

    A prompt that is empty, or not there, only loads the model, as it does at Ollama.
    """
    body = _BODY(given)
    prompt = body.get("prompt", "")
    options = sampling(body, _DEFAULTS)
    options["top_p"] = options["top_p"] or 1.0
    if "max_tokens" in body:
        options["num_predict"] = body["max_tokens"]
    if "stop" in body:
        options["stop"] = body["stop"]
    native: dict[str, Any] = {
        **{name: body[name] for name in ("model", "stream") if name in body},
        "prompt": prompt,
        "options": options,
    }
    if body.get("suffix"):
        native["suffix"] = body["suffix"]
    if body.get("logprobs"):
        native |= {"logprobs": True, "top_logprobs": body["logprobs"]}
    usage = body.get("stream_options", {}).get("include_usage", False)
    model, echo = body.get("model", ""), prompt if body.get("echo") else ""
    return Translation(
        native,
        Writers(
            whole=lambda: CompletionObject(model, echo),
            stream=lambda _: CompletionStream(model, echo, usage=usage),
        ),
    )


def _prompt(value: Any) -> str:
    """One text, or a list of one. Several would be several choices; token ids mean nothing to another model."""
    if type(value) is list and len(value) == 1:
        value = value[0]
    if type(value) is not str:
        raise Wrong("must be a string or a list of one string")
    return value


_texts = list_of(text)


def _stop(value: Any) -> Any:
    """One text or several, that end a completion."""
    return [value] if type(value) is str else _texts(value) or ABSENT


_BODY = Struct(
    {
        **MODEL_AND_STREAM,
        **SAMPLING,
        "prompt": _prompt,
        "suffix": text,
        "max_tokens": predict,
        "stop": _stop,
        # A count here, unlike in chats; the reply carries none, as at Ollama.
        "logprobs": whole(0, 20),
        "echo": boolean,
        "stream_options": Struct({"include_usage": boolean}),
        "n": one,
        "best_of": one,
    }
)
