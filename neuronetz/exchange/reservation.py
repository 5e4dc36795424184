"""How many completion tokens a request reserves, and what that makes of its ``num_predict``. Pure."""

import msgspec

from neuronetz.policy import Principal


class Reservation(msgspec.Struct, frozen=True):
    """``wanted`` tokens are reserved, fewer (down to ``least``) where a budget has less left.

    ``written``: the granted number is written into the upstream's body; False leaves the client's own
    bound alone, which is right only where nothing bounds the tenant's spending.
    """

    wanted: int
    least: int
    written: bool


def reserve(principal: Principal, *, generates: bool, asked: int | None, default_cap: int) -> Reservation:
    """The reservation for a request that asked for ``asked`` completion tokens (None: no bound).

    A bound that the client set is granted whole or refused; a cap that is merely ours shrinks to what the
    budget still holds, so that a small budget can be spent to its end.
    """
    if not generates:
        return Reservation(0, 0, False)
    budgeted = principal.tenant_limits.budget_tokens is not None or principal.key_limits.budget_tokens is not None
    if principal.max_predict is None and not budgeted:
        return Reservation(asked or 0, 0, False)
    cap = principal.max_predict if principal.max_predict is not None else default_cap
    if asked is None:
        return Reservation(cap, 1, True)
    wanted = min(asked, cap)
    return Reservation(wanted, wanted, True)
