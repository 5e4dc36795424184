"""The model's reply on its way: from the upstream through its reader to the client, as it comes."""

from dataclasses import dataclass

import trio

from neuronetz.dialects import sse
from neuronetz.dialects.call import Call, Reply, ReplyState
from neuronetz.errors import ReplyTooLarge, UpstreamFailed
from neuronetz.exchange.account import Account
from neuronetz.exchange.delivery import Delivery, Headers
from neuronetz.exchange.outcome import CLIENTS_DOING, Verdict, verdict
from neuronetz.exchange.registry import Running
from neuronetz.upstream.breaker import Breaker
from neuronetz.upstream.ollama import Upstream, UpstreamStream

_LARGE_REPLY_BYTES = 512 * 1024


@dataclass(frozen=True)
class Ending:
    """What ends a reply: its last bytes, held back until the lease is settled."""

    content_type: str
    body: bytes


class Relay:
    """One reply of the model's. ``reply`` reads it and says how it ends when it fails."""

    def __init__(
        self, call: Call, delivery: Delivery, account: Account, running: Running, threads: trio.CapacityLimiter
    ) -> None:
        self.reply: Reply = account.conversation.reply(call)
        self._call = call
        self._delivery = delivery
        self._account = account
        self._running = running
        self._threads = threads

    async def run(self, upstream: Upstream, breaker: Breaker, body: bytes) -> Ending:
        """Pass the reply to ``body`` on as it comes; return its end.

        Raises ``GatewayError`` for whatever is wrong with the upstream. However it ends, the upstream's
        connection is closed, the breaker knows, and the account has the tokens.
        """
        account, reply = self._account, self.reply
        heard = False
        with breaker.attempt() as attempt:
            try:
                async with upstream.stream(self._call.upstream_path, body) as stream:
                    # Concluded here, so that closing the upstream counts as unwinding.
                    with account.concluding(self._running):
                        while True:
                            data = await stream.read()
                            if data and not heard:
                                heard = True
                                attempt.answering()
                                account.conversation.begun(self._call)
                            passed_on = reply.feed(data) if data else await self._end(stream)
                            if reply.state is ReplyState.FINISHED:
                                await stream.drain()
                                break
                            if passed_on:
                                await self._pass_on(passed_on, stream)
                            if reply.state is ReplyState.FAILED:
                                raise ReplyTooLarge if reply.too_large else UpstreamFailed(retry_after=1.0)
            except BaseException as error:
                reason = self._running.reason_for(error)
                if verdict(reason, provoking=self._call.provoking) is Verdict.FAILURE:
                    attempt.failure()
                # Before the first byte the upstream has reported nothing; see CLIENTS_DOING for who pays.
                if heard or isinstance(reason, CLIENTS_DOING):
                    account.counts = reply.counts
                raise
            account.counts = reply.counts
            attempt.success()
        account.first_byte()
        return Ending(reply.content_type, passed_on)

    async def keep_alive(self, every_s: float) -> None:
        """Send the dialect's heartbeat while the model is silent; runs until cancelled."""
        await self._delivery.keep_alive(reply_headers(self.reply.content_type), self.reply.heartbeat, every_s)

    async def _end(self, stream: UpstreamStream) -> bytes:
        if self.reply.gathered < _LARGE_REPLY_BYTES:
            return self.reply.eof()
        stream.pause()
        # Millions of numbers take long enough to hold up every other stream. Nobody waits for what a client
        # has left: the reply is not used any more then.
        return await trio.to_thread.run_sync(self.reply.eof, abandon_on_cancel=True, limiter=self._threads)

    async def _pass_on(self, chunk: bytes, stream: UpstreamStream) -> None:
        delivery = self._delivery
        if not delivery.started:
            stream.pause()
            await delivery.start(200, reply_headers(self.reply.content_type))
            self._account.first_byte()
            await delivery.send(chunk)
        else:
            self._account.first_byte()
            if not delivery.send_now(chunk):
                # However slow the client is, that is not the upstream's silence.
                stream.pause()
                await delivery.catch_up()
        if self._account.conversation.taken is not None:
            self._account.conversation.taken()


def reply_headers(content_type: str) -> Headers:
    """The headers of a reply of this type."""
    headers = [(b"content-type", content_type.encode())]
    if content_type == sse.CONTENT_TYPE:
        # Or else intermediaries may hold events back (nginx reads the second).
        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    return headers
