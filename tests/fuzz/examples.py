"""How many examples a fuzzed property sees: a few, always the same ones, in the tests; many in ``just fuzz``."""

import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""For each property and round; 0 outside of ``just fuzz``."""

SEED = int(os.environ.get("FUZZ_SEED", "0"))

seen: Counter[str] = Counter()
"""How many examples each property saw in this process."""

_settings = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def fuzzed(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A property over these strategies."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def counted(**drawn: Any) -> None:
            seen[test.__name__] += 1
            test(**drawn)

        return _settings(given(**strategies)(counted))

    return decorate


@st.composite
def mangled(draw: st.DrawFn, sources: st.SearchStrategy[bytes], most: int = 6) -> bytes:
    """Bytes with some of them replaced, repeated, moved or left out."""
    data = draw(sources)
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + draw(st.sampled_from([0, 1, 2, 8, 64])))))
        new = draw(st.binary(max_size=3) | st.sampled_from(SNIPPETS) | st.just(data[start:end] * 2))
        data = data[:start] + new + data[end:]
    return data


SNIPPETS = [
    *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n\r\n", b"\n\n", b" ", b"\t"),
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"null",
        b"1e400",
        b"-1",
        b"9" * 25,
        b"\\ud800",
        b"\\u0000",
    ),
    *(b'"model":"other",', b'"MODEL":1,', '"\u212aeep_alive":0,'.encode(), '"\u017ftream":1,'.encode()),
    *(
        b'"error":1,',
        b'"done":true,',
        b'"done":false,',
        b'"message":null,',
        b'"tool_calls":[{}],',
        b"data: ",
        b"event: x",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
        b"Expect: 100-continue\r\n",
        b"HTTP/1.0",
    ),
]


@st.composite
def cuts(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> list[bytes]:
    """Bytes as they come from a network: in pieces."""
    whole = draw(data)
    edges = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return [whole[start:end] for start, end in zip([0, *edges], [*edges, len(whole)], strict=True)]
