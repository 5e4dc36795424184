"""A real browser before a real gateway: Debian's Chromium, driven by Playwright, which downloads none."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright, sync_playwright

from neuronetz.settings import Settings

T = TypeVar("T")

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 10_000.0
SHOTS = Path(__file__).parent / "screenshots"


@dataclass
class Tab:
    """A page of its own context, and everything that went wrong or out of it."""

    page: Page
    key: str
    errors: list[str] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)

    def card(self, endpoint: str) -> Locator:
        """The card of ``POST /api/chat`` and the like."""
        return self.page.locator(f'[data-endpoint="{endpoint}"]')

    def part(self, endpoint: str, name: str) -> Locator:
        return self.card(endpoint).locator(f'[data-part="{name}"]')

    def enter_key(self, key: str | None = None) -> None:
        self.page.get_by_label("API key").fill(self.key if key is None else key)


class Chromium:
    """One browser for all tests of this worker, in the one thread that Playwright's objects belong to."""

    def __init__(self, executable: str) -> None:
        self._executable = executable
        self._thread = ThreadPoolExecutor(1, "chromium", initializer=_plain_asyncio)
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None

    def call(self, job: Callable[[Browser], T]) -> T:
        """What ``job`` returns or raises; blocks."""
        return self._thread.submit(lambda: job(self._opened())).result()

    def _opened(self) -> Browser:
        if self._browser is None:
            self._playwright = sync_playwright().start()
            # Its sandbox does not work for root.
            args = ["--no-sandbox"] if os.geteuid() == 0 else []
            self._browser = self._playwright.chromium.launch(executable_path=self._executable, args=args)
        return self._browser

    def close(self) -> None:
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _close(self) -> None:
        if self._browser is not None:
            self._browser.close()
        if self._playwright is not None:
            self._playwright.stop()


def _plain_asyncio() -> None:
    # Outside Trio, trio-asyncio keeps a policy for each thread; by default one whose loops do not nest.
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    browser = Chromium(CHROMIUM)
    yield browser
    browser.close()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"playground_enabled": True})


Browse = Callable[..., Awaitable[Any]]


@pytest.fixture
def browse(chromium: Chromium, gateway: Any, key: str) -> Browse:
    """Runs ``visit(tab)`` on the playground, which must not have complained of anything at its end.

    ``refused`` are the statuses of which Chromium's own log may tell; keyword arguments are a context's.
    """

    async def browse(visit: Callable[[Tab], T], *, refused: tuple[int, ...] = (), **context: Any) -> T:
        def job(browser: Browser) -> T:
            opened = browser.new_context(base_url=gateway.base_url, **context)
            opened.set_default_timeout(PATIENCE_MS)
            try:
                tab = _open(opened, key)
                found = visit(tab)
                assert [line for line in tab.errors if not _expected(line, refused)] == []
                return found
            finally:
                opened.close()

        with trio.fail_after(60):
            return await trio.to_thread.run_sync(partial(chromium.call, job))

    return browse


def _open(context: BrowserContext, key: str) -> Tab:
    page = context.new_page()
    tab = Tab(page, key)
    page.on("console", lambda line: tab.errors.append(f"{line.type}: {line.text}"))
    page.on("pageerror", lambda error: tab.errors.append(str(error)))
    page.on("request", lambda request: tab.requests.append(request))
    page.goto("/playground")
    return tab


def _expected(line: str, refused: tuple[int, ...]) -> bool:
    return any(
        line.startswith("error: Failed to load resource:") and f"status of {code}" in line for code in refused
    )
