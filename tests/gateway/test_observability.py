"""What operators see: metrics with bounded labels, a request id everywhere, no secret anywhere."""

import re
from typing import Any

import httpx
import pytest
import structlog

MARKER = "xyzzy-a-prompt-that-nobody-may-log"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": MARKER}], "stream": False}


async def test_the_metrics_listener_is_apart_and_counts_requests_and_tokens(
    client: httpx.AsyncClient, gateway: Any
) -> None:
    reply = (await client.post("/api/chat", json=CHAT)).json()
    async with httpx.AsyncClient(trust_env=False) as prometheus:
        page = await prometheus.get(gateway.metrics_url)
        assert page.headers["content-type"].startswith("text/plain")
        assert (await prometheus.get(gateway.metrics_url + "/else")).status_code == 404
    assert 'gateway_requests_total{model="tiny:latest",status="200",tenant="acme"} 1.0' in page.text
    assert (
        f'gateway_tokens_total{{direction="completion",model="tiny:latest",tenant="acme"}} {float(reply["eval_count"])}'
        in page.text
    )
    assert 'gateway_request_duration_seconds_count{model="tiny:latest",tenant="acme"} 1.0' in page.text
    for gauge in ("gateway_leases 0.0", "gateway_audit_ring_rows", 'gateway_breaker_state{state="closed"} 1.0'):
        assert gauge in page.text
    assert 'gateway_service_up{service="heartbeat"} 1.0' in page.text
    assert (await client.get("/metrics")).status_code == 404


async def test_the_time_to_the_first_token_is_counted_of_streams_alone(
    client: httpx.AsyncClient, gateway: Any
) -> None:
    def sample(part: str) -> float | None:
        labels = {"model": "tiny:latest", "tenant": "acme"}
        found: float | None = gateway.metrics.registry.get_sample_value(
            f"gateway_first_token_seconds_{part}", labels
        )
        return found

    assert (await client.post("/api/chat", json=CHAT)).status_code == 200
    assert sample("count") is None
    slow = [{"role": "user", "content": "[[ttft:0.2]] [[tokens:8]] [[tps:20]] rivers"}]
    assert (await client.post("/api/chat", json=CHAT | {"messages": slow, "stream": True})).status_code == 200
    assert sample("count") == 1
    whole = gateway.metrics.registry.get_sample_value(
        "gateway_request_duration_seconds_sum", {"model": "tiny:latest", "tenant": "acme"}
    )
    first = sample("sum")
    assert first is not None
    assert 0.2 <= first < whole - 0.2  # of 0.4 for the tokens after it


async def test_unknown_models_and_paths_do_not_become_labels(client: httpx.AsyncClient, gateway: Any) -> None:
    for n in range(5):
        await client.post("/api/chat", json=CHAT | {"model": f"made-up-{n}"})
        await client.get(f"/made-up-{n}")
    page = gateway.exposition().decode()
    assert "made-up" not in page
    assert 'gateway_requests_total{model="none",status="403",tenant="acme"} 5.0' in page


async def test_no_prompt_key_or_upstream_text_reaches_the_logs(
    client: httpx.AsyncClient, gateway: Any, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuronetz.embedded.mock_replies import SECRET_TEXT

    with structlog.testing.capture_logs() as logs:
        await client.post("/api/chat", json=CHAT)
        await client.post("/api/chat", json=CHAT | {"options": {"temperature": MARKER}})
        await client.post("/api/chat", content=f'{{"{MARKER}'.encode())
        await client.post("/api/chat", json=CHAT | {"model": MARKER})
        await client.post(f"/{MARKER}?{MARKER}", headers={"x-request-id": MARKER, "user-agent": MARKER})
        await client.get("/api/tags", headers={"authorization": f"Bearer {MARKER}"})
        async with httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as other:
            await other.get("/api/tags", headers={"x-api-key": MARKER})
            await other.post("/api/chat", json=CHAT, headers={"x-api-key": key})
        for failure in ("500", "error_line", "garbage", "reset"):
            body = CHAT | {
                "messages": [{"role": "user", "content": f"{MARKER} [[fail:{failure}]]"}],
                "stream": True,
            }
            await client.post("/api/chat", json=body)

        def explode(*_: Any) -> str:
            raise RuntimeError("a bug")

        monkeypatch.setattr(gateway.discovery, "resolve", explode)
        await client.post("/api/chat", json=CHAT)
    text = repr(logs)
    assert len(logs) >= 10
    assert MARKER not in text
    assert key not in text
    assert key[12:] not in text
    assert SECRET_TEXT not in text


async def test_every_reply_and_every_log_line_of_a_request_bear_its_id(
    client: httpx.AsyncClient, gateway: Any
) -> None:
    with structlog.testing.capture_logs() as logs:
        replies = [
            await client.post("/api/chat", json=CHAT),
            await client.post("/api/chat", content=b"{"),
            await client.get("/api/tags"),
            await client.get("/nowhere"),
            await client.get("/api/tags", headers={"authorization": "Bearer wrong"}),
        ]
        pages = [await client.get(path) for path in ("/", "/healthz", "/readyz")]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert len({reply.headers["x-request-id"] for reply in (*replies, *pages)}) == 8
    assert all(re.fullmatch(r"[0-9a-f-]{36}", id_) for id_ in ids)
    logged = {line.get("request_id") for line in logs if line["event"].startswith("request.")}
    assert logged == set(ids)


async def test_readyz_names_what_is_wrong_by_class_alone(client: httpx.AsyncClient, gateway: Any) -> None:
    ready = await client.get("/readyz")
    assert ready.status_code == 200
    state = ready.json()
    assert state["status"] == "ready"
    assert set(state["checks"]) == {"postgres", "redis", "audit", "models", "upstream"}
    assert set(state["services"].values()) == {"running"}
    assert (await client.get("/healthz")).json() == {"status": "ok"}
