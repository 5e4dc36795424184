"""A request as the front door hands it on: what was read of it before anything was decided."""

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime

import trio

from neuronetz.errors import GatewayError


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request without its body.

    ``action`` names what is asked for (a row of the endpoint table). ``inference``: it runs a model, so it
    needs a slot. ``refusal`` is set where the table already knows that the request will be refused, which
    the client learns only after authentication and admission. ``authorization``: the header's value (or
    the key of ``x-api-key`` as one), None when absent or given more than once; it is in no ``repr``.
    ``argument``: the part of the path that the client chose, percent-decoded, where its route has one.
    ``arrived`` is in Trio's clock, ``started_at`` in wall time.
    """

    action: str
    endpoint: str
    dialect: str
    authorization: str | None = field(repr=False)
    content_length: int | None
    content_encoding: str | None
    client_ip: str | None
    has_body: bool = False
    inference: bool = False
    refusal: GatewayError | None = None
    argument: str | None = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    arrived: float = field(default_factory=trio.current_time)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
