"""A zstd body comes out as it went in, or is refused: never cut short, never larger than its bound."""

import contextlib
import time
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.dialects.compression import declared_size, inflate
from neuronetz.errors import BodyTooLarge, InvalidRequest

LIMIT = 1024 * 1024
TEXT = b'{"model": "tiny", "prompt": "hello, hello, hello"}'

# A frame without a declared size and a window of 1 MiB; blocks of RFC 8878, 3.1.1.2.
STREAMED = b"\x28\xb5\x2f\xfd\x00\x50"
FULL_RLE = (128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"a"
EMPTY_RAW = b"\x00\x00\x00"
LAST = b"\x01\x00\x00"


def packed(data: bytes, *, level: int = 3, declared: bool = True, checksum: bool = False) -> bytes:
    return zstandard.ZstdCompressor(level, write_content_size=declared, write_checksum=checksum).compress(data)


def streamed(data: bytes, window_log: int = 20) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(data) + stream.flush()


@given(st.binary() | st.binary().map(lambda data: data * 997), st.booleans(), st.booleans())
def test_whatever_was_packed_comes_out(data: bytes, declared: bool, checksum: bool) -> None:
    assert inflate(packed(data, declared=declared, checksum=checksum), len(data)) == data
    assert inflate(streamed(data), len(data)) == data


@given(st.binary(min_size=1, max_size=2000), st.booleans())
def test_the_limit_is_exact(data: bytes, declared: bool) -> None:
    with pytest.raises(BodyTooLarge):
        inflate(packed(data, declared=declared), len(data) - 1)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("data", [b"", TEXT, TEXT * 100, bytes(range(256)) * 2, b"a" * 300_000])
def test_a_frame_cut_anywhere_is_not_valid(data: bytes, declared: bool, checksum: bool) -> None:
    whole = packed(data, declared=declared, checksum=checksum)
    for length in range(len(whole)):
        with pytest.raises(InvalidRequest, match="body is not valid zstd"):
            inflate(whole[:length], LIMIT)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_they_should_or_inflated(data: bytes) -> None:
    for body in (data, STREAMED + data, packed(TEXT)[:6] + data):
        with contextlib.suppress(InvalidRequest, BodyTooLarge):
            assert len(inflate(body, LIMIT)) <= LIMIT


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_flipped_bit_is_found_by_the_checksum_or_earlier(place: int, flip: int) -> None:
    whole = bytearray(packed(TEXT * 10, checksum=True))
    whole[place % len(whole)] ^= flip
    with contextlib.suppress(InvalidRequest, BodyTooLarge):
        assert inflate(bytes(whole), LIMIT) == TEXT * 10


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "body is not valid zstd"),
        (TEXT, "body is not valid zstd"),
        (b"\x1f\x8b\x08\x00", "body is not valid zstd"),
        (packed(TEXT) + b"\n", "body is not valid zstd"),
        (packed(TEXT) + TEXT, "body is not valid zstd"),
        (packed(TEXT) + packed(TEXT), "body holds more than its zstd frame declares"),
        (packed(b"") + packed(TEXT), "body holds more than its zstd frame declares"),
        (packed(TEXT) + packed(b""), "body holds more than one zstd frame"),
        (streamed(TEXT) + streamed(TEXT), "body holds more than one zstd frame"),
        (streamed(b"a" * 2**17) + streamed(TEXT), "body holds more than one zstd frame"),
        # A skippable frame, before and after.
        (b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab" + packed(TEXT), "body is not valid zstd"),
        (packed(TEXT) + b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab", "body is not valid zstd"),
        (streamed(TEXT, window_log=24), "body needs a zstd window of more than 8 MiB"),
        # A reserved block type, and a block that is larger than any may be.
        (STREAMED + b"\x07\x00\x00", "body is not valid zstd"),
        (STREAMED + b"\xf9\xff\xff" + b"a" * 2**21, "body is not valid zstd"),
    ],
)
def test_what_is_no_single_frame_is_refused_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        inflate(data, LIMIT)
    assert refused.value.message == reason


def test_a_window_of_8_mib_is_taken() -> None:
    assert inflate(streamed(TEXT, window_log=23), LIMIT) == TEXT


def test_a_frame_that_needs_a_dictionary_is_refused() -> None:
    trained = zstandard.train_dictionary(4096, [TEXT + bytes([n % 256, n // 256]) * 20 for n in range(2000)])
    assert trained.dict_id() != 0
    body = zstandard.ZstdCompressor(dict_data=trained).compress(TEXT * 3)
    with pytest.raises(InvalidRequest, match="body is not valid zstd"):
        inflate(body, LIMIT)


@pytest.mark.parametrize(
    "bomb",
    [
        packed(bytes(2**26)),
        packed(bytes(2**26), declared=False),
        STREAMED + FULL_RLE * 2000 + LAST,
        STREAMED + FULL_RLE * 2_000_000,
        # It says that it is small.
        b"\x28\xb5\x2f\xfd\x80\x50" + (100).to_bytes(4, "little") + FULL_RLE * 2_000_000,
    ],
    ids=["declared", "not declared", "blocks of one byte", "no end", "a lie"],
)
def test_a_bomb_costs_no_more_than_its_bound(bomb: bytes) -> None:
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises((BodyTooLarge, InvalidRequest)):
            inflate(bomb, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 0.5
    assert peak < 2 * LIMIT


def test_blocks_that_hold_nothing_cost_little() -> None:
    started = time.process_time()
    assert inflate(STREAMED + EMPTY_RAW * 5_000_000 + LAST, LIMIT) == b""
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (packed(TEXT), len(TEXT)),
        (packed(b""), 0),
        (packed(TEXT, declared=False), None),
        (b"", None),
        (TEXT, None),
        (b"\x28\xb5\x2f\xfd", None),
    ],
)
def test_what_a_frame_says_of_its_size(data: bytes, size: int | None) -> None:
    assert declared_size(data) == size
