"""Ollama's replies in its own dialect: the bytes of a good line pass unchanged."""

import msgspec

from neuronetz.dialects.call import Counts
from neuronetz.dialects.reply import Line, Object, Writers
from neuronetz.errors import GatewayError

_decode_object = msgspec.json.Decoder(Object).decode


class NativeLines:
    """A stream as it came (NDJSON)."""

    content_type = "application/x-ndjson"
    heartbeat = b""

    def line(self, line: Line, raw: bytes) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        return _without_remote(line, raw)

    def last(self, line: Line, raw: bytes, counts: Counts) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        return _without_remote(line, raw)

    def error(self, error: GatewayError) -> bytes:
        """See ``dialects.reply.StreamWriter``."""
        return _error_object(error) + b"\n"


class NativeObject:
    """A whole reply as it came."""

    content_type = "application/json; charset=utf-8"

    def whole(self, raw: bytes, counts: Counts) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        return _without_remote(_decode_object(raw), raw)

    def error(self, error: GatewayError) -> bytes:
        """See ``dialects.reply.WholeWriter``."""
        return _error_object(error)


def _without_remote(parsed: Object, raw: bytes) -> bytes:
    """The object as it came, unless it names the remote host that a cloud model runs on."""
    if parsed.remote_model is None and parsed.remote_host is None:
        return raw
    fields: dict[str, msgspec.Raw] = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    kept = {name: value for name, value in fields.items() if name not in {"remote_model", "remote_host"}}
    return msgspec.json.encode(kept) + (b"\n" if raw.endswith(b"\n") else b"")


def _error_object(error: GatewayError) -> bytes:
    return msgspec.json.encode({"error": error.message})


NATIVE = Writers(whole=NativeObject, stream=lambda _: NativeLines())
