"""Lines come out the same, however the bytes were cut."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from neuronetz.dialects.framing import LineSplitter

streams = st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\r\n", b"{}\n", b"0123456789"]), max_size=40).map(
    b"".join
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(streams, st.lists(st.integers(0, 1000), max_size=10))
def test_any_cut_gives_the_same_lines(data: bytes, places: list[int]) -> None:
    splitter = LineSplitter(1000)
    lines = [line for part in cut(data, places) for line in splitter.feed(part)]
    assert b"".join(lines) + splitter.tail() == data
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)


@given(streams, st.lists(st.integers(0, 1000), max_size=10), st.integers(1, 12))
def test_any_cut_overflows_at_the_same_line(data: bytes, places: list[int], limit: int) -> None:
    splitter = LineSplitter(limit)
    lines = [line for part in cut(data, places) for line in splitter.feed(part)]
    whole = LineSplitter(limit)
    assert (lines, splitter.overflow, splitter.tail()) == (whole.feed(data), whole.overflow, whole.tail())
    assert all(len(line) <= limit for line in lines)


def test_a_line_of_the_limit_passes_and_a_longer_one_overflows() -> None:
    splitter = LineSplitter(4)
    assert splitter.feed(b"abc\nab") == [b"abc\n"]
    assert not splitter.overflow
    assert splitter.feed(b"cd\nx\n") == []
    assert splitter.overflow
    assert splitter.feed(b"x\n") == []
    assert splitter.tail() == b""


def test_a_tail_that_grows_without_end_is_not_kept() -> None:
    splitter = LineSplitter(100)
    for _ in range(10):
        splitter.feed(b"x" * 50)
    assert splitter.overflow
    assert splitter.tail() == b""
