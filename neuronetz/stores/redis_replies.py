"""What goes over the wire, and what comes back, as redis-py would have it: the same for RESP2 and RESP3."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import hiredis
import redis.asyncio
from redis.asyncio.connection import DefaultParser
from redis.exceptions import ResponseError

from neuronetz.errors import StoreUnavailable

Shapes = Mapping[str, Callable[..., Any]]


def pack(commands: Sequence[Sequence[Any]]) -> bytes:
    """Commands as bytes. Raises ``StoreUnavailable`` for an argument that Redis does not take."""
    try:
        return b"".join([hiredis.pack_command(tuple(command)) for command in commands])
    except TypeError as error:
        raise StoreUnavailable("redis", "DataError", sent=False) from error


def error_reply(text: str) -> Exception:
    """The error that redis-py has for an error reply."""
    try:
        error: Exception = DefaultParser.parse_error(text)  # type: ignore[no-untyped-call]  # redis-py's own gap
    except (ValueError, IndexError):
        # A redirection that names no place.
        return ResponseError(text)
    return error


def shaped(protocol: int, commands: Sequence[Sequence[Any]], replies: Sequence[Any]) -> list[Any]:
    """What the callers of these commands get. Raises ``StoreUnavailable`` for the first error among them."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise refused(reply) from reply
    return [_shaped(protocol, *each) for each in zip(commands, replies, strict=True)]


def refused(error: Exception) -> StoreUnavailable:
    """Redis's refusal, as it is told to callers."""
    return StoreUnavailable("redis", type(error).__name__)


def _shaped(protocol: int, command: Sequence[Any], reply: Any) -> Any:
    shape = _shapes(protocol).get(str(command[0]))
    if shape is not None:
        reply = shape(reply)
    if protocol == 2 and isinstance(reply, list):
        # What redis-py leaves to methods of its own, which know the arguments.
        if "WITHSCORES" in command:
            return [[name, float(score)] for name, score in _pairs(reply)]
        if tuple(command[:2]) == ("CONFIG", "GET"):
            return dict(_pairs(reply))
    return reply


def _pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[0::2], flat[1::2], strict=True))


@cache
def _shapes(protocol: int) -> Shapes:
    # The client is never connected: it knows how replies in either protocol become the same values.
    return cast("Shapes", redis.asyncio.Redis(protocol=protocol).response_callbacks)
