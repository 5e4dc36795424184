"""A mock Ollama over real sockets: its API's exact shapes and traps, deterministic text, failures on demand.

``GET /_mock/stats`` tells what it has seen, ``POST /_mock/configure`` changes its options.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any

import msgspec
import trio

from neuronetz.embedded import mock_replies
from neuronetz.embedded.mock_http import (
    TEXT,
    ClientGone,
    HttpConnection,
    HttpRequest,
    known_host,
    while_connected,
)
from neuronetz.embedded.mock_inference import Broken, Completion, embedding_reply, fail_early
from neuronetz.embedded.mock_options import MockOptions
from neuronetz.embedded.mock_reads import checked_model, fail_reading, reading
from neuronetz.embedded.mock_requests import Body, Refused, check_options, read_body
from neuronetz.embedded.mock_stats import MockStats
from neuronetz.embedded.ports import held_port

__all__ = ["MockOllama", "MockOptions", "MockStats", "run_mock_ollama"]


class MockOllama:
    """The mock. ``serve`` runs it; ``port`` is known once it has started."""

    def __init__(self, options: MockOptions | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.options = options or MockOptions()
        self.stats = MockStats()
        self.host = host
        self.port = port
        self._loaded: set[str] = set()
        self._nursery: trio.Nursery | None = None
        self._listening: trio.CancelScope | None = None
        self._silent = trio.Event()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def configure(self, **changes: object) -> None:
        """Change options for the requests to come. Raises ``msgspec.ValidationError``."""
        self.options = self.options.changed(changes)

    async def serve(self, task_status: "trio.TaskStatus[MockOllama]" = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; cancellation cuts all connections."""
        # Between ``stop`` and ``start`` nobody else is given the port.
        held = held_port() if (self.host, self.port) == ("127.0.0.1", 0) else nullcontext(self.port)
        with held as self.port:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self.start()
                task_status.started(self)
                await trio.sleep_forever()

    async def start(self) -> None:
        """Listen, after ``stop`` on the same port again."""
        if self._nursery is None or self._listening is not None:
            raise RuntimeError("the mock is not being served, or listens already")
        self._listening = await self._nursery.start(self._listen)

    async def stop(self) -> None:
        """Stop listening and cut all connections, as the end of the process would; ``start`` undoes it."""
        if self._listening is not None:
            self._listening.cancel()
            await self._silent.wait()

    async def _listen(self, task_status: "trio.TaskStatus[trio.CancelScope]") -> None:
        self._silent = trio.Event()
        try:
            with trio.CancelScope() as scope:
                listeners = await trio.open_tcp_listeners(self.port, host=self.host)
                self.port = listeners[0].socket.getsockname()[1]
                async with trio.open_nursery() as connections:
                    await connections.start(
                        partial(trio.serve_listeners, self._connection, listeners, handler_nursery=connections)
                    )
                    task_status.started(scope)
        finally:
            self._listening = None
            self._loaded.clear()
            self._silent.set()

    async def _connection(self, stream: trio.SocketStream) -> None:
        self.stats.connections += 1
        http = HttpConnection(stream)
        if self.options.fail == "refuse" and self.options.fail_requests is None:
            await http.reset()
            return
        try:
            while request := await http.next_request():
                await self._respond(http, request)
                if not request.keep_alive:
                    return
        except (ClientGone, Broken):
            return

    async def _respond(self, http: HttpConnection, request: HttpRequest) -> None:
        if not request.path.startswith("/_mock/"):
            self.stats.note(request)
        methods, answer = _ROUTES.get(request.path, ((), None))
        bodiless = request.method == "HEAD"
        if not known_host(request.headers.get("host", "")):
            await http.reply(403, b"", TEXT)
        elif answer is None:
            await http.reply(404, b"404 page not found", TEXT, bodiless=bodiless)
        elif request.method not in methods:
            await http.reply(405, b"405 method not allowed", TEXT, bodiless=bodiless)
        else:
            try:
                await answer(self, http, request)
            except Refused as refusal:
                await http.reply(refusal.status, mock_replies.error(refusal.text))

    async def _infer(self, http: HttpConnection, request: HttpRequest) -> None:
        with self._counted() as ending:
            body = read_body(request.body)
            options = self._options_for(body)
            work = partial(self._produce, http, request.path, body, options)
            fine = await (while_connected(http, work) if options.waits else work())
            ending.append("finished" if fine else "failed")

    @contextmanager
    def _counted(self) -> Iterator[list[str]]:
        ending: list[str] = []
        self.stats.open += 1
        try:
            yield ending
        except (Refused, Broken):
            ending.append("failed")
            raise
        finally:
            outcome = ending[0] if ending else "aborted"
            self.stats.open -= 1
            setattr(self.stats, outcome, getattr(self.stats, outcome) + 1)
            self.stats.changed()

    def _options_for(self, body: Body) -> MockOptions:
        options, left = self.options, self.options.fail_requests
        if options.fail and left is not None:
            if left:
                self.configure(fail_requests=left - 1)
            else:
                options = msgspec.structs.replace(options, fail=None)
        try:
            return options.marked(body.text)
        except msgspec.ValidationError as error:
            raise Refused(400, f"marker: {error}") from None

    async def _produce(self, http: HttpConnection, path: str, body: Body, options: MockOptions) -> bool:
        if await fail_early(http, options.fail):
            return False
        chat, embeds = path == "/api/chat", path.startswith("/api/embed")
        model = checked_model(body, options)
        if mock_replies.embeds(model) and not embeds:
            raise Refused(400, f'"{body.get("model")}" does not support {path.removeprefix("/api/")}')
        thinks = options.thinking or mock_replies.can_think(model)
        check_options(body, thinks=thinks)
        if not embeds and body.get("_debug_render_only"):
            rendered = f"{mock_replies.HIDDEN_SYSTEM}\n{body.text}"
            await http.reply(200, _json({"model": model, "_debug_info": {"rendered_template": rendered}}))
            return True
        load_s = 0.0 if model in self._loaded else options.load_delay_s
        if body.unloads:
            self._loaded.discard(model)
        else:
            self._loaded.add(model)
        if embeds:
            await trio.sleep(load_s + options.time_to_first_token_s)
            await http.reply(200, embedding_reply(path, body, options))
            return True
        if not body.get("messages" if chat else "prompt"):
            writer = mock_replies.Writer(body.get("model"), chat=chat)
            await http.reply(200, writer.last(time.time_ns(), "unload" if body.unloads else "load", {}))
            return True
        completion = Completion(http, body, options, self.stats, chat=chat, thinks=thinks, load_s=load_s)
        return await completion.run()

    async def _read(self, http: HttpConnection, request: HttpRequest) -> None:
        if self.options.fail_reads is None:
            await http.reply(*reading(request, self.options, self._loaded), bodiless=request.method == "HEAD")
        else:
            work = partial(fail_reading, http, request, self.options, self._loaded, self.options.fail_reads)
            await while_connected(http, work)

    async def _mutate(self, http: HttpConnection, _request: HttpRequest) -> None:
        await http.reply(200, _json({"status": "success"}))

    async def _show_stats(self, http: HttpConnection, _request: HttpRequest) -> None:
        await http.reply(200, _json(self.stats.as_dict()))

    async def _configure(self, http: HttpConnection, request: HttpRequest) -> None:
        try:
            self.configure(**msgspec.json.decode(request.body, type=dict[str, Any]))
        except msgspec.MsgspecError as error:
            raise Refused(400, str(error)) from None
        await http.reply(200, _json(self.options))


_Answer = Callable[[MockOllama, HttpConnection, HttpRequest], Awaitable[None]]

_READ, _POST = ("GET", "HEAD"), ("POST",)
_ROUTES: dict[str, tuple[tuple[str, ...], _Answer | None]] = {
    "/": (_READ, MockOllama._read),
    "/api/version": (_READ, MockOllama._read),
    "/api/tags": (_READ, MockOllama._read),
    "/api/ps": (("GET",), MockOllama._read),
    "/api/show": (_POST, MockOllama._read),
    "/api/chat": (_POST, MockOllama._infer),
    "/api/generate": (_POST, MockOllama._infer),
    "/api/embed": (_POST, MockOllama._infer),
    "/api/embeddings": (_POST, MockOllama._infer),
    # What a gateway must never forward: here it would succeed, and be counted.
    "/api/pull": (_POST, MockOllama._mutate),
    "/api/push": (_POST, MockOllama._mutate),
    "/api/create": (_POST, MockOllama._mutate),
    "/api/copy": (_POST, MockOllama._mutate),
    "/api/delete": (("DELETE",), MockOllama._mutate),
    "/_mock/stats": (("GET",), MockOllama._show_stats),
    "/_mock/configure": (_POST, MockOllama._configure),
}

_json = msgspec.json.encode


@asynccontextmanager
async def run_mock_ollama(
    options: MockOptions | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[MockOllama]:
    """A mock for the length of the block. Errors of the block come in an exception group."""
    async with trio.open_nursery() as nursery:
        mock = MockOllama(options, host=host, port=port)
        await nursery.start(mock.serve)
        yield mock
        nursery.cancel_scope.cancel()
