"""What the translation of another dialect's body comes to."""

from typing import Any, NamedTuple

from neuronetz.dialects.reply import Writers


class Translation(NamedTuple):
    """``body`` has Ollama's fields, ``model`` included, and is still to be checked against the policy.

    ``optional_think``: the body's ``think`` is meant for models that can.
    """

    body: dict[str, Any]
    writers: Writers
    optional_think: bool = False
