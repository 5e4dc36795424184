"""Names mean what they mean to Ollama, and the effective set never leaves either of its two bounds."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.models.effective import effective, find, is_addressable, is_remote, normalise


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("x", "x:latest"),
        ("x:latest", "x:latest"),
        (" X:Latest\n", "x:latest"),
        ("Llama3.2:3B", "llama3.2:3b"),
        ("library/x", "x:latest"),
        ("LIBRARY/X:Y", "x:y"),
        ("registry.ollama.ai/library/x", "x:latest"),
        ("https://registry.ollama.ai/library/x", "x:latest"),
        ("registry.ollama.ai/me/x", "me/x:latest"),
        ("me/x", "me/x:latest"),
        ("hf.co/Me/X-GGUF:Q4_K_M", "hf.co/me/x-gguf:q4_k_m"),
        ("localhost:5000/me/x", "localhost:5000/me/x:latest"),
        ("hf.co/library/x", "hf.co/library/x:latest"),
    ],
)
def test_names_of_one_model_have_one_spelling(name: str, normal: str) -> None:
    assert normalise(name) == normal


@pytest.mark.parametrize(
    "name",
    ["", ":", "x:", ":x", "/x", "a/", "a//b", "a b", "x:y z", "x@sha256:00", "../x", "-x", "a.b/x", "x:y:z"],
)
def test_what_is_no_name_to_ollama_equals_no_name(name: str) -> None:
    assert normalise(name) == name


def test_letters_beyond_ascii_do_not_fold_into_a_name() -> None:
    assert normalise("\u212aimi") != normalise("kimi")
    assert normalise("\u017fmol") != normalise("smol")


names = st.from_regex(
    r"([a-zA-Z.]{1,6}(:5)?/)?([a-zA-Z]{1,3}/|library/|LIBRARY/)?[a-zA-Z0-9._-]{1,4}(:[a-zA-Z.-]{1,4})?",
    fullmatch=True,
)


@given(names | st.text(max_size=20))
def test_normalising_twice_changes_nothing(name: str) -> None:
    assert normalise(normalise(name)) == normalise(name)


@given(names)
def test_case_does_not_matter(name: str) -> None:
    assert normalise(name.upper()) == normalise(name.lower()) == normalise(name)


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        ("gpt-oss:120b-cloud", True),
        ("glm:cloud", True),
        ("glm:CLOUD ", True),
        ("glm:120B-Cloud", True),
        ("a/b/glm: cloud", True),
        ("glm", False),
        ("cloud", False),
        ("my-cloud", False),
        ("cloud/x", False),
        ("x:cloudy", False),
        ("x:cloud9", False),
        ("x:7b", False),
        ("localhost:5-cloud/me/x", False),
    ],
)
def test_names_that_leave_the_house(name: str, remote: bool) -> None:
    assert is_remote(name) is remote


@pytest.mark.parametrize(
    ("entry", "remote"),
    [
        ({"name": "x:latest"}, False),
        ({"name": "x:latest", "remote_host": "", "remote_model": None}, False),
        ({"name": "x:latest", "remote_host": "https://ollama.com:443"}, True),
        ({"name": "x:latest", "remote_model": "y"}, True),
        ({"name": "x:cloud"}, True),
        ({"name": "x:latest", "model": "x:cloud"}, True),
    ],
)
def test_entries_that_run_elsewhere(entry: dict[str, Any], remote: bool) -> None:
    assert is_remote(entry) is remote


def test_a_tag_that_ollama_takes_for_a_place_cannot_be_addressed() -> None:
    assert not is_addressable("x:local")
    assert not is_addressable("x: LOCAL")
    assert is_addressable("local")
    assert is_addressable("x:local-1")


few = st.sampled_from(["a:latest", "b:latest", "c:7b", "me/d:latest", "hf.co/me/e:q4"])
installed = st.dictionaries(few, st.just({"name": "x"}), max_size=5)


@given(installed, st.booleans(), st.frozensets(few), few)
def test_the_effective_set_is_what_is_installed_and_permitted(
    discovered: dict[str, Any], allow_all: bool, models: frozenset[str], asked: str
) -> None:
    usable = effective(discovered, allow_all, models)
    assert set(usable) == {name for name in discovered if allow_all or name in models}
    assert (asked in usable) is (find(discovered, allow_all, models, asked) is not None)
    assert len(usable) == len(set(usable))


def test_nothing_discovered_allows_nothing() -> None:
    assert not effective({}, True, frozenset({"a:latest"}))


def test_the_effective_set_is_asked_in_any_spelling() -> None:
    usable = effective({"a:latest": {"name": "A"}}, False, frozenset({"a:latest"}))
    assert all(name in usable for name in ["a", "A:LATEST", "library/a"])
    assert usable["registry.ollama.ai/library/A"] == {"name": "A"}
    assert "b" not in usable
