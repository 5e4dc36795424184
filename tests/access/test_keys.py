"""Keys: format, checksum, and the line before argon2."""

import random
import re
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.access import keys
from neuronetz.access.keys import ALPHABET, KEY_PATTERN, Hasher, generate, parse, secret_digest
from neuronetz.errors import Unavailable

seeds = st.integers(min_value=0, max_value=2**32)


@given(seeds)
def test_a_generated_key_parses_to_its_prefix_and_secret(seed: int) -> None:
    key = generate(random.Random(seed))
    presented = parse(key.text)
    assert presented is not None
    assert (presented.prefix, presented.secret) == (key.prefix, key.secret)
    assert re.fullmatch("nnz_[0-9A-Za-z]{8}", key.prefix)
    assert keys.is_prefix(key.prefix)


def test_the_secret_has_at_least_190_bits() -> None:
    assert len(ALPHABET) ** len(generate().secret) >= 2**190


def test_two_keys_have_nothing_in_common() -> None:
    one, other = generate(), generate()
    assert one.prefix != other.prefix
    assert one.secret != other.secret


@given(seeds, st.integers(0, 50), st.characters(codec="utf-8"))
def test_every_typo_of_one_character_is_detected(seed: int, place: int, typed: str) -> None:
    text = generate(random.Random(seed)).text
    assert len(text) == 51
    typo = text[:place] + typed + text[place + 1 :]
    assert typo == text or parse(typo) is None


@given(seeds, st.integers(0, 49))
def test_two_neighbours_swapped_are_detected(seed: int, place: int) -> None:
    text = generate(random.Random(seed)).text
    swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    assert swapped == text or parse(swapped) is None


@given(seeds, st.integers(0, 50))
def test_a_lost_or_doubled_character_is_detected(seed: int, place: int) -> None:
    text = generate(random.Random(seed)).text
    assert parse(text[:place] + text[place + 1 :]) is None
    assert parse(text[:place] + text[place] + text[place:]) is None


@given(st.text(max_size=80))
def test_any_other_text_is_no_key(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize("around", ["{}\n", " {}", "{} ", "{}\x00", "x{}"])
def test_a_key_with_anything_around_it_is_no_key(around: str) -> None:
    assert parse(around.format(generate().text)) is None


@pytest.mark.parametrize("line", ["KEY={}", 'key: "{}"', "curl -H 'Authorization: Bearer {}'", "{}", "a {}, b"])
def test_one_regex_finds_a_key_in_text(line: str) -> None:
    key = generate()
    assert re.findall(KEY_PATTERN, line.format(key.text)) == [key.text]


@pytest.mark.parametrize("spoil", [lambda text: text[:-1], lambda text: text + "0", lambda text: "x" + text])
def test_the_regex_does_not_match_longer_or_shorter_words(spoil: Callable[[str], str]) -> None:
    assert not re.search(KEY_PATTERN, spoil(generate().text))


def test_no_representation_shows_the_secret() -> None:
    key = generate()
    assert key.secret not in repr(key)
    assert key.secret not in repr(parse(key.text))


def test_a_digest_is_of_the_whole_secret() -> None:
    secret = generate().secret
    assert len(secret_digest(secret)) == 32
    assert keys.same_digest(secret_digest(secret), secret_digest(secret))
    assert not keys.same_digest(secret_digest(secret), secret_digest(secret[:-1] + "-"))


def cheap(time_cost: int = 1, workers: int = 1, waiting: int = 1) -> Hasher:
    return Hasher(time_cost=time_cost, memory_kib=8, parallelism=1, workers=workers, waiting=waiting)


async def test_a_hash_is_argon2id_and_verifies_its_secret_alone() -> None:
    hasher = cheap()
    encoded = await hasher.hash("secret")
    assert encoded.startswith("$argon2id$")
    assert await hasher.verify(encoded, "secret")
    assert not await hasher.verify(encoded, "Secret")
    assert not await hasher.verify("no hash at all", "secret")


async def test_a_hash_of_other_parameters_needs_a_rehash() -> None:
    encoded = await cheap().hash("secret")
    assert not cheap().needs_rehash(encoded)
    assert cheap(time_cost=2).needs_rehash(encoded)
    assert await cheap(time_cost=2).verify(encoded, "secret")


async def test_a_full_line_is_refused_and_an_idle_worker_never_is() -> None:
    hasher, release = cheap(workers=1, waiting=1), threading.Event()
    encoded = await cheap(waiting=0).hash("secret")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hasher._in_thread, release.wait)
        nursery.start_soon(hasher._in_thread, release.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unavailable) as refusal:
            await hasher.verify(encoded, "secret")
        release.set()
    assert refusal.value.dependency == "argon2"
    assert refusal.value.retry_after == 1
    assert await hasher.verify(encoded, "secret")


async def test_a_cancelled_caller_leaves_at_once_and_its_thread_keeps_its_place() -> None:
    hasher, release = cheap(workers=1, waiting=0), threading.Event()
    with trio.move_on_after(0.01) as scope:
        await hasher._in_thread(lambda: release.wait(5))
    assert scope.cancelled_caught
    with pytest.raises(Unavailable):
        await hasher.hash("secret")
    release.set()
    with trio.fail_after(10):
        while True:
            try:
                await hasher.hash("secret")
            except Unavailable:
                await trio.sleep(0.001)
            else:
                break
