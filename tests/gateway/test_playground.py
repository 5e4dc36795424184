"""``/playground`` over real sockets: served where it is enabled, and else as unknown as any other path."""

from typing import Any

import httpx

from neuronetz.web.playground import load_playground

FRESH = ("x-request-id", "date")


def telling(reply: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All of a reply but what differs from request to request."""
    headers = [(name, value) for name, value in reply.headers.items() if name not in FRESH]
    return reply.status_code, reply.content, headers


async def test_disabled_it_is_like_any_unknown_path_to_the_byte(
    gateway: Any, client: httpx.AsyncClient, books: Any
) -> None:
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as stranger:
        for asker, status in ((client, 404), (stranger, 401)):
            for method in ("GET", "HEAD", "POST"):
                page, unknown = [await asker.request(method, path) for path in ("/playground", "/nowhere")]
                assert page.status_code == status
                assert telling(page) == telling(unknown)
    assert {row["endpoint"] for row in await books.rows(6)} == {"unknown"}


async def test_enabled_it_is_served_without_a_key_and_with_its_headers(
    asyncio_loop: Any, settings: Any, run_gateway: Any
) -> None:
    enabled = settings.model_copy(update={"playground_enabled": True})
    async with (
        run_gateway(enabled) as gateway,
        httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as stranger,
    ):
        reply = await stranger.get("/playground")
        head = await stranger.head("/playground")
        assert (await stranger.get("/playground/")).status_code == 401
        # As with every page: what is no GET is asked for a key before anything else is said.
        assert (await stranger.post("/playground")).status_code == 401
    body, headers = load_playground()
    assert (reply.status_code, reply.content, head.status_code, head.content) == (200, body, 200, b"")
    for answer in (reply, head):
        assert headers.items() <= dict(answer.headers).items()
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["x-request-id"]
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
