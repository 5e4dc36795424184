"""A request's body on its way in."""

import trio

# What the reader may be ahead of whoever takes the body.
_AHEAD_BYTES = 64 * 1024


class Body:
    """What a connection's reader has of one request's body, and whether more is to come.

    ``ended``: its last byte is here. ``dropped`` counts what came once nobody wanted it any more.
    """

    def __init__(self) -> None:
        # Not a list of the parts: a client may send it in chunks of two bytes, and each would be an object.
        self._ahead = bytearray()
        self._gone = False
        self._dropping = False
        self._news: trio.Event | None = None
        self._room: trio.Event | None = None
        self.ended = False
        self.dropped = 0

    def feed(self, data: bytes | bytearray) -> trio.Event | None:
        """Take in what was read. The event, where there is one, is to be waited for before more is read."""
        if self._dropping:
            self.dropped += len(data)
            self._tell()
            return None
        self._ahead += data
        self._tell()
        if len(self._ahead) < _AHEAD_BYTES:
            return None
        self._room = trio.Event()
        return self._room

    def end(self) -> None:
        """Note that this was all of it."""
        self.ended = True
        self._tell()

    def close(self) -> None:
        """Note that nothing more will come, whether it ended or not."""
        self._gone = True
        self._tell()
        self._make_room()

    def drop(self) -> None:
        """Want nothing more of it: what is here and what is to come is dropped."""
        self._dropping = True
        self.dropped += len(self._ahead)
        self._ahead.clear()
        self._make_room()

    async def take(self) -> bytes | None:
        """The next piece; empty at the end, None where the client left before. One task at a time.

        Cancelled, it has taken nothing.
        """
        while not self._ahead:
            if self.ended:
                return b""
            if self._gone:
                return None
            await self.news()
        data = bytes(self._ahead)
        self._ahead.clear()
        self._make_room()
        return data

    async def news(self) -> bool:
        """Wait until something came; whether there may be more. One task at a time."""
        if not self._gone:
            self._news = trio.Event()
            await self._news.wait()
        return not (self._gone or self.ended)

    async def wait_closed(self) -> None:
        """Wait for ``close``."""
        while not self._gone:
            await self.news()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
