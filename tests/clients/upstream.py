"""What reached the model."""

from typing import Any


def last_body(mock: Any, path: str = "/api/chat") -> Any:
    """The newest body that was sent to ``path``; the gateway reads other paths whenever it likes."""
    return next(seen for seen in reversed(mock.stats.last) if seen.path == path).json()
