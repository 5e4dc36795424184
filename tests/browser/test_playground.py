"""The playground in a real Chromium: what a person does with it, and what it must never do."""

import json
import os
import re
import shlex
from typing import Any

import pytest
import trio
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Route, expect

from neuronetz.web.routes import ROUTES, Kind
from tests.browser.conftest import SHOTS, Tab

ALL = [f"{route.methods[0]} {route.path}" for route in ROUTES]
STREAMED = ["POST /api/chat", "POST /api/generate", "POST /v1/chat/completions", "POST /v1/completions"]
STREAMED += ["POST /v1/responses", "POST /v1/messages"]
# As axe ranks them: of what it calls minor or moderate, opinions differ.
GRAVE = ("serious", "critical")


def body_with(card: Locator, **fields: Any) -> str:
    box = card.locator("textarea")
    body = json.dumps(json.loads(box.input_value()) | fields)
    box.fill(body)
    return body


def slow(card: Locator, marks: str) -> None:
    """Have the mock play ``marks``, in whichever field the endpoint has for a prompt."""
    body = json.loads(card.locator("textarea").input_value())
    if "messages" in body:
        body_with(card, messages=[{"role": "user", "content": marks}])
    else:
        body_with(card, **{"prompt" if "prompt" in body else "input": marks})


async def test_run_on_each_card(browse: Any, books: Any) -> None:
    def visit(tab: Tab) -> None:
        tab.enter_key()
        for endpoint in ALL:
            if endpoint in STREAMED:
                slow(tab.card(endpoint), "[[tokens:4]] [[tps:50]] rivers")
            tab.part(endpoint, "run").click()
            expect(tab.part(endpoint, "status")).to_contain_text("Complete")
            expect(tab.part(endpoint, "code")).to_have_text("200")
            expect(tab.part(endpoint, "text")).not_to_be_empty()
            expect(tab.part(endpoint, "id")).to_contain_text(re.compile("Request [0-9a-f-]{36}"))
            expect(tab.part(endpoint, "error")).to_be_hidden()
            if endpoint in STREAMED:
                expect(tab.part(endpoint, "first")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
                expect(tab.part(endpoint, "rate")).to_have_text(re.compile(r"^[\d.]+/s$"))
        assert {request.url.startswith(tab.page.url.removesuffix("/playground")) for request in tab.requests} == {
            True
        }

    await browse(visit)
    await books.rows(sum(route.kind is not Kind.PAGE for route in ROUTES))
    await books.settled()


@pytest.mark.parametrize("endpoint", STREAMED)
async def test_a_stream_is_shown_while_it_runs_and_stop_ends_it(
    browse: Any, books: Any, mock_ollama: Any, endpoint: str
) -> None:
    def visit(tab: Tab) -> int:
        tab.enter_key()
        card = tab.card(endpoint)
        slow(card, "[[tokens:2000]] [[tps:100]] rivers")
        body_with(card, model="thinker")
        tab.part(endpoint, "run").focus()
        tab.page.keyboard.press("Enter")
        expect(tab.part(endpoint, "tokens")).to_have_text(re.compile(r"≈ [2-9]\d"))
        expect(tab.part(endpoint, "text").locator(".answer")).to_contain_text("quick brown")
        if "completions" not in endpoint.removeprefix("POST /v1/chat"):
            expect(tab.part(endpoint, "text").locator(".thinking")).not_to_be_empty()
        expect(tab.part(endpoint, "stop")).to_be_focused()
        expect(tab.part(endpoint, "run")).to_be_disabled()
        tab.page.keyboard.press("Enter")
        expect(tab.part(endpoint, "status")).to_contain_text(re.compile(r"Stopped after .* pieces received"))
        expect(tab.part(endpoint, "status")).to_contain_text("no figure to confirm")
        expect(tab.part(endpoint, "run")).to_be_focused()
        expect(tab.part(endpoint, "stop")).to_be_disabled()
        return int(re.search(r"(\d+) pieces", tab.part(endpoint, "status").inner_text())[1])  # type: ignore[index]

    pieces = await browse(visit)
    await books.settled()
    assert mock_ollama.stats.aborted == 1
    [row] = await books.rows(1)
    assert row["outcome"] == "client_disconnected"
    assert pieces <= row["completion_tokens"] < 2000


async def test_after_a_stop_the_budget_says_that_the_slot_is_free_and_what_was_counted(
    browse: Any, books: Any, make_key: Any
) -> None:
    budgeted = await make_key("budgeted", budget_tokens=100_000, budget_period="day", concurrency=1)

    def visit(tab: Tab) -> int:
        status = tab.part("POST /api/chat", "status")

        def run_and_stop() -> None:
            tab.part("POST /api/chat", "run").click()
            expect(tab.part("POST /api/chat", "tokens")).to_have_text(re.compile(r"≈ \d\d"))
            tab.page.keyboard.press("Escape")

        tab.enter_key(budgeted)
        slow(tab.card("POST /api/chat"), "[[tokens:2000]] [[tps:100]] rivers")
        run_and_stop()
        # Nothing has told the page yet what was left before.
        expect(status).to_contain_text(
            re.compile(r"Slot freed, [\d,]+ reserved tokens given back; [\d,]+ of 100,000 are left")
        )
        tab.page.get_by_role("button", name="Refresh").click()
        expect(tab.page.locator("#access-status")).to_have_text(
            re.compile(r"5 models\. [\d,]+ of 100,000 tokens are left\.")
        )
        run_and_stop()
        expect(status).to_contain_text(
            re.compile(r"Slot freed, [\d,]+ tokens counted; [\d,]+ of 100,000 are left")
        )
        # The one slot of the key is free indeed.
        tab.part("POST /v1/messages", "run").click()
        expect(tab.part("POST /v1/messages", "code")).to_have_text("200")
        return int(re.search(r"([\d,]+) tokens counted", status.inner_text())[1].replace(",", ""))  # type: ignore[index]

    counted = await browse(visit)
    ended = "SELECT * FROM gateway.audit_log WHERE outcome = 'client_disconnected' ORDER BY started_at"
    with trio.fail_after(5):
        while len(rows := await books.postgres.fetch(ended)) < 2:
            await trio.sleep(0.02)
    assert counted == rows[1]["prompt_tokens"] + rows[1]["completion_tokens"]


async def test_run_and_refresh_wait_for_a_key_which_stays_in_its_field(browse: Any) -> None:
    def visit(tab: Tab) -> None:
        gated = tab.page.locator("[data-gated]")
        assert gated.count() == len(ROUTES) + 1
        for button in gated.all():
            expect(button).to_be_disabled()
        tab.enter_key("  ")
        expect(gated.first).to_be_disabled()
        tab.enter_key()
        for button in gated.all():
            expect(button).to_be_enabled()
        tab.part("GET /api/tags", "run").click()
        expect(tab.part("GET /api/tags", "code")).to_have_text("200")
        kept = tab.page.evaluate(
            "() => [localStorage.length, sessionStorage.length, document.cookie, location.href]"
        )
        assert kept == [0, 0, "", tab.page.url]
        assert tab.key not in tab.page.content()
        assert all(tab.key not in request.url for request in tab.requests)
        tab.page.get_by_role("button", name="Forget key").click()
        expect(gated.first).to_be_disabled()
        tab.enter_key()
        tab.page.reload()
        expect(tab.page.get_by_label("API key")).to_have_value("")
        expect(gated.first).to_be_disabled()

    await browse(visit)


async def test_refresh_lists_the_models_of_the_key_and_puts_them_into_the_requests(
    browse: Any, make_key: Any
) -> None:
    narrow = await make_key("narrow", allow_all_models=False, models=["acme/other:latest", "embed:latest"])

    def visit(tab: Tab) -> None:
        tab.enter_key(narrow)
        tab.page.get_by_label("API key").press("Enter")
        expect(tab.page.locator("#access-status")).to_have_text("2 models.")
        assert tab.page.locator("#model option").all_inner_texts() == ["acme/other:latest", "embed:latest"]
        expect(tab.page.locator("#model")).to_have_value("acme/other:latest")
        expect(tab.page.locator("#embedder")).to_have_value("embed:latest")
        for endpoint in ("POST /api/chat", "POST /v1/embeddings", "GET /v1/models/{model}"):
            tab.part(endpoint, "run").click()
            expect(tab.part(endpoint, "code")).to_have_text("200")
        tab.page.locator("#model").select_option("embed:latest")
        expect(tab.part("POST /v1/messages", "body")).to_have_value(re.compile('"model": "embed:latest"'))
        # The base URL is text: there is no field into which anything could fill another address.
        expect(tab.page.locator("#origin")).to_have_text(tab.page.url.removesuffix("/playground"))
        assert (
            tab.page.locator("#origin").evaluate("node => node.matches('input, textarea, [contenteditable]')")
            is False
        )

    await browse(visit)


@pytest.mark.parametrize("endpoint", ["POST /api/chat", "POST /v1/responses", "GET /v1/models/{model}"])
async def test_the_copied_curl_is_what_run_sends(browse: Any, gateway: Any, key: str, endpoint: str) -> None:
    def visit(tab: Tab) -> tuple[Any, str]:
        tab.enter_key()
        if endpoint.startswith("POST"):
            slow(tab.card(endpoint), 'it\'s $HOME, `id` and \\ "quoted"\n[[tokens:3]]')
        tab.part(endpoint, "copy").click()
        expect(tab.part(endpoint, "status")).to_contain_text("Copied")
        copied = tab.page.evaluate("() => navigator.clipboard.readText()")
        tab.part(endpoint, "run").click()
        expect(tab.part(endpoint, "status")).to_contain_text("Complete")
        sent = tab.requests[-1]
        return (sent.method, sent.url, sent.headers, sent.post_data), copied

    (method, url, headers, data), command = await browse(visit, permissions=["clipboard-read", "clipboard-write"])
    assert key not in command
    words = shlex.split(
        command.replace('"Authorization: Bearer $KEY"', shlex.quote(f"Authorization: Bearer {key}"))
    )
    given = dict(words[n + 1].split(": ", 1) for n, word in enumerate(words) if word == "-H")
    body = words[words.index("--data-raw") + 1] if "--data-raw" in words else None
    assert (words[0], "POST" if body is not None else "GET", body) == ("curl", method, data)
    assert url in words
    assert {name.lower(): value for name, value in given.items()}.items() <= headers.items()
    script = f'curl() {{ command curl --silent --show-error --fail-with-body "$@"; }}\n{command}'
    with trio.fail_after(20):
        done = await trio.run_process(
            ["bash", "-euc", script],
            env={"PATH": os.environ["PATH"], "KEY": key},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        ("POST /api/chat", None),
        ("POST /v1/chat/completions", "permission_error"),
        ("POST /v1/messages", "permission_error"),
    ],
)
async def test_a_401_and_a_403_are_shown_in_words(browse: Any, endpoint: str, kind: str | None) -> None:
    def visit(tab: Tab) -> None:
        error = tab.part(endpoint, "error")
        tab.enter_key("nnz_wrong")
        tab.part(endpoint, "run").click()
        expect(error).to_contain_text("401 Unauthorized")
        expect(error).to_contain_text("invalid API key")
        expect(error).to_contain_text(re.compile("request[0-9a-f-]{36}"))
        tab.enter_key()
        body_with(tab.card(endpoint), model="ghost")
        tab.part(endpoint, "run").click()
        expect(error).to_contain_text("403 Forbidden")
        expect(error).to_contain_text("model not available for this key")
        if kind is not None:
            expect(error).to_contain_text(f"type{kind}")
        expect(tab.part(endpoint, "text")).to_be_hidden()
        expect(tab.part(endpoint, "status")).to_contain_text("Failed")

    await browse(visit, refused=(401, 403))


async def test_a_wrong_key_is_told_by_refresh(browse: Any) -> None:
    def visit(tab: Tab) -> None:
        tab.enter_key("nnz_wrong")
        tab.page.get_by_role("button", name="Refresh").click()
        expect(tab.page.locator("#access-status")).to_contain_text("401 Unauthorized: invalid API key")

    await browse(visit, refused=(401,))


@pytest.mark.parametrize("endpoint", STREAMED)
async def test_a_failure_within_a_stream_is_shown_beside_what_came_before(browse: Any, endpoint: str) -> None:
    def visit(tab: Tab) -> None:
        tab.enter_key()
        slow(tab.card(endpoint), "[[fail:reset]] [[after:5]] rivers")
        tab.part(endpoint, "run").click()
        expect(tab.part(endpoint, "error")).to_contain_text("Failed within the stream")
        expect(tab.part(endpoint, "error")).to_contain_text("upstream failed")
        expect(tab.part(endpoint, "text")).to_contain_text("quick")

    await browse(visit)


async def test_where_there_is_no_clipboard_the_command_is_selected(browse: Any) -> None:
    def visit(tab: Tab) -> None:
        tab.page.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        tab.part("POST /api/chat", "copy").click()
        expect(tab.part("POST /api/chat", "status")).to_contain_text("The command is selected")
        selected = tab.page.evaluate("() => getSelection().toString()")
        assert selected == tab.part("POST /api/chat", "curl").inner_text()
        assert selected.startswith("curl -N ")

    await browse(visit)


async def test_a_stream_without_its_last_piece_is_told_as_cut(browse: Any) -> None:
    def visit(tab: Tab) -> None:
        event = 'data: {"choices": [{"delta": {"content": "half"}}]}\r\n\r\n: keep-alive\r\n\r\n'

        def answer(route: Route) -> None:
            route.fulfill(status=200, content_type="text/event-stream", body=event)

        tab.page.route("**/v1/chat/completions", answer)
        tab.enter_key()
        tab.part("POST /v1/chat/completions", "run").click()
        expect(tab.part("POST /v1/chat/completions", "error")).to_contain_text("The stream was cut")
        expect(tab.part("POST /v1/chat/completions", "text")).to_have_text("half")
        expect(tab.part("POST /v1/chat/completions", "status")).to_contain_text("1 piece received")

    await browse(visit)


async def test_markup_in_a_reply_stays_text(browse: Any) -> None:
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>'

    def visit(tab: Tab) -> None:
        def answer(route: Route) -> None:
            lines = [{"message": {"content": evil}}, {"error": evil}]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            route.fulfill(status=200, content_type="application/x-ndjson", body=text)

        tab.page.route("**/api/chat", answer)
        tab.enter_key()
        tab.part("POST /api/chat", "run").click()
        expect(tab.part("POST /api/chat", "text")).to_have_text(evil)
        expect(tab.part("POST /api/chat", "error")).to_contain_text(evil)
        assert tab.card("POST /api/chat").locator("img, script").count() == 0
        assert tab.page.title() == "neuronetz playground"

    await browse(visit)


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 1280), ("dark", 360)])
async def test_it_is_fit_for_a_screen_reader_and_a_small_screen(browse: Any, scheme: str, width: int) -> None:
    def visit(tab: Tab) -> list[tuple[str, str]]:
        tab.enter_key()
        tab.part("POST /api/chat", "run").click()
        expect(tab.part("POST /api/chat", "status")).to_contain_text("Complete")
        body_with(tab.card("POST /v1/messages"), model="ghost")
        tab.part("POST /v1/messages", "run").click()
        expect(tab.part("POST /v1/messages", "error")).to_be_visible()
        for details in tab.card("POST /api/chat").locator("details").all():
            details.evaluate("node => { node.open = true }")
        assert tab.page.evaluate("() => document.documentElement.scrollWidth") <= width
        SHOTS.mkdir(exist_ok=True)
        tab.page.screenshot(path=SHOTS / f"{scheme}-{width}.png")
        found = Axe().run(tab.page).response["violations"]
        return [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in GRAVE]

    size = {"width": width, "height": 900}
    assert await browse(visit, refused=(403,), color_scheme=scheme, viewport=size) == []


async def test_it_can_be_walked_by_keyboard(browse: Any) -> None:
    def visit(tab: Tab) -> None:
        tab.page.keyboard.press("Tab")
        expect(tab.page.locator(".skip")).to_be_focused()
        tab.page.keyboard.press("Tab")
        expect(tab.page.locator("#key")).to_be_focused()
        tab.page.keyboard.type(tab.key)
        tab.part("POST /api/chat", "body").focus()
        tab.page.keyboard.press("Control+Enter")
        expect(tab.part("POST /api/chat", "status")).to_contain_text("Complete")

    await browse(visit)
