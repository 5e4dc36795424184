import json
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.audit.record import MAX_COUNT, TEXT_LENGTH, AuditRecord, cleaned, decode, encode

Make = Callable[..., AuditRecord]


def test_a_row_survives_encoding(make_row: Make) -> None:
    row = make_row(first_byte_ms=7, model=None)
    assert decode(encode(row)) == row


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("model", "a\x00b", "a\ufffdb"),
        ("model", "a\ud800b", "a?b"),
        ("model", "\x00" * 1000, "\ufffd" * TEXT_LENGTH),
        ("model", "modèle", "modèle"),
        ("model", None, None),
        ("client_ip", "x" * 1000, "x" * TEXT_LENGTH),
        ("endpoint", "/api/\x00", "/api/\ufffd"),
        ("prompt_tokens", 2**70, MAX_COUNT),
        ("completion_tokens", -1, 0),
        ("duration_ms", 2**40, MAX_COUNT),
        ("first_byte_ms", -5, 0),
        ("started_at", datetime(2026, 3, 5), datetime(2026, 3, 5, tzinfo=UTC)),
    ],
)
def test_what_postgresql_cannot_hold_is_made_storable(
    make_row: Make, field: str, value: object, stored: object
) -> None:
    assert getattr(cleaned(make_row(**{field: value})), field) == stored
    assert getattr(decode(encode(make_row(**{field: value}))), field) == stored


text = st.text(st.characters(exclude_categories=()), max_size=2 * TEXT_LENGTH)


@given(model=text, address=text, tokens=st.integers(), ms=st.integers())
def test_no_client_can_make_a_row_that_cannot_be_encoded(model: str, address: str, tokens: int, ms: int) -> None:
    row = AuditRecord(
        request_id="r",
        started_at=datetime(2026, 3, 5, tzinfo=UTC),
        tenant_id="t",
        key_id="k",
        endpoint="/api/chat",
        dialect="ollama",
        model=model,
        stream=False,
        status=200,
        outcome="completed",
        prompt_tokens=tokens,
        completion_tokens=tokens,
        tokens_exact=True,
        budget_day=datetime(2026, 3, 5, tzinfo=UTC).date(),
        duration_ms=ms,
        first_byte_ms=ms,
        client_ip=address,
        instance="one",
    )
    data = encode(row)
    assert "\x00" not in json.loads(data)["model"]
    assert encode(decode(data)) == data


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"request_id": 1}', b"\xff"])
def test_what_is_no_row_is_refused(data: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        decode(data)
