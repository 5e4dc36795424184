"""What a request body may ask of the upstream, as values."""

from typing import Self

import msgspec

from neuronetz.settings import Settings


class BodyPolicy(msgspec.Struct, frozen=True):
    """The bounds of a body. Durations are in seconds, sizes in bytes.

    ``max_depth``: nesting of JSON containers; ``max_values``: how many values a body may hold, about.
    ``min_keep_alive_s``: a shorter ``keep_alive`` is raised to it, since a nanosecond would unload the
    model as well as 0 does; it does not matter where ``allow_unload`` is True. ``max_images`` and
    ``max_image_bytes`` (decoded) are for a request's images together. ``max_reply_bytes``: of a reply that
    is no stream; ``max_line_bytes``: of a line of one that is.
    """

    max_depth: int = 64
    max_values: int = 200_000
    max_num_ctx: int = 32768
    max_keep_alive_s: float = 1800.0
    min_keep_alive_s: float = 60.0
    allow_unload: bool = False
    max_images: int = 8
    max_image_bytes: int = 16 * 1024 * 1024
    max_reply_bytes: int = 64 * 1024 * 1024
    max_line_bytes: int = 16 * 1024 * 1024

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The policy that the settings ask for."""
        return cls(
            max_depth=settings.max_json_depth,
            max_num_ctx=settings.max_num_ctx,
            max_keep_alive_s=settings.max_keep_alive_s,
            allow_unload=settings.allow_unload,
            max_reply_bytes=settings.max_reply_bytes,
        )
