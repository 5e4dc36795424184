"""How an exchange ended, as a table: what the audit row says and what the breaker learns.

The status and the outcome's name belong to the error (``neuronetz.errors``); this table adds what each
says of the upstream. One tenant must not be able to open the breaker for all: whatever a client can cause
is neutral.
"""

from enum import Enum

from neuronetz import errors
from neuronetz.errors import GatewayError


class Verdict(Enum):
    """What an ending says of the upstream."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


COMPLETED = "completed"

VERDICTS: dict[type[GatewayError], Verdict] = {
    errors.UpstreamFailed: Verdict.FAILURE,  # refused, reset, 5xx, an error line, or no reply at all
    errors.UpstreamTimeout: Verdict.FAILURE,
    errors.UpstreamBusy: Verdict.NEUTRAL,  # it answered: its queue is full, not its mind lost
    errors.UpstreamRejected: Verdict.NEUTRAL,  # the client's body did it
    errors.ModelDenied: Verdict.NEUTRAL,
    errors.BreakerOpen: Verdict.NEUTRAL,
    errors.ClientDisconnected: Verdict.NEUTRAL,
    errors.ClientStalled: Verdict.NEUTRAL,
    errors.DeadlineExceeded: Verdict.NEUTRAL,  # a long answer is not a failing upstream
    errors.KeyRevoked: Verdict.NEUTRAL,
    errors.ShuttingDown: Verdict.NEUTRAL,
}


def verdict(error: GatewayError | None) -> Verdict:
    """The verdict of an ending; None is a reply that came to its end."""
    if error is None:
        return Verdict.SUCCESS
    return VERDICTS.get(type(error), Verdict.NEUTRAL)


# Endings of an exchange that ran and was cut short, as the metric of cancellations names them.
CUT_SHORT = (
    errors.ClientDisconnected,
    errors.ClientStalled,
    errors.DeadlineExceeded,
    errors.KeyRevoked,
    errors.ShuttingDown,
)
