"""The endpoint table. It is positive: what does not stand here is a 404 and never goes upstream.

Which of Ollama's routes are reads, inference, mutating or account business is taken from its own route list
(ollama/ollama, server/routes.go).
"""

from enum import Enum
from typing import Literal, NamedTuple

from neuronetz.errors import EndpointBlocked, GatewayError, MethodNotAllowed, NotFound

Dialect = Literal["ollama", "openai", "anthropic"]


class Kind(Enum):
    """What a route costs and needs: a page needs no key; inference takes a slot and tokens; a read neither."""

    PAGE = "page"
    READ = "read"
    INFERENCE = "inference"


class Route(NamedTuple):
    methods: tuple[str, ...]
    path: str
    kind: Kind
    action: str
    dialect: Dialect = "ollama"
    has_body: bool = False


GET = ("GET", "HEAD")
POST = ("POST",)

ROUTES = (
    Route(GET, "/", Kind.PAGE, "banner"),
    Route(GET, "/healthz", Kind.PAGE, "healthz"),
    Route(GET, "/readyz", Kind.PAGE, "readyz"),
    Route(GET, "/openapi.json", Kind.PAGE, "openapi"),
    Route(GET, "/api/version", Kind.READ, "version"),
    Route(GET, "/api/tags", Kind.READ, "tags"),
    Route(GET, "/api/ps", Kind.READ, "ps"),
    Route(POST, "/api/show", Kind.READ, "/api/show", has_body=True),
    Route(POST, "/api/chat", Kind.INFERENCE, "/api/chat", has_body=True),
    Route(POST, "/api/generate", Kind.INFERENCE, "/api/generate", has_body=True),
    Route(POST, "/api/embed", Kind.INFERENCE, "/api/embed", has_body=True),
    Route(POST, "/api/embeddings", Kind.INFERENCE, "/api/embeddings", has_body=True),
    Route(POST, "/v1/chat/completions", Kind.INFERENCE, "/v1/chat/completions", "openai", has_body=True),
)

# Never reachable, whatever the configuration says: they change what is installed, or act in the name of the
# host's account. A trailing slash stands for everything below.
BLOCKED = (
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/blobs/",
    "/api/status",
    "/api/me",
    "/api/signout",
    "/api/user/",
    "/api/experimental/",
)

_BY_PATH = {route.path: route for route in ROUTES}
_BLOCKED_PATHS = frozenset(path for path in BLOCKED if not path.endswith("/"))
_BLOCKED_TREES = tuple(path for path in BLOCKED if path.endswith("/"))

# An unknown path is client-made text: the audit row says only that it was unknown.
UNKNOWN = "unknown"


class Match(NamedTuple):
    """What the table says of a request: its route, or why it will be refused, and how to name it."""

    route: Route | None
    refusal: GatewayError | None
    endpoint: str
    dialect: Dialect


def match(method: str, path: str) -> Match:
    """Look up a method and a percent-decoded path. Pure, and total: every input has an answer."""
    dialect: Dialect = "openai" if path.startswith("/v1/") else "ollama"
    route = _BY_PATH.get(path)
    if route is not None:
        if method in route.methods:
            return Match(route, None, path, route.dialect)
        return Match(route, MethodNotAllowed(route.methods), path, route.dialect)
    if path in _BLOCKED_PATHS:
        return Match(None, EndpointBlocked(), path, dialect)
    for tree in _BLOCKED_TREES:
        if path.startswith(tree):
            return Match(None, EndpointBlocked(), tree + "*", dialect)
    return Match(None, NotFound(), UNKNOWN, dialect)
