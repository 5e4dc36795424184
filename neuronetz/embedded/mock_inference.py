"""One completion of the mock: its pace, its lines, and the ways in which it can go wrong."""

import time
from typing import Any, NoReturn

import trio

from neuronetz.embedded.mock_http import JSON, LAST_CHUNK, NDJSON, HttpConnection, chunk, reply_head
from neuronetz.embedded.mock_options import MockOptions
from neuronetz.embedded.mock_replies import (
    SECRET_TEXT,
    Part,
    Writer,
    embedding,
    encode,
    error,
    is_cloud,
    prompt_tokens,
    word,
)
from neuronetz.embedded.mock_requests import Body, Refused
from neuronetz.embedded.mock_script import Script
from neuronetz.embedded.mock_stats import MockStats

GARBAGE = b"this is <not> JSON\n"
BUSY_TEXT = "server busy, please try again.  maximum pending requests exceeded"
# Failures after which the connection cannot carry another reply.
_BREAKING = ("reset", "close")


class Broken(Exception):
    """The reply failed as it was told to; the connection is of no more use."""


async def fail_early(http: HttpConnection, failure: str | None) -> bool:
    """Fail before anything was answered; False where the failure is none of these.

    Raises ``Broken`` after a reset. A stall ends with its cancellation.
    """
    if failure is None:
        return False
    if failure.isdigit():
        await http.reply(int(failure), error(BUSY_TEXT if failure == "503" else SECRET_TEXT))
        return True
    if failure == "refuse":
        await http.reset()
        raise Broken
    if failure == "stall":
        await trio.sleep_forever()
    return False


async def break_off(http: HttpConnection, failure: str | None) -> NoReturn:
    """End a reply that has begun: in silence, by a reset or by a plain close. Raises ``Broken``."""
    if failure == "stall_stream":
        await trio.sleep_forever()
    if failure == "reset":
        await http.reset()
    raise Broken


class Completion:
    """A chat or a generate, from its checked body to the last byte."""

    def __init__(
        self,
        http: HttpConnection,
        body: Body,
        options: MockOptions,
        stats: MockStats,
        *,
        chat: bool,
        thinks: bool,
        load_s: float,
    ) -> None:
        self._http = http
        self._options = options
        self._stats = stats
        self._load_s = load_s
        self._failure = options.fail
        self._stream: bool = body.get("stream", True)
        self._raw: bool = body.get("raw", False) or chat
        self._prompt_tokens = 0 if options.omit_prompt_count else prompt_tokens(body.text)
        model = body.get("model")
        self._writer = Writer(model, chat=chat, remote=is_cloud(model))
        self._script = Script(body, options, chat=chat, thinks=thinks)

    async def run(self) -> bool:
        """Answer; False where it failed as it was told to. Raises ``ClientGone``, and ``Broken``."""
        self._began_ns = time.time_ns()
        await trio.sleep(self._load_s + self._options.time_to_first_token_s)
        self._first_ns = time.time_ns()
        self._first = trio.current_time()
        return await (self._streamed() if self._stream else self._whole())

    async def _streamed(self) -> bool:
        pending = [reply_head(200, NDJSON, length=None)]
        paced = self._options.tokens_per_second > 0
        for index in range(self._script.tokens):
            if self._failure and index == self._options.fail_after:
                await self._flush(pending)
                if await self._fail_midway():
                    return False
            await self._pace(index)
            part = self._script.part(index)
            if part is None:
                continue
            pending.append(chunk(self._writer.line(time.time_ns(), part)))
            if paced or len(pending) >= self._options.lines_per_write:
                await self._flush(pending)
        if self._failure and self._script.tokens <= self._options.fail_after:
            await self._flush(pending)
            if await self._fail_midway():
                return False
        pending += [chunk(self._writer.line(time.time_ns(), part)) for part in self._script.calls]
        pending += [chunk(self._last(self._script.ending()) + b"\n"), LAST_CHUNK]
        await self._flush(pending)
        return self._failure is None

    async def _whole(self) -> bool:
        for index in range(self._script.tokens):
            await self._pace(index)
        body = self._last(self._script.whole())
        match self._failure:
            case None:
                await self._http.reply(200, body)
            case "error_line":
                await self._http.reply(500, error(SECRET_TEXT))
            case "garbage":
                await self._http.reply(200, GARBAGE)
            case "eof":
                await self._http.reply(200, b"")
            case _:
                head = reply_head(200, JSON, length=len(body))
                await self._http.send(head + body[: len(body) // 2])
                await break_off(self._http, self._failure)
        return self._failure is None

    async def _fail_midway(self) -> bool:
        """Fail between two tokens; False where the stream goes on."""
        match self._failure:
            case "garbage":
                await self._http.send(chunk(GARBAGE))
                return False
            case "error_line":
                await self._http.send(chunk(error(SECRET_TEXT) + b"\n") + LAST_CHUNK)
            case "eof":
                await self._http.send(LAST_CHUNK)
            case _:
                if self._failure in _BREAKING:
                    line = self._writer.line(time.time_ns(), Part(text=word(self._options.fail_after)))
                    await self._http.send(chunk(line[: len(line) // 2]))
                await break_off(self._http, self._failure)
        return True

    async def _pace(self, index: int) -> None:
        if self._options.tokens_per_second > 0:
            await trio.sleep_until(self._first + index / self._options.tokens_per_second)
        self._stats.tokens += 1
        self._stats.changed()

    async def _flush(self, pending: list[bytes]) -> None:
        if pending:
            await self._http.send(b"".join(pending))
            pending.clear()

    def _last(self, part: Part) -> bytes:
        return self._writer.last(time.time_ns(), self._script.reason, self._counts(), part)

    def _counts(self) -> dict[str, Any]:
        now = time.time_ns()
        return {
            "context": None if self._raw else [101, 102, 103],
            "total_duration": now - self._began_ns,
            "load_duration": int(self._load_s * 1e9) or 1_000_000,
            "prompt_eval_count": self._prompt_tokens,
            "prompt_eval_duration": max(1, self._first_ns - self._began_ns),
            "eval_count": self._script.tokens,
            "eval_duration": max(1, now - self._first_ns),
        }


def embedding_reply(path: str, body: Body, options: MockOptions) -> bytes:
    """The reply of ``/api/embed`` and of the older ``/api/embeddings``. Raises ``Refused``."""
    if path == "/api/embeddings":
        prompt = body.get("prompt", "")
        return encode({"embedding": embedding(prompt) if prompt else []})
    given = body.get("input", [])
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "invalid input type")
    counts = {} if options.omit_prompt_count else {"prompt_eval_count": sum(map(prompt_tokens, texts))}
    return encode(
        {
            "model": body.get("model"),
            "embeddings": [embedding(text, body.get("dimensions")) for text in texts if text],
            "total_duration": 2_000_000,
            "load_duration": 1_000_000,
            **counts,
        }
    )
