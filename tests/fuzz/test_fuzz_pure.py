"""Compressed bodies and paths: every input has an answer, and it is one of those that there should be."""

import zstandard
from hypothesis import strategies as st

from neuronetz.dialects.compression import declared_size, inflate
from neuronetz.errors import BodyTooLarge, EndpointBlocked, InvalidRequest
from neuronetz.web.asgi import path_of
from neuronetz.web.routes import BLOCKED, ROUTES, Kind, match
from tests.fuzz.examples import fuzzed, mangled

LIMIT = 10_000

_plain = st.binary(max_size=300) | st.binary(max_size=40).map(lambda data: data * 500)
_frames = st.builds(
    lambda data, level, declared, checksum: zstandard.ZstdCompressor(
        level, write_content_size=declared, write_checksum=checksum
    ).compress(data),
    _plain,
    st.sampled_from([-5, 1, 3, 19]),
    st.booleans(),
    st.booleans(),
)


@fuzzed(
    data=mangled(_frames)
    | st.binary(max_size=100)
    | st.binary(max_size=100).map(lambda data: b"\x28\xb5\x2f\xfd" + data)
)
def test_a_frame_is_inflated_within_its_bound_or_refused(data: bytes) -> None:
    size = declared_size(data)
    try:
        body = inflate(data, LIMIT)
    except (InvalidRequest, BodyTooLarge):
        return
    assert len(body) <= LIMIT
    assert size is None or len(body) == size


_OPEN = {route.path for route in ROUTES if not route.path.endswith("{model}")}
_MODELS = "/v1/models/"
_BITS = [
    "/",
    "//",
    ".",
    "..",
    "%2f",
    "%2F",
    "%2e",
    "%00",
    "%25",
    ";",
    "?",
    "#",
    "\\",
    " ",
    "%C0%AF",
    "pull",
    "api",
    "v1",
    "a",
]
_segments = st.lists(st.sampled_from(_BITS), max_size=4).map("".join)
_around = st.builds(
    lambda before, path, behind: before + path + behind,
    _segments,
    st.sampled_from([*BLOCKED, *sorted(_OPEN), _MODELS]),
    _segments,
)
_paths = (
    _around | _around.map(str.upper) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)
)
_methods = st.sampled_from(["GET", "HEAD", "POST", "DELETE", "OPTIONS", "BREW"])


@fuzzed(method=_methods, target=_paths, host=st.sampled_from(["http://g", "https://u@g:80", "http://"]))
def test_a_path_leads_only_where_the_table_says(method: str, target: str, host: str) -> None:
    path = path_of(target)
    found = match(method, path)
    if path in BLOCKED or any(path.startswith(tree) for tree in BLOCKED if tree.endswith("/")):
        assert isinstance(found.refusal, EndpointBlocked)
    if found.route is not None and found.refusal is None:
        assert method in found.route.methods
        assert path in _OPEN or (path.startswith(_MODELS) and found.route.kind is Kind.READ)
    if found.route is None:
        assert found.refusal is not None
    # A name of a host before it changes nothing, whatever is encoded in it.
    if target.startswith("/"):
        assert match(method, path_of(host + target))[2:] == found[2:]
