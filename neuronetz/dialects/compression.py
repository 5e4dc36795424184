"""Compressed request bodies, without I/O: zstd (RFC 8878), inflated no further than a body may be large."""

import zstandard
from zstandard import ZstdDecompressor, ZstdError

from neuronetz.errors import BodyTooLarge, InvalidRequest

ZSTD = "zstd"

_MAGIC = b"\x28\xb5\x2f\xfd"
# What RFC 9659 bounds the content coding to; a decoder takes that much memory besides what it gives out.
_WINDOW_BYTES = 8 * 1024 * 1024
_BLOCK_BYTES = 128 * 1024
_INVALID = "body is not valid zstd"


def declared_size(data: bytes) -> int | None:
    """How many bytes a zstd frame says that it inflates to; None where it does not say, or is no frame.

    ``inflate`` gives up as soon as a frame holds more than it says, so this bounds what inflating costs.
    """
    try:
        return _declared_size(data)
    except InvalidRequest:
        return None


def inflate(data: bytes, limit: int) -> bytes:
    """What the one zstd frame in ``data`` holds.

    Raises ``BodyTooLarge`` where that is more than ``limit`` bytes, however little it was compressed to, and
    ``InvalidRequest`` for what is no whole frame, has more behind it, or needs a window above 8 MiB. Of what
    is too large, never more than a block is held.
    """
    declared = _declared_size(data)
    if declared is not None and declared > limit:
        raise BodyTooLarge
    try:
        if zstandard.get_frame_parameters(data).window_size > _WINDOW_BYTES:
            raise InvalidRequest("body needs a zstd window of more than 8 MiB")
        decompressor = ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        _measure(decompressor, data, limit, declared)
        # The reader that can be stopped does not tell a frame's end from its being cut off, and the one that
        # tells cannot be stopped: so the body is measured by one and taken from the other.
        frame = decompressor.decompressobj()
        body = frame.decompress(data)
    except ZstdError:
        raise InvalidRequest(_INVALID) from None
    if frame.unused_data.startswith(_MAGIC):
        raise InvalidRequest("body holds more than one zstd frame")
    if not frame.eof or frame.unused_data:
        raise InvalidRequest(_INVALID)
    return body


def _declared_size(data: bytes) -> int | None:
    if not data.startswith(_MAGIC):
        raise InvalidRequest(_INVALID)
    try:
        size = zstandard.get_frame_parameters(data).content_size
    except ZstdError:
        raise InvalidRequest(_INVALID) from None
    return None if size == zstandard.CONTENTSIZE_UNKNOWN else size


def _measure(decompressor: ZstdDecompressor, data: bytes, limit: int, declared: int | None) -> None:
    """Inflate into one block's memory, over and over, until the frame ends or is known to be unacceptable."""
    block = bytearray(_BLOCK_BYTES)
    size = 0
    with decompressor.stream_reader(data) as reader:
        while got := reader.readinto(block):
            size += got
            if size > limit:
                raise BodyTooLarge
            # The reader goes on behind the frame, so that more than one is found here too.
            if declared is not None and size > declared:
                raise InvalidRequest("body holds more than its zstd frame declares")
