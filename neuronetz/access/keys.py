"""API keys: their format, their checksum, and argon2id.

A key is ``nnz_`` + 8 characters (together the public prefix, by which it is looked up and named) + a secret
of 33 characters (196 bits) + a checksum of 6, all of base62. The checksum is the CRC-32 of what stands
before it, so that a mistyped key is refused without a look-up, and a secret scanner that matched
``KEY_PATTERN`` can tell a key from a string that looks like one.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import argon2
import trio
from argon2.exceptions import HashingError, InvalidHashError, VerificationError, VerifyMismatchError

from neuronetz.errors import Unavailable

T = TypeVar("T")

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TAG = "nnz_"
PREFIX_LENGTH = len(TAG) + 8
SECRET_LENGTH = 33
CHECKSUM_LENGTH = 6
KEY_LENGTH = PREFIX_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH

# For secret scanners: no look-around, which many of their engines do not have.
KEY_PATTERN = rf"\bnnz_[0-9A-Za-z]{{{KEY_LENGTH - len(TAG)}}}\b"
PREFIX_PATTERN = r"nnz_[0-9A-Za-z]{8}"

_KEY = re.compile(KEY_PATTERN)
_PREFIX = re.compile(PREFIX_PATTERN)


class Random(Protocol):
    """Where a key's characters come from: the module ``secrets``, or a seeded generator in a test."""

    def choice(self, seq: Sequence[str], /) -> str: ...


@dataclass(frozen=True)
class NewKey:
    """A key just made. ``text`` is shown to its owner once; ``secret`` is what is hashed."""

    text: str = field(repr=False)
    prefix: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class PresentedKey:
    """A key as a client sent it: well formed, and nothing more is known of it."""

    prefix: str
    secret: str = field(repr=False)


def generate(random: Random = secrets) -> NewKey:
    """A new key. Whoever stores it must be ready for a prefix that is taken already."""
    body = TAG + "".join(random.choice(ALPHABET) for _ in range(PREFIX_LENGTH - len(TAG) + SECRET_LENGTH))
    return NewKey(text=body + _checksum(body), prefix=body[:PREFIX_LENGTH], secret=body[PREFIX_LENGTH:])


def parse(text: str) -> PresentedKey | None:
    """The key in ``text``, which must be nothing but the key; None where format or checksum are wrong."""
    if len(text) != KEY_LENGTH or not _KEY.fullmatch(text):
        return None
    body, checksum = text[:-CHECKSUM_LENGTH], text[-CHECKSUM_LENGTH:]
    if checksum != _checksum(body):
        return None
    return PresentedKey(prefix=body[:PREFIX_LENGTH], secret=body[PREFIX_LENGTH:])


def is_prefix(text: str) -> bool:
    """Whether ``text`` has the form of a key's public prefix."""
    return _PREFIX.fullmatch(text) is not None


def secret_digest(secret: str) -> bytes:
    """SHA-256 of a secret, for the cache. A fast hash is enough: 196 random bits cannot be guessed."""
    return hashlib.sha256(secret.encode()).digest()


def same_digest(one: bytes, other: bytes) -> bool:
    """Compare in a time that does not depend on where they differ."""
    return hmac.compare_digest(one, other)


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


class Hasher:
    """argon2id in worker threads: ``workers`` at once, and at most ``waiting`` in line for them.

    A caller that finds the line full gets ``Unavailable``: argon2 is slow and large by design, and
    strangers must not be able to pile it up. A caller that is cancelled leaves at once. A thread cannot be
    stopped, so the one it leaves behind runs to its end (a tenth of a second) and its result is dropped;
    Trio gives its place in the limiter back only then, so that never more than ``workers`` run.
    """

    def __init__(self, time_cost: int, memory_kib: int, parallelism: int, workers: int, waiting: int) -> None:
        self._argon2 = argon2.PasswordHasher(time_cost, memory_kib, parallelism, type=argon2.Type.ID)
        self._limiter = trio.CapacityLimiter(workers)
        self._waiting = waiting

    async def verify(self, hash: str, secret: str) -> bool:
        """Whether ``secret`` is the one that was hashed. Raises ``Unavailable`` where that cannot be told."""
        try:
            return await self._in_thread(lambda: self._argon2.verify(hash, secret))
        except (VerifyMismatchError, InvalidHashError):
            return False
        except VerificationError as error:
            raise Unavailable("argon2") from error

    async def hash(self, secret: str) -> str:
        """The encoded hash of ``secret``, under a new salt. Raises ``Unavailable``."""
        try:
            return await self._in_thread(lambda: self._argon2.hash(secret))
        except HashingError as error:
            raise Unavailable("argon2") from error

    def needs_rehash(self, hash: str) -> bool:
        """Whether ``hash`` was made with other parameters than today's."""
        return self._argon2.check_needs_rehash(hash)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        line = self._limiter.statistics()
        if line.borrowed_tokens >= line.total_tokens and line.tasks_waiting >= self._waiting:
            raise Unavailable("argon2", retry_after=1.0)
        return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)
