"""The reads show exactly the effective set, and nothing of what others run."""

from typing import Any

import httpx
import pytest
import trio


async def names(client: httpx.AsyncClient, key: str) -> set[str]:
    reply = await client.get("/api/tags", headers={"authorization": f"Bearer {key}"})
    assert reply.status_code == 200
    return {model["name"] for model in reply.json()["models"]}


async def test_tags_hold_exactly_the_effective_set(client: httpx.AsyncClient, make_key: Any, key: str) -> None:
    installed = {"tiny:latest", "tiny:1b", "acme/other:latest", "thinker:latest", "embed:latest"}
    assert await names(client, key) == installed
    narrow = await make_key("narrow", allow_all_models=False, models=["tiny:1b", "ghost:latest"])
    assert await names(client, narrow) == {"tiny:1b"}
    nothing = await make_key("nothing", allow_all_models=False)
    assert await names(client, nothing) == set()


async def test_ps_shows_only_what_the_key_may_use(client: httpx.AsyncClient, make_key: Any, key: str) -> None:
    await client.post("/api/generate", json={"model": "acme/other", "prompt": "x", "stream": False})
    everything = await client.get("/api/ps")
    assert "acme/other:latest" in everything.text
    narrow = await make_key("narrow", allow_all_models=False, models=["tiny:1b"])
    reply = await client.get("/api/ps", headers={"authorization": f"Bearer {narrow}"})
    assert reply.json() == {"models": []}


async def test_show_is_redacted_and_only_for_permitted_models(client: httpx.AsyncClient, make_key: Any) -> None:
    for body in ({"model": "tiny"}, {"name": "tiny"}):
        reply = await client.post("/api/show", json=body)
        assert reply.status_code == 200
        assert not {"modelfile", "system", "template", "license", "messages"} & set(reply.json())
        assert reply.json()["model_info"]
    narrow = await make_key("narrow", allow_all_models=False, models=["tiny:1b"])
    reply = await client.post("/api/show", json={"model": "tiny"}, headers={"authorization": f"Bearer {narrow}"})
    assert reply.status_code == 403


async def test_version_and_banner(client: httpx.AsyncClient, gateway: Any) -> None:
    assert "version" in (await client.get("/api/version")).json()
    async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as stranger:
        assert (await stranger.get("/")).text == "neuronetz is running"
        assert (await stranger.head("/")).status_code == 200
        assert (await stranger.get("/api/version")).status_code == 401


@pytest.mark.parametrize("path", ["/api/version", "/api/tags"])
async def test_head_answers_like_get_without_a_body(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.head(path)
    assert reply.status_code == 200
    assert reply.content == b""


async def test_models_that_appear_are_picked_up_and_models_that_vanish_are_denied(
    client: httpx.AsyncClient, mock_ollama: Any, key: str
) -> None:
    mock_ollama.configure(models=("new:latest",))
    with trio.fail_after(5):
        while await names(client, key) != {"new:latest"}:
            await trio.sleep(0.05)
    reply = await client.post("/api/generate", json={"model": "tiny", "prompt": "x"})
    assert reply.status_code == 403


async def served(client: httpx.AsyncClient, ask: dict[str, Any]) -> None:
    """Fails unless it is served soon: what is known of the models is so short-lived here that it may run out."""
    with trio.fail_after(5):
        while (await client.post("/api/generate", json=ask)).status_code != 200:
            await trio.sleep(0.02)


async def test_an_upstream_without_models_or_one_that_is_stale_denies(
    asyncio_loop: Any, settings: Any, mock_ollama: Any, run_gateway: Any, key: str
) -> None:
    quick = settings.model_copy(update={"model_discovery_cache_ttl_s": 0.5})
    async with (
        run_gateway(quick) as gateway,
        httpx.AsyncClient(
            base_url=gateway.base_url, trust_env=False, headers={"authorization": f"Bearer {key}"}
        ) as client,
    ):
        ask = {"model": "tiny", "prompt": "x", "stream": False}
        await served(client, ask)
        mock_ollama.configure(fail_reads="500")
        with trio.fail_after(5):
            while gateway.discovery.fresh:
                await trio.sleep(0.05)
        assert (await client.post("/api/generate", json=ask)).status_code == 403
        assert (await gateway.readiness()).checks["models"] == "stale"
        mock_ollama.configure(fail_reads=None)
        with trio.fail_after(5):
            while not gateway.discovery.fresh:
                await trio.sleep(0.05)
        await served(client, ask)
