"""The web page in a real browser, for tests: what it logs and whom it asks is watched all the while."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from live_server import NAME
from playwright.sync_api import Browser, Page, Request, Route, expect, sync_playwright

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
CHAT = "**/v1/chat/completions"
VIEWS = ("chat", "parameters", "live", "platform")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. The test is skipped where none is installed."""
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None:
        pytest.skip(f"no browser is installed; {', '.join(CHROMIUMS)} were looked for")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, and what must not happen on it: errors in the console, and requests that leave the server."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[Request] = []
        self.wrong: list[str] = []
        page.on("request", lambda request: self.requests.append(request))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda said: self._note(said.type, said.text))

    def _note(self, kind: str, text: str) -> None:
        refused_by_server = text.startswith("Failed to load resource")  # the page shows such an answer itself
        if kind in ("error", "warning") and not refused_by_server:
            self.wrong.append(text)

    def check(self, url: str) -> None:
        assert self.wrong == []
        assert {urlsplit(request.url).netloc for request in self.requests} <= {urlsplit(url).netloc}

    def count(self, path: str) -> int:
        return sum(urlsplit(request.url).path == path for request in self.requests)


@contextmanager
def page_at(browser: Browser, url: str, viewport: Any = DESKTOP, **context: Any) -> Iterator[Watched]:
    """The page at this address, in a tab that knows nothing of others."""
    with browser.new_context(viewport=viewport, **context) as opened:
        opened.set_default_timeout(30_000)
        watched = Watched(opened.new_page())
        watched.page.goto(url)
        yield watched
        watched.check(url)


def loaded(page: Page, name: str = NAME) -> Page:
    expect(page).to_have_title(f"{name} · core")
    return page


def show(page: Page, view: str) -> None:
    page.locator(f"[data-shows={view}]").click()


def ask(page: Page, question: str) -> None:
    page.get_by_label("Message", exact=True).fill(question)
    page.get_by_label("Message", exact=True).press("Enter")


def endless(page: Page) -> None:
    """Answers go on until they are stopped: a random model might end one at any token."""

    def lengthened(route: Route) -> None:
        route.continue_(post_data=json.dumps(route.request.post_data_json | {"ignore_eos": True}))

    page.route(CHAT, lengthened)


def says(page: Page, text: str) -> None:
    """The model says this, from now on."""
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "usage": None},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None},
        {"choices": [], "usage": {"completion_tokens": 7}},
    ]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route(CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=body))
