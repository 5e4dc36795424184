"""Clients at the level of sockets: they ask as their visit says, and write down what they heard."""

import random
import socket
import struct
import time
from contextlib import suppress
from typing import Any

import trio

from tests.chaos.replies import Replies
from tests.chaos.visits import Visit, crowd, draw

CUSTOMERS = 14
CROWD = 10
# Far above every deadline of the gateways: a client that waits so long was forgotten.
PATIENCE_S = 30.0
CONNECT_WITHIN_S = 20.0
# After a refusal a customer waits, or an outage would use up the machine.
BACK_OFF_S = 0.2


class Crowd:
    """All clients of a run. ``visits``: those that were begun; ``open``: how many are under way."""

    def __init__(self, world: Any, seed: int) -> None:
        self.visits: list[Visit] = []
        self.open = 0
        self.closing = trio.Event()
        self._world = world
        self._seed = seed
        self._numbers = iter(range(10**6))

    def next_number(self) -> int:
        return next(self._numbers)

    async def customer(self) -> None:
        """One client after the other until ``closing``."""
        while not self.closing.is_set():
            visit = draw(self._seed, self.next_number(), self._world.accounts, len(self._world.gateways))
            await self.perform(visit)
            if visit.ended != "whole" or visit.answers[-1].status != 200:
                await trio.sleep(BACK_OFF_S)

    async def crowds(self) -> None:
        """Now and then many at once, over the limits."""
        dice = random.Random(f"{self._seed}-crowds")
        while not self.closing.is_set():
            async with trio.open_nursery() as nursery:
                numbers = [self.next_number() for _ in range(CROWD)]
                for visit in crowd(dice, numbers, self._world.accounts, len(self._world.gateways)):
                    nursery.start_soon(self.perform, visit)
            with trio.move_on_after(dice.random()):
                await self.closing.wait()

    async def perform(self, visit: Visit) -> None:
        """Make the visit. Raises nothing: how it ended stands in it."""
        self.visits.append(visit)
        self.open += 1
        replies = Replies(visit.answers)
        try:
            sock = await self._connected(visit)
            if sock is None:
                visit.ended = "unsent"
                return
            with sock:
                visit.begun = time.time()
                with trio.move_on_after(PATIENCE_S):
                    with trio.move_on_after(PATIENCE_S if visit.leaves_after_s is None else visit.leaves_after_s):
                        visit.ended = await self._talk(visit, trio.SocketStream(sock), replies)
                    visit.ended = visit.ended or ("hung" if visit.leaves_after_s is None else "left")
                if visit.resets:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            visit.ended = visit.ended or "left"
            self.open -= 1

    async def _connected(self, visit: Visit) -> trio.socket.SocketType | None:
        with trio.move_on_after(CONNECT_WITHIN_S):
            while True:
                sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                try:
                    if visit.kind == "stalled":
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    await sock.bind((visit.address, 0))
                    await sock.connect(("127.0.0.1", self._world.gateways[visit.gateway].port))
                except OSError:
                    sock.close()
                    visit.gateway = (visit.gateway + 1) % len(self._world.gateways)
                    await trio.sleep(0.02)
                except BaseException:
                    sock.close()
                    raise
                else:
                    return sock
        return None

    async def _talk(self, visit: Visit, stream: trio.SocketStream, replies: Replies) -> str:
        """Ask and listen; how it ended."""
        dice = random.Random(f"{self._seed}-{visit.number}-talk")
        try:
            for index, request in enumerate(visit.requests):
                visit.sent += 1
                await self._ask(visit, stream, request, dice)
                if visit.kind == "early" or visit.kind == "stalled":
                    await trio.sleep_forever()
                while replies.whole <= index:
                    size, pause_s = (200, 0.02) if visit.kind == "slow" else (65536, 0.0)
                    data = await stream.receive_some(size)
                    if not data:
                        return "cut"
                    replies.feed(data)
                    if pause_s:
                        await trio.sleep(pause_s)
        except (trio.BrokenResourceError, OSError):
            return "cut"
        return "whole"

    async def _ask(self, visit: Visit, stream: trio.SocketStream, request: bytes, dice: random.Random) -> None:
        match visit.kind:
            case "early":
                await stream.send_all(request[: dice.randrange(len(request))])
            case "trickled":
                step = len(request) // 8 + 1
                for begin in range(0, len(request), step):
                    await stream.send_all(request[begin : begin + step])
                    await trio.sleep(0.05)
            case "half":
                await stream.send_all(request)
                with suppress(OSError):
                    await stream.send_eof()
            case _:
                await stream.send_all(request)
