"""The fields of Ollama's request bodies: which there are, and what each takes (Ollama's ``api/types.go``)."""

import binascii
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from neuronetz.dialects.body_policy import BodyPolicy
from neuronetz.dialects.fields import (
    ABSENT,
    Check,
    Struct,
    Wrong,
    anything,
    anything_in_object,
    boolean,
    list_of,
    map_of,
    real,
    text,
    whole,
)

MODEL_NAME_LENGTH = 200

SHORT_LENGTH = 256

# Objects take far longer to check than text: these bound the time that a hostile body can take.
MOST_MESSAGES = 10_000
MOST_TOOLS = 1_000
# The upstream compares each with every token that it makes, for all whom it serves.
MOST_STOPS = 1_000

INT32 = 2**31 - 1
EXACT_FLOAT = 2**53
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TERM = "([0-9]+(?:\\.[0-9]*)?|\\.[0-9]+)(" + "|".join(_UNITS_S) + ")"
_TERMS = re.compile(_TERM)
_DURATION = re.compile(f"[+-]?(?:{_TERM})+")


def model_name(value: Any) -> Any:
    """The name of a model, as asked for."""
    name = text(value).strip()
    if not name:
        return ABSENT
    if len(name) > MODEL_NAME_LENGTH:
        raise Wrong(f"must be at most {MODEL_NAME_LENGTH} characters")
    if not name.isprintable():
        raise Wrong("must hold no control characters")
    return name


def short_text(value: Any) -> str:
    """A name or an identifier. A translation may repeat it in thousands of messages, so it must not be long."""
    name = text(value)
    if len(name) > SHORT_LENGTH:
        raise Wrong(f"must be at most {SHORT_LENGTH} characters")
    return name


def role(value: Any) -> str:
    """A message's role; Ollama lowers its case on arrival."""
    name = short_text(value).lower()
    if not name.strip():
        raise Wrong("must not be empty")
    return name


def image(value: Any) -> str:
    """Base64 as Ollama decodes it: standard alphabet, padded, line breaks ignored."""
    encoded = text(value).replace("\r", "").replace("\n", "")
    try:
        binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError:
        raise Wrong("must be base64") from None
    return encoded


def output_format(value: Any) -> Any:
    """``"json"`` or a JSON Schema. Anything else is a 500 of Ollama's, not a 400."""
    if value == "":
        return ABSENT
    if value != "json" and type(value) is not dict:
        raise Wrong('must be "json" or a JSON Schema object')
    return value


def think(value: Any) -> bool | str:
    """Whether, or how much, the model thinks first."""
    if type(value) is bool or (type(value) is str and value in {"low", "medium", "high", "max"}):
        return value
    raise Wrong('must be true, false, "low", "medium", "high" or "max"')


def embedding_input(value: Any) -> str | list[str]:
    """One text or several."""
    if type(value) is str:
        return value
    if type(value) is list and all(type(item) is str for item in value):
        return value
    raise Wrong("must be a string or a list of strings")


_token_list = list_of(whole(0, INT32))


def token_ids(value: Any) -> list[int]:
    """Tokens of an earlier reply. There may be very many, so the common case takes no step for each."""
    if type(value) is list and set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= INT32:
        return value
    checked: list[int] = _token_list(value)
    return checked


def property_type(value: Any) -> str | list[str]:
    """A JSON Schema ``type``."""
    return embedding_input(value)


def seconds(value: Any) -> float:
    """A number of seconds, or a duration as Go writes it (``1h30m``). Raises ``Wrong``."""
    if type(value) is int or type(value) is float:
        return float(value)
    if type(value) is not str:
        raise Wrong('must be a number of seconds or a duration such as "5m"')
    if value in {"0", "+0", "-0"}:
        return 0.0
    if len(value) > 64 or not _DURATION.fullmatch(value):
        raise Wrong('must be a duration such as "5m"')
    total = sum(float(number) * _UNITS_S[unit] for number, unit in _TERMS.findall(value))
    return -total if value.startswith("-") else total


def keep_alive(policy: BodyPolicy) -> Check:
    """How long the model stays loaded, clamped to the policy. Negative means forever; 0 unloads."""

    def check(value: Any) -> float:
        asked = seconds(value)
        if asked < 0:
            asked = policy.max_keep_alive_s
        # Ollama counts nanoseconds: less than one is 0 there.
        elif asked < 1e-9 and not policy.allow_unload:
            raise Wrong("0 would unload the model for everyone and is not allowed")
        if not policy.allow_unload:
            asked = max(asked, policy.min_keep_alive_s)
        kept = min(asked, policy.max_keep_alive_s)
        return int(kept) if kept.is_integer() else kept

    return check


def _context_length(limit: int) -> Check:
    integer = whole(-(2**63), 2**63)

    def check(value: Any) -> Any:
        asked = integer(value)
        return min(asked, limit) if asked > 0 else ABSENT

    return check


def options(policy: BodyPolicy) -> Check:
    """The options that a client may set. The keys are exact here, and the rest is dropped in silence.

    Clients send options that change how a model is loaded as a matter of course: to refuse them would
    lock these clients out. A wrong type in what is passed on is a 500 of Ollama's, so it ends here.
    """
    integer = whole(-INT32, INT32)
    known: dict[str, Check] = {
        "temperature": real,
        "top_k": integer,
        "top_p": real,
        "min_p": real,
        "typical_p": real,
        "seed": whole(-EXACT_FLOAT, EXACT_FLOAT),
        "stop": list_of(text, MOST_STOPS),
        "repeat_last_n": integer,
        "repeat_penalty": real,
        "presence_penalty": real,
        "frequency_penalty": real,
        # Beyond 32 bits the runner's number wraps, and may come out as -1: without a bound.
        "num_predict": integer,
        "num_ctx": _context_length(policy.max_num_ctx),
    }
    check_known = Struct(known)

    def check(value: Any) -> dict[str, Any]:
        given = anything_in_object(value)
        return check_known({key: item for key, item in given.items() if key in known})

    return check


def _tool() -> Struct:
    def a_property(value: Any) -> Any:
        return schema(value)

    # A property holds properties again.
    schema = Struct(
        {
            "anyOf": list_of(a_property),
            "type": property_type,
            "items": anything,
            "description": text,
            "enum": list_of(anything),
            "properties": map_of(a_property),
            "required": list_of(text),
        }
    )
    parameters = Struct(
        {
            "type": text,
            "$defs": anything,
            "items": anything,
            "required": list_of(text),
            "properties": map_of(a_property),
        }
    )
    function = Struct({"name": text, "description": text, "parameters": parameters})
    return Struct({"type": text, "items": anything, "function": function})


def _message() -> Struct:
    function = Struct({"index": whole(0, INT32), "name": text, "arguments": anything_in_object})
    return Struct(
        {
            "role": role,
            "content": text,
            "thinking": text,
            "images": list_of(image),
            "tool_calls": list_of(Struct({"id": text, "function": function}), MOST_TOOLS),
            "tool_name": text,
            "tool_call_id": text,
        },
        required=("role",),
    )


@lru_cache(maxsize=16)
def bodies(policy: BodyPolicy) -> Mapping[str, Struct]:
    """The body of each endpoint under a policy, by the last part of its path."""
    shared: dict[str, Check] = {
        "model": model_name,
        "keep_alive": keep_alive(policy),
        "options": options(policy),
    }
    generation: dict[str, Check] = shared | {
        "stream": boolean,
        "format": output_format,
        "think": think,
        "truncate": boolean,
        "shift": boolean,
        "logprobs": boolean,
        "top_logprobs": whole(0, 20),
    }
    return {
        "chat": Struct(
            generation | {"messages": list_of(_message(), MOST_MESSAGES), "tools": list_of(_tool(), MOST_TOOLS)}
        ),
        "generate": Struct(
            generation
            | {
                "prompt": text,
                "suffix": text,
                "system": text,
                "template": text,
                "context": token_ids,
                "raw": boolean,
                "images": list_of(image),
            }
        ),
        "embed": Struct(shared | {"input": embedding_input, "truncate": boolean, "dimensions": whole(0, INT32)}),
        "embeddings": Struct(shared | {"prompt": text}),
        # Ollama's ``system``, ``template`` and ``options`` only change the text of the Modelfile it shows.
        "show": Struct({"model": model_name, "name": model_name, "verbose": boolean}),
    }
