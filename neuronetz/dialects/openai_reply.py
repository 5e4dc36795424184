"""What OpenAI's replies have in common: what was used, and errors."""

from neuronetz.dialects import sse
from neuronetz.dialects.call import Counts
from neuronetz.dialects.openai_errors import openai_error
from neuronetz.dialects.sse import encode
from neuronetz.errors import GatewayError

JSON = "application/json; charset=utf-8"

FINGERPRINT = "fp_ollama"


def usage_of(counts: Counts) -> dict[str, int]:
    """``usage``: what was charged."""
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.prompt + counts.completion,
    }


def error_object(error: GatewayError) -> bytes:
    """An error as a whole reply."""
    return encode({"error": openai_error(error)})


def error_event(error: GatewayError) -> bytes:
    """An error as the end of a stream. Nothing follows it: ``[DONE]`` would tell of success."""
    return sse.data({"error": openai_error(error)})
