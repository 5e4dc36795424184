"""The mock's reading endpoints: banner, version, tags, ps and show."""

import time
from functools import cache

from neuronetz.embedded.mock_http import JSON, TEXT, HttpConnection, HttpRequest, reply_head
from neuronetz.embedded.mock_inference import break_off, fail_early
from neuronetz.embedded.mock_options import MockOptions
from neuronetz.embedded.mock_replies import encode, is_cloud, model_entry, normalised, running_entry, show
from neuronetz.embedded.mock_requests import Body, Refused, read_body

VERSION = "0.99.0-mock"


async def fail_reading(
    http: HttpConnection, request: HttpRequest, options: MockOptions, loaded: set[str], failure: str
) -> None:
    """Answer a reading request as badly as ``failure`` says. Raises ``Broken``, ``ClientGone`` and ``Refused``."""
    if await fail_early(http, failure):
        return
    if failure == "garbage":
        await http.reply(200, b"<html>this is not JSON</html>")
        return
    status, body, kind = reading(request, options, loaded)
    await http.send(reply_head(status, kind, length=len(body)) + body[: len(body) // 2])
    await break_off(http, failure)


def reading(request: HttpRequest, options: MockOptions, loaded: set[str]) -> tuple[int, bytes, str]:
    """Status, body and content type of a reading request's reply. Raises ``Refused``."""
    thinks = options.thinking
    shown: object
    match request.path:
        case "/":
            return 200, b"Ollama is running", TEXT
        case "/api/version":
            shown = {"version": VERSION}
        case "/api/tags":
            shown = {"models": [model_entry(name, thinks=thinks) for name in options.models]}
        case "/api/ps":
            now = time.time_ns()
            shown = {"models": [running_entry(name, now) for name in sorted(loaded)]}
        case _:
            body = read_body(request.body)
            body.fields["model"] = body.get("model") or body.get("name")
            shown = show(checked_model(body, options), thinks=thinks)
    return 200, encode(shown), JSON


def checked_model(body: Body, options: MockOptions) -> str:
    """The full name of the model that a body asks for. Raises ``Refused``."""
    asked = body.get("model") or ""
    if not asked:
        raise Refused(400, "model is required")
    name = normalised(asked)
    # A cloud name is sent to the cloud whatever is installed.
    if name not in _names(options.models) and not is_cloud(name):
        raise Refused(404, f"model '{asked}' not found")
    return name


@cache
def _names(models: tuple[str, ...]) -> frozenset[str]:
    return frozenset(normalised(name) for name in models)
