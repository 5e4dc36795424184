"""What the translation of another dialect's body comes to."""

from typing import Any, NamedTuple

from neuronetz.dialects.reply import Writers


class Translation(NamedTuple):
    """``body`` has Ollama's fields, ``model`` included, and is still to be checked against the policy."""

    body: dict[str, Any]
    writers: Writers
