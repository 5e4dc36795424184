"""What every dialect gives the exchange: a checked call and a sans-IO reader of its reply."""

from enum import Enum
from typing import Protocol

import msgspec

from neuronetz.dialects.transcript import Excerpt, Transcript
from neuronetz.errors import GatewayError, InvalidRequest


class Counts(msgspec.Struct, frozen=True):
    """Tokens of an exchange. ``exact``: the upstream reported them; else they were counted or estimated here."""

    prompt: int = 0
    completion: int = 0
    exact: bool = False


class ReplyState(Enum):
    OPEN = "open"
    FINISHED = "finished"
    FAILED = "failed"


class Reply(Protocol):
    """A reply being read, without I/O: it eats the upstream's bytes and yields the client's.

    ``feed`` returns what may be delivered now (perhaps nothing) and then ``state`` says where the reply
    stands. FINISHED: the bytes just returned hold the end of the reply, and ``counts`` is final. FAILED:
    the upstream sent an error or something that is no reply; nothing more is to be fed.
    """

    content_type: str
    heartbeat: bytes
    """What may be sent while the model is silent, at any time; empty where the dialect has nothing of the kind."""
    state: ReplyState
    too_large: bool
    """Whether it FAILED for being larger than it may be."""

    gathered: int
    """Bytes that were fed and not returned yet, but for a line's beginning: what ``eof`` has to work through."""

    @property
    def counts(self) -> Counts:
        """The tokens so far: reported once finished, before that counted from what was delivered."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came from the network, cut anywhere. Never raises."""
        ...

    def eof(self) -> bytes:
        """The upstream closed. Without a proper end before it, the state becomes FAILED."""
        ...

    def error_tail(self, error: GatewayError) -> bytes:
        """What ends a reply that has begun and failed, in the caller's dialect."""
        ...


class Call(Protocol):
    """A request's body, parsed and checked, that knows how to be written anew for the upstream.

    A problem with the body is held in ``problem`` until admission has counted the request.
    ``prompt_estimate``: tokens that the prompt will cost at most, roughly. ``asked_predict``: completion
    tokens that the client asked for at most; None where it set no bound. ``generates``: False for
    embeddings, which have no completion. ``provoking``: its body holds what our checks cannot see through
    (images, schemas, tools), and what can therefore make a healthy upstream answer 500.
    """

    problem: InvalidRequest | None
    model: str | None
    stream: bool
    prompt_estimate: int
    asked_predict: int | None

    @property
    def generates(self) -> bool: ...

    @property
    def upstream_path(self) -> str: ...

    @property
    def provoking(self) -> bool: ...

    def upstream_body(self, model: str, predict: int | None, *, thinks: bool = True) -> bytes:
        """The body for the upstream, written anew, for ``model`` (the checked name).

        ``predict`` is the cap of completion tokens to write into it; None leaves the client's own alone.
        ``thinks``: the model is known to think, which some dialects ask for only where it can be had.
        """
        ...

    def reply(self, transcript: Transcript | None = None) -> Reply:
        """A fresh reader of the reply to this call; it adds to ``transcript`` what it lets pass."""
        ...

    def prompt_text(self, limit_bytes: int) -> Excerpt:
        """What the call asks the model, for people to read; images only as their number and size.

        Empty where the call asks nothing (it only loads the model).
        """
        ...
