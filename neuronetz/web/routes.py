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
    """A path that ends in ``{model}`` stands for everything below: that is the route's argument."""

    methods: tuple[str, ...]
    path: str
    kind: Kind
    action: str
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
    Route(POST, "/v1/chat/completions", Kind.INFERENCE, "/v1/chat/completions", has_body=True),
    Route(POST, "/v1/completions", Kind.INFERENCE, "/v1/completions", has_body=True),
    Route(POST, "/v1/embeddings", Kind.INFERENCE, "/v1/embeddings", has_body=True),
    Route(POST, "/v1/responses", Kind.INFERENCE, "/v1/responses", has_body=True),
    Route(POST, "/v1/messages", Kind.INFERENCE, "/v1/messages", has_body=True),
    Route(GET, "/v1/models", Kind.READ, "models"),
    Route(GET, "/v1/models/{model}", Kind.READ, "model"),
)

# A page for people, and no endpoint: only where it is enabled is there such a path.
PLAYGROUND = Route(GET, "/playground", Kind.PAGE, "playground")

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

_ARGUMENT = "{model}"
_BY_PATH = {route.path: route for route in ROUTES if not route.path.endswith(_ARGUMENT)}
_BY_PREFIX = {route.path.removesuffix(_ARGUMENT): route for route in ROUTES if route.path.endswith(_ARGUMENT)}
_BLOCKED_PATHS = frozenset(path for path in BLOCKED if not path.endswith("/"))
_BLOCKED_TREES = tuple(path for path in BLOCKED if path.endswith("/"))

# An unknown path is client-made text: the audit row says only that it was unknown.
UNKNOWN = "unknown"


class Match(NamedTuple):
    """What the table says of a request: its route, or why it will be refused, and how to name it.

    ``argument``: what the path holds in the place of the route's ``{model}``, as the client spelled it.
    """

    route: Route | None
    refusal: GatewayError | None
    endpoint: str
    dialect: Dialect
    argument: str | None = None


def match(method: str, path: str, *, playground: bool = False) -> Match:
    """Look up a method and a percent-decoded path. Pure, and total: every input has an answer.

    Without ``playground`` its path is as unknown as any other.
    """
    dialect = dialect_of(path)
    route, argument = (PLAYGROUND, None) if playground and path == PLAYGROUND.path else _route(path)
    if route is not None:
        refusal = None if method in route.methods else MethodNotAllowed(route.methods)
        return Match(route, refusal, route.path, dialect, argument)
    if path in _BLOCKED_PATHS:
        return Match(None, EndpointBlocked(), path, dialect)
    for tree in _BLOCKED_TREES:
        if path.startswith(tree):
            return Match(None, EndpointBlocked(), tree + "*", dialect)
    return Match(None, NotFound(), UNKNOWN, dialect)


def dialect_of(path: str) -> Dialect:
    """The dialect that clients of a path speak, whether there is such a path or not."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "openai" if path.startswith("/v1/") else "ollama"


def _route(path: str) -> tuple[Route | None, str | None]:
    route = _BY_PATH.get(path)
    if route is None:
        for prefix, below in _BY_PREFIX.items():
            if path.startswith(prefix) and path != prefix:
                return below, path.removeprefix(prefix)
    return route, None
