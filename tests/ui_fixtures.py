"""The web page of the session's server, opened in a browser for each test."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page
from ui_page import Watched, chromium, loaded, page_at


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def watched(browser: Browser, url: str) -> Iterator[Watched]:
    with page_at(browser, url) as found:
        loaded(found.page)
        yield found


@pytest.fixture
def page(watched: Watched) -> Page:
    return watched.page
