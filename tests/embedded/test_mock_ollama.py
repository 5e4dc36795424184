"""The mock Ollama over real sockets: shapes, traps, failures, and clients that leave."""

import json
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import ollama
import pytest
import trio

from neuronetz.embedded.mock_replies import HIDDEN_SYSTEM, SECRET_TEXT, completion
from neuronetz.embedded.ollama import MockOllama, MockOptions, run_mock_ollama
from tests.patience import until

HELLO = [{"role": "user", "content": "hello, how are you today?"}]
TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$")


@pytest.fixture
async def http(mock_ollama: MockOllama) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=mock_ollama.url, timeout=5) as client:
        yield client


def chat(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **fields}


def lines_of(reply: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in reply.text.splitlines()]


@asynccontextmanager
async def raw_request(
    mock: MockOllama, body: dict[str, Any], path: str = "/api/chat"
) -> AsyncIterator[trio.SocketStream]:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
    async with await trio.open_tcp_stream(mock.host, mock.port) as stream:
        await stream.send_all(head.encode() + data)
        yield stream


async def test_a_chat_streams_by_default_in_the_exact_shape(http: httpx.AsyncClient) -> None:
    reply = await http.post("/api/chat", json={"model": "tiny", "messages": HELLO})
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.headers["transfer-encoding"] == "chunked"
    *tokens, last = lines_of(reply)
    assert len(tokens) == 16
    for line in tokens:
        assert set(line) == {"model", "created_at", "message", "done"}
        assert set(line["message"]) == {"role", "content"}
        assert line["model"] == "tiny"
        assert TIMESTAMP.match(line["created_at"])
        assert line["done"] is False
    assert "".join(line["message"]["content"] for line in tokens) == completion(16)
    assert last["done"] is True
    assert last["done_reason"] == "stop"
    assert last["eval_count"] == 16
    assert last["prompt_eval_count"] == len(HELLO[0]["content"]) // 4
    durations = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    assert all(isinstance(last[name], int) and last[name] > 0 for name in durations)
    assert "context" not in last


async def test_a_whole_reply_holds_the_same_text(http: httpx.AsyncClient) -> None:
    reply = await http.post("/api/generate", json={"model": "tiny", "prompt": "hello there", "stream": False})
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    assert reply.json()["response"] == completion(16)
    assert reply.json()["done"] is True
    assert reply.json()["context"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("predict", "tokens", "reason"), [(5, 5, "length"), (16, 16, "stop"), (999, 16, "stop")])
async def test_num_predict_is_honoured(
    http: httpx.AsyncClient, mock_ollama: MockOllama, stream: bool, predict: int, tokens: int, reason: str
) -> None:
    reply = await http.post("/api/chat", json=chat(stream=stream, options={"num_predict": predict}))
    last = lines_of(reply)[-1]
    assert (last["eval_count"], last["done_reason"]) == (tokens, reason)
    assert mock_ollama.stats.tokens == tokens


async def test_thinking_is_on_by_default_and_counted(http: httpx.AsyncClient, mock_ollama: MockOllama) -> None:
    mock_ollama.configure(thinking=True)
    lines = lines_of(await http.post("/api/chat", json=chat()))
    assert [bool(line["message"].get("thinking")) for line in lines[:5]] == [True] * 4 + [False]
    assert lines[-1]["eval_count"] == 20
    lines = lines_of(await http.post("/api/chat", json=chat(think=False)))
    assert lines[-1]["eval_count"] == 16
    whole = (await http.post("/api/chat", json=chat(stream=False))).json()
    assert whole["message"]["thinking"] == completion(4)


async def test_the_prompt_count_can_be_absent(http: httpx.AsyncClient, mock_ollama: MockOllama) -> None:
    mock_ollama.configure(omit_prompt_count=True)
    assert "prompt_eval_count" not in lines_of(await http.post("/api/chat", json=chat()))[-1]


async def test_a_tool_is_called_when_told_to(http: httpx.AsyncClient, mock_ollama: MockOllama) -> None:
    mock_ollama.configure(tool_calls=True)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    lines = lines_of(await http.post("/api/chat", json=chat(tools=tools)))
    assert lines[-2]["message"]["tool_calls"][0]["function"]["name"] == "weather"


async def test_empty_prompts_load_and_unload(http: httpx.AsyncClient) -> None:
    loaded = await http.post("/api/chat", json={"model": "tiny", "messages": []})
    assert loaded.json()["done_reason"] == "load"
    assert [entry["name"] for entry in (await http.get("/api/ps")).json()["models"]] == ["tiny:latest"]
    unloaded = await http.post("/api/generate", json={"model": "tiny", "keep_alive": 0})
    assert unloaded.json()["done_reason"] == "unload"
    assert (await http.get("/api/ps")).json() == {"models": []}


async def test_the_list_has_an_embedding_and_a_cloud_model(http: httpx.AsyncClient) -> None:
    models = {entry["name"]: entry for entry in (await http.get("/api/tags")).json()["models"]}
    local = {"tiny:latest", "tiny:1b", "acme/other:latest", "thinker:latest", "embed:latest"}
    assert set(models) == local | {"big:cloud"}
    assert models["big:cloud"]["remote_host"]
    assert models["big:cloud"]["remote_model"] == "big"
    assert "remote_host" not in models["tiny:latest"]
    assert models["embed:latest"]["capabilities"] == ["embedding"]
    assert models["thinker:latest"]["capabilities"] == ["completion", "tools", "thinking"]
    assert "thinking" not in models["tiny:latest"]["capabilities"]


async def test_show_holds_what_a_gateway_should_hide(http: httpx.AsyncClient) -> None:
    for body in ({"model": "tiny"}, {"name": "tiny:latest"}):
        shown = (await http.post("/api/show", json=body)).json()
        assert HIDDEN_SYSTEM in shown["system"]
        assert {"modelfile", "template", "license", "messages", "projector_info", "model_info"} <= set(shown)


async def test_embeddings_depend_on_the_text_alone(http: httpx.AsyncClient) -> None:
    reply = (await http.post("/api/embed", json={"model": "embed", "input": ["a", "b", "a"]})).json()
    first, second, third = reply["embeddings"]
    assert first == third != second
    assert abs(sum(value * value for value in first) - 1) < 1e-5
    assert reply["prompt_eval_count"] == 3
    older = (await http.post("/api/embeddings", json={"model": "embed", "prompt": "a"})).json()
    assert older == {"embedding": first}
    assert (await http.post("/api/embed", json={"model": "embed", "input": []})).json()["embeddings"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", "/api/chat", chat() | {"model": "nope"}, 404, '{"error":"model \'nope\' not found"}'),
        ("POST", "/api/chat", {"messages": HELLO}, 400, '{"error":"model is required"}'),
        ("POST", "/api/chat", None, 400, '{"error":"missing request body"}'),
        ("POST", "/api/chat", chat() | {"model": "embed"}, 400, '{"error":"\\"embed\\" does not support chat"}'),
        ("POST", "/api/embed", {"model": "embed", "input": 5}, 400, '{"error":"invalid input type"}'),
        ("POST", "/api/show", {"model": "nope"}, 404, '{"error":"model \'nope\' not found"}'),
        ("GET", "/api/chat", None, 405, "405 method not allowed"),
        ("POST", "/api/tags", {}, 405, "405 method not allowed"),
        ("GET", "/api/nope", None, 404, "404 page not found"),
        ("GET", "/", None, 200, "Ollama is running"),
        ("HEAD", "/api/tags", None, 200, ""),
    ],
)
async def test_errors_have_ollamas_status_and_text(
    http: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None, status: int, text: str
) -> None:
    reply = await http.request(method, path, json=body) if body is not None else await http.request(method, path)
    assert (reply.status_code, reply.text) == (status, text)


async def test_a_foreign_host_is_forbidden(http: httpx.AsyncClient) -> None:
    reply = await http.get("/api/tags", headers={"Host": "rebound.example.com"})
    assert (reply.status_code, reply.text) == (403, "")


async def test_a_smuggled_model_really_runs(http: httpx.AsyncClient) -> None:
    body = (
        b'{"model":"tiny","MODEL":"acme/other","messages":[{"role":"user","content":"hi"}],"\xc5\xbftream":false}'
    )
    reply = await http.post("/api/chat", content=body)
    assert reply.json()["model"] == "acme/other"


async def test_the_debug_field_shows_the_hidden_prompt(http: httpx.AsyncClient) -> None:
    reply = await http.post("/api/chat", json=chat(_debug_render_only=True))
    assert HIDDEN_SYSTEM in reply.json()["_debug_info"]["rendered_template"]


async def test_a_cloud_name_runs_whatever_is_installed(http: httpx.AsyncClient) -> None:
    reply = await http.post("/api/chat", json=chat(stream=False) | {"model": "never-heard-of:CLOUD"})
    assert reply.json()["remote_host"]


async def test_a_broken_request_is_answered_and_the_connection_closed(mock_ollama: MockOllama) -> None:
    async with await trio.open_tcp_stream(mock_ollama.host, mock_ollama.port) as stream:
        await stream.send_all(b"this is no HTTP\r\n\r\n")
        received = b"".join([part async for part in stream])
    assert received.startswith(b"HTTP/1.1 400 ")


async def test_one_connection_serves_request_after_request(mock_ollama: MockOllama) -> None:
    body = json.dumps(chat(stream=False)).encode()
    one = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    last = one.replace(b"Host:", b"Connection: close\r\nHost:")
    async with await trio.open_tcp_stream(mock_ollama.host, mock_ollama.port) as stream:
        await stream.send_all(one + one + last)
        received = b"".join([part async for part in stream])
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert mock_ollama.stats.finished == 3


async def test_the_official_client_lists_shows_chats_generates_and_embeds(mock_ollama: MockOllama) -> None:
    def use() -> None:
        with ollama.Client(host=mock_ollama.url) as client:
            assert "tiny:latest" in [model.model for model in client.list().models]
            assert client.show("tiny").capabilities == ["completion", "tools"]
            parts = list(client.chat("tiny", HELLO, stream=True))
            assert "".join(part.message.content or "" for part in parts) == completion(16)
            assert parts[-1].eval_count == 16
            assert client.chat("tiny", HELLO).message.content == completion(16)
            assert client.generate("tiny", "hello").response == completion(16)
            assert len(client.embed("embed", ["a", "b"]).embeddings) == 2
            assert [model.model for model in client.ps().models] == ["embed:latest", "tiny:latest"]
            with pytest.raises(ollama.ResponseError) as caught:
                client.chat("nope", HELLO)
            assert caught.value.status_code == 404

    await trio.to_thread.run_sync(use)


# Failures


@pytest.mark.parametrize("status", [500, 503, 400])
async def test_a_status_on_demand(http: httpx.AsyncClient, mock_ollama: MockOllama, status: int) -> None:
    reply = await http.post("/api/chat", json=chat(f"[[fail:{status}]]"))
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    assert (mock_ollama.stats.failed, mock_ollama.stats.open) == (1, 0)


@pytest.mark.parametrize("failure", ["reset", "close"])
@pytest.mark.parametrize("stream", [True, False])
async def test_breaking_off_in_mid_line(mock_ollama: MockOllama, failure: str, stream: bool) -> None:
    async with raw_request(
        mock_ollama, chat(f"[[fail:{failure}]] [[after:2]] [[tps:200]]", stream=stream)
    ) as wire:
        received = b""
        with trio.fail_after(2):
            try:
                while part := await wire.receive_some():
                    received += part
                ended = "close"
            except trio.BrokenResourceError:
                ended = "reset"
    assert ended == failure
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert not received.rstrip().endswith(b"}")
    if stream:
        assert received.count(b'"done":false}') == 2
    with trio.fail_after(2):
        await mock_ollama.stats.wait_for(lambda stats: stats.failed == 1)


@pytest.mark.parametrize(
    ("failure", "lines", "done"),
    [("garbage", 3 + 1 + 13 + 1, True), ("error_line", 3 + 1, False), ("eof", 3, False)],
)
async def test_a_stream_that_goes_wrong_but_is_proper_http(
    http: httpx.AsyncClient, failure: str, lines: int, done: bool
) -> None:
    reply = await http.post("/api/chat", json=chat(f"[[fail:{failure}]]"))
    found = reply.text.splitlines()
    assert reply.status_code == 200
    assert len(found) == lines
    assert (json.loads(found[-1]).get("done") is True) is done
    if failure == "garbage":
        with pytest.raises(ValueError, match="Expecting value"):
            json.loads(found[3])
    if failure == "error_line":
        assert json.loads(found[-1]) == {"error": SECRET_TEXT}


async def test_a_failure_behind_the_last_token_still_happens(http: httpx.AsyncClient) -> None:
    reply = await http.post("/api/chat", json=chat("[[fail:eof]] [[after:99]]"))
    assert [line["done"] for line in lines_of(reply)] == [False] * 16


@pytest.mark.parametrize(
    ("failure", "status", "body"),
    [("garbage", 200, b"this is <not> JSON\n"), ("eof", 200, b""), ("error_line", 500, None)],
)
async def test_a_whole_reply_that_goes_wrong(
    http: httpx.AsyncClient, failure: str, status: int, body: bytes | None
) -> None:
    reply = await http.post("/api/chat", json=chat(f"[[fail:{failure}]]", stream=False))
    assert reply.status_code == status
    assert body is None or reply.content == body


async def test_refusing_resets_at_once(http: httpx.AsyncClient, mock_ollama: MockOllama) -> None:
    mock_ollama.configure(fail="refuse")
    with pytest.raises(httpx.TransportError):
        await http.post("/api/chat", json=chat())
    mock_ollama.configure(fail="refuse", fail_requests=1)
    with pytest.raises(httpx.TransportError):
        await http.post("/api/chat", json=chat())
    assert (await http.post("/api/chat", json=chat())).status_code == 200


async def test_the_next_requests_fail_and_then_no_more(http: httpx.AsyncClient, mock_ollama: MockOllama) -> None:
    mock_ollama.configure(fail="500", fail_requests=2)
    statuses = [(await http.post("/api/chat", json=chat())).status_code for _ in range(4)]
    assert statuses == [500, 500, 200, 200]


@pytest.mark.parametrize("failure", ["500", "garbage", "close", "reset"])
async def test_reading_fails_on_demand_too(http: httpx.AsyncClient, mock_ollama: MockOllama, failure: str) -> None:
    mock_ollama.configure(fail_reads=failure)
    try:
        reply = await http.get("/api/tags")
    except httpx.TransportError:
        assert failure in ("close", "reset")
    else:
        assert reply.status_code == 500 or reply.text.startswith("<html>")
    assert (await http.post("/api/chat", json=chat())).status_code == 200


async def test_a_stopped_mock_refuses_connections_until_it_is_started(
    http: httpx.AsyncClient, mock_ollama: MockOllama
) -> None:
    port = mock_ollama.port
    async with raw_request(mock_ollama, chat("[[tps:10]]")) as wire:
        await mock_ollama.stats.wait_for(lambda stats: stats.open == 1)
        await mock_ollama.stop()
        with trio.fail_after(1), pytest.raises(httpx.ConnectError):
            await http.get("/")
        with trio.fail_after(1):
            try:
                while await wire.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
    assert mock_ollama.stats.aborted == 1
    await mock_ollama.start()
    assert mock_ollama.port == port
    assert (await http.get("/")).status_code == 200


async def test_the_end_of_the_block_cuts_a_stream() -> None:
    with trio.fail_after(2):
        async with run_mock_ollama(MockOptions(tokens_per_second=1)) as mock, raw_request(mock, chat()) as wire:
            await wire.receive_some()
    with pytest.raises(OSError, match=r"all attempts to connect .* failed"):
        await trio.open_tcp_stream(mock.host, mock.port)


# Clients that leave


@pytest.mark.parametrize(
    "text",
    ["[[tps:50]] [[tokens:5000]]", "[[ttft:60]]", "[[load:60]]", "[[fail:stall]]", "[[fail:stall_stream]]"],
)
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_noticed_within_100_ms(
    mock_ollama: MockOllama, text: str, how: str, stream: bool
) -> None:
    async with raw_request(mock_ollama, chat(text, stream=stream)) as wire:
        await mock_ollama.stats.wait_for(lambda stats: stats.open == 1)
        if stream and ("tps" in text or "stall_stream" in text):
            await wire.receive_some()
        if how == "reset":
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until(lambda: mock_ollama.stats.aborted == 1, 0.1)
    assert (mock_ollama.stats.open, mock_ollama.stats.finished) == (0, 0)
    generated = mock_ollama.stats.tokens
    await trio.sleep(0.05)
    assert mock_ollama.stats.tokens == generated


async def test_a_client_that_stops_reading_and_leaves_aborts_an_unpaced_stream(mock_ollama: MockOllama) -> None:
    async with raw_request(mock_ollama, chat("[[tokens:1000000]]")):
        await mock_ollama.stats.wait_for(lambda stats: stats.tokens > 50)
    with trio.fail_after(5):
        await mock_ollama.stats.wait_for(lambda stats: stats.aborted == 1)


async def test_the_pace_is_kept(mock_ollama: MockOllama) -> None:
    began = trio.current_time()
    async with httpx.AsyncClient(base_url=mock_ollama.url) as client:
        await client.post("/api/chat", json=chat("[[tps:100]] [[tokens:11]] [[ttft:0.05]]"))
    assert trio.current_time() - began >= 0.15


async def test_only_the_first_request_waits_for_the_model(
    http: httpx.AsyncClient, mock_ollama: MockOllama
) -> None:
    mock_ollama.configure(load_delay_s=0.05)
    first = lines_of(await http.post("/api/chat", json=chat()))[-1]
    second = lines_of(await http.post("/api/chat", json=chat()))[-1]
    assert first["load_duration"] == 50_000_000
    assert second["load_duration"] < 50_000_000


# The mock's own endpoints


async def test_stats_tell_what_was_received(http: httpx.AsyncClient) -> None:
    await http.post("/api/chat", json=chat("remember me"), headers={"Authorization": "Bearer leaked"})
    await http.post("/api/pull", json={"model": "evil"})
    stats = (await http.get("/_mock/stats")).json()
    assert stats["requests"] == {"/api/chat": 1, "/api/pull": 1}
    assert (stats["open"], stats["finished"], stats["aborted"], stats["tokens"]) == (0, 1, 0, 16)
    seen = stats["last"][0]
    assert seen["headers"]["authorization"] == "Bearer leaked"
    assert "remember me" in seen["body"]


async def test_only_the_last_twenty_requests_are_kept(http: httpx.AsyncClient, mock_ollama: MockOllama) -> None:
    for _ in range(25):
        await http.get("/api/version")
    assert len(mock_ollama.stats.last) == 20
    assert mock_ollama.stats.requests["/api/version"] == 25


async def test_options_change_over_http(http: httpx.AsyncClient, mock_ollama: MockOllama) -> None:
    reply = await http.post("/_mock/configure", json={"tokens": 3, "models": ["new:1b"]})
    assert reply.json()["tokens"] == 3
    assert [entry["name"] for entry in (await http.get("/api/tags")).json()["models"]] == ["new:1b"]
    assert len(lines_of(await http.post("/api/generate", json={"model": "new:1b", "prompt": "x"}))) == 4
    assert (await http.post("/_mock/configure", json={"no_such": 1})).status_code == 400
    assert (await http.post("/_mock/configure", json={"fail": "explode"})).status_code == 400
    assert mock_ollama.options.tokens == 3


async def test_a_wrong_option_in_process_is_an_error(mock_ollama: MockOllama) -> None:
    with pytest.raises(msgspec.ValidationError):
        mock_ollama.configure(tokens=-1)
