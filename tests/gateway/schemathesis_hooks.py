"""What schemathesis is to leave out, loaded by it through ``SCHEMATHESIS_HOOKS``."""

from typing import Any

import schemathesis


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    """Integers beyond 64 bits are refused wherever they stand; in values of any kind no schema can say so."""
    return _within_64_bits(body)


def _within_64_bits(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_within_64_bits, value.values()))
    if isinstance(value, list):
        return all(map(_within_64_bits, value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63
