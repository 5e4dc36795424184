"""The models in OpenAI's shape: exactly the effective set, under names that hold slashes and colons."""

from typing import Any

import httpx
import pytest
import trio

DENIED = b'{"error":{"message":"model not available for this key","type":"permission_error","param":null,"code":"model_not_available"}}'
OTHER = {"id": "acme/other:latest", "object": "model", "created": 1767225600, "owned_by": "acme"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def ids(client: httpx.AsyncClient, key: str) -> list[str]:
    reply = await client.get("/v1/models", headers=bearer(key))
    assert reply.status_code == 200
    assert reply.json()["object"] == "list"
    return [model["id"] for model in reply.json()["data"]]


async def exchanged(gateway: Any, key: str, target: bytes, method: bytes = b"GET") -> tuple[int, bytes]:
    """Status and body of the reply to a target that is sent as it is, which HTTP libraries would normalise."""
    port = int(gateway.base_url.rsplit(":", 1)[1])
    head = b"%s %s HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n"
    reply = b""
    with trio.fail_after(5):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(head % (method, target, key.encode()))
            async for data in stream:
                reply += data
    start, _, body = reply.partition(b"\r\n\r\n")
    return int(start.split()[1]), body


async def test_the_list_is_exactly_the_effective_set(
    client: httpx.AsyncClient, make_key: Any, books: Any, key: str
) -> None:
    assert set(await ids(client, key)) == {
        "tiny:latest",
        "tiny:1b",
        "acme/other:latest",
        "embed:latest",
        "thinker:latest",
    }
    assert OTHER in (await client.get("/v1/models")).json()["data"]
    narrow = await make_key("narrow", allow_all_models=False, models=["tiny:1b", "ghost:latest"])
    assert await ids(client, narrow) == ["tiny:1b"]
    nothing = await make_key("nothing", allow_all_models=False)
    assert await ids(client, nothing) == []
    for row in await books.rows(4):
        assert (row["endpoint"], row["dialect"], row["model"], row["status"]) == (
            "/v1/models",
            "openai",
            None,
            200,
        )
    await books.settled()


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/models/acme/other:latest",
        b"/v1/models/acme%2Fother:latest",
        b"/v1/models/acme%2fother%3Alatest",
        b"/v1/models/acme/other",
        b"/v1/models/%41CME/Other",
        b"/v1/models/registry.ollama.ai/acme/other:latest",
        b"/v1/models/acme/other:latest?limit=1",
        b"http://g/v1/models/acme%2Fother:latest",
    ],
)
async def test_one_model_is_found_however_its_name_is_spelled(
    gateway: Any, key: str, books: Any, target: bytes
) -> None:
    status, body = await exchanged(gateway, key, target)
    assert status == 200
    assert httpx.Response(200, content=body).json() == OTHER
    [row] = await books.rows(1)
    assert (row["endpoint"], row["dialect"]) == ("/v1/models/{model}", "openai")
    assert (row["model"], row["outcome"]) == ("acme/other:latest", "completed")
    await books.settled()


@pytest.mark.parametrize(
    ("target", "noted"),
    [
        (b"ghost", "ghost"),
        (b"acme%252Fother:latest", "acme%2Fother:latest"),
        (b"acme//other:latest", "acme//other:latest"),
        (b"acme/other:latest/", "acme/other:latest/"),
        (b"other", "other"),
        (b"../../api/pull", "../../api/pull"),
        (b"..%2F..%2Fapi%2Ftags", "../../api/tags"),
        (b"{model}", "{model}"),
        (b"two%20words", "two words"),
        (b"%20", " "),
        (b"tiny%00", "tiny"),
        (b"tiny%0d%0aX-Evil:%201", "tinyX-Evil: 1"),
        (b"%1b[31mred", "[31mred"),
        (b"%ff%fe", "\ufffd\ufffd"),
        (b"%c3%a4", "\u00e4"),
        (b"%e2%84%aa", "\u212a"),
        (b"%zz", "%zz"),
        (b"a" * 30_000, "a" * 200),
    ],
)
async def test_what_is_not_installed_is_the_same_403_whatever_it_is_called(
    gateway: Any, key: str, books: Any, mock_ollama: Any, target: bytes, noted: str
) -> None:
    assert await exchanged(gateway, key, b"/v1/models/" + target) == (403, DENIED)
    [row] = await books.rows(1)
    assert (row["endpoint"], row["outcome"], row["model"]) == ("/v1/models/{model}", "model_denied", noted)
    assert set(mock_ollama.stats.requests) <= {"/api/tags", "/"}
    await books.settled()


async def test_installed_but_not_permitted_is_the_same_403_to_the_byte(gateway: Any, make_key: Any) -> None:
    narrow = await make_key("narrow", allow_all_models=False, models=["tiny:1b", "ghost:latest"])
    for name in (b"acme/other", b"tiny", b"ghost", b"nowhere"):
        assert await exchanged(gateway, narrow, b"/v1/models/" + name) == (403, DENIED)
    assert (await exchanged(gateway, narrow, b"/v1/models/tiny:1b"))[0] == 200


async def test_spaces_around_a_name_mean_nothing_as_in_a_body(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/%20tiny%20")).json()["id"] == "tiny:latest"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny"])
async def test_head_answers_like_get_without_a_body(client: httpx.AsyncClient, path: str) -> None:
    reply, whole = await client.head(path), await client.get(path)
    assert reply.status_code == 200
    assert reply.content == b""
    assert reply.headers["content-length"] == whole.headers["content-length"] == str(len(whole.content))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "/v1/models/tiny", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/Models", 404),
    ],
)
async def test_other_methods_and_near_misses_are_refused(
    client: httpx.AsyncClient, books: Any, method: str, path: str, status: int
) -> None:
    reply = await client.request(method, path)
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    if status == 405:
        assert reply.headers["allow"] == "GET, HEAD"
    assert len(await books.rows(1)) == 1


async def test_a_list_that_is_not_known_is_empty_and_its_models_are_denied(
    asyncio_loop: Any, settings: Any, mock_ollama: Any, run_gateway: Any, key: str
) -> None:
    quick = settings.model_copy(update={"model_discovery_cache_ttl_s": 0.5})
    async with (
        run_gateway(quick) as gateway,
        httpx.AsyncClient(base_url=gateway.base_url, trust_env=False, headers=bearer(key)) as client,
    ):
        with trio.fail_after(5):  # what is known is so short-lived here that it may run out
            while (await client.get("/v1/models/tiny")).status_code != 200:
                await trio.sleep(0.02)
        mock_ollama.configure(fail_reads="500")
        with trio.fail_after(5):
            while gateway.discovery.fresh:
                await trio.sleep(0.05)
        assert await ids(client, key) == []
        assert (await client.get("/v1/models/tiny")).content == DENIED


async def test_strangers_read_no_models(gateway: Any) -> None:
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as stranger:
        for path in ("/v1/models", "/v1/models/tiny"):
            reply = await stranger.get(path)
            assert reply.status_code == 401
            assert reply.json()["error"]["code"] == "invalid_api_key"
