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
    errors.UpstreamErrored: Verdict.FAILURE,  # unless the call's body is of a kind that can cause it
    errors.UpstreamTimeout: Verdict.FAILURE,
    errors.ReplyTooLarge: Verdict.NEUTRAL,  # the client asked for so much
    errors.UpstreamBusy: Verdict.NEUTRAL,  # it answered: its queue is full, not its mind lost
    errors.UpstreamRejected: Verdict.NEUTRAL,  # the client's body did it
    errors.ModelDenied: Verdict.NEUTRAL,
    errors.BreakerOpen: Verdict.NEUTRAL,
    errors.ClientDisconnected: Verdict.NEUTRAL,
    errors.ClientStalled: Verdict.NEUTRAL,
    errors.DeadlineExceeded: Verdict.NEUTRAL,  # a long answer is not a failing upstream
    errors.KeyRevoked: Verdict.NEUTRAL,
    errors.ShuttingDown: Verdict.NEUTRAL,
    errors.LeaseLost: Verdict.NEUTRAL,
}


def verdict(error: GatewayError | None, *, provoking: bool = False) -> Verdict:
    """The verdict of an ending; None is a reply that came to its end.

    ``provoking``: the body is of a kind that can make a healthy upstream answer 500.
    """
    if error is None:
        return Verdict.SUCCESS
    if provoking and isinstance(error, errors.UpstreamErrored):
        return Verdict.NEUTRAL
    return VERDICTS.get(type(error), Verdict.NEUTRAL)


# Endings that are the client's doing. The upstream may have worked on the prompt for them, so they are charged
# its estimate even before the first byte; or else leaving in time would make prompts free.
CLIENTS_DOING = (errors.ClientDisconnected, errors.ClientStalled, errors.KeyRevoked)
