"""The reader of replies, without a socket: however a reply is cut, its body is the same."""

from hypothesis import given
from hypothesis import strategies as st

from neuronetz.upstream.reply import ReplyReader
from tests.upstream.scripted import CHUNKED, END, OK, chunk, sized

BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=8)
CUTS = st.lists(st.integers(min_value=1, max_value=60), min_size=1, max_size=30)


def framed(framing: str, parts: list[bytes]) -> bytes:
    body = b"".join(parts)
    if framing == "length":
        return sized(body)
    if framing == "close":
        return OK + b"\r\n" + body
    chunks = b"".join(chunk(part) for part in parts)
    ends = {"chunks": END, "trailers": b"0\r\nX: y\r\nZ:\r\n\r\n", "extensions": b"0;a=b\r\n\r\n"}
    return b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + chunks + ends[framing]


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    while data:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@given(st.sampled_from(["length", "close", "chunks", "trailers", "extensions"]), BODIES, CUTS)
def test_any_split_of_a_reply_gives_the_same_body(framing: str, parts: list[bytes], sizes: list[int]) -> None:
    reader = ReplyReader()
    # Twice over: the first reply leaves no trace in the second.
    for _ in range(2 if framing != "close" else 1):
        reader.begin()
        read = b""
        pieces = cut(framed(framing, parts), sizes)
        for piece in pieces:
            assert not reader.complete
            reader.feed(piece)
            read += reader.take()
        if framing == "close":
            assert not reader.complete
            reader.feed(b"")
        assert (read, reader.status) == (b"".join(parts), 200)
        assert reader.complete
        assert not reader.broken
        assert reader.reusable == (framing != "close")


@given(st.sampled_from(["length", "chunks", "trailers", "extensions"]), BODIES, CUTS, st.data())
def test_a_torn_reply_is_broken_and_gives_a_part_of_the_body(
    framing: str, parts: list[bytes], sizes: list[int], data: st.DataObject
) -> None:
    whole = framed(framing, parts)
    torn = whole[: data.draw(st.integers(min_value=0, max_value=len(whole) - 1))]
    reader = ReplyReader()
    read = b""
    for piece in (*cut(torn, sizes), b""):
        reader.feed(piece)
        read += reader.take()
    assert reader.broken
    assert not reader.reusable
    assert b"".join(parts).startswith(read)


@given(BODIES, CUTS, st.binary(min_size=1, max_size=30).filter(lambda more: more.strip(b"\r\n") != b""))
def test_what_follows_a_reply_never_becomes_part_of_it(parts: list[bytes], sizes: list[int], more: bytes) -> None:
    reader = ReplyReader()
    read = b""
    for piece in cut(framed("chunks", parts) + more, sizes):
        reader.feed(piece)
        read += reader.take()
    assert read == b"".join(parts)
    assert reader.complete
    assert not reader.reusable


@given(st.binary(max_size=200), CUTS)
def test_nonsense_never_raises(nonsense: bytes, sizes: list[int]) -> None:
    reader = ReplyReader()
    for start in (b"", OK, CHUNKED, CHUNKED + chunk(b"x")):
        reader = ReplyReader()
        for piece in (*cut(start + nonsense, sizes), b""):
            if not reader.broken:
                reader.feed(piece)
                reader.take()
        assert reader.broken or reader.complete
