"""The web page around the chat: key, parameters, live charts, ledger, phones, the keyboard."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import MAX_QUEUED, NAME, ThreadedServer, engine_keywords
from playwright.sync_api import Browser, Page, expect
from pooling_models import make
from ui_page import (
    CHAT,
    DESKTOP,
    PHONE,
    VIEWS,
    Watched,
    ask,
    endless,
    loaded,
    page_at,
    says,
    show,
)

from core.config import EngineConfig
from server.app import app_of
from server.settings import ServerSettings
from server.state import Served, State

pytest_plugins = ("server_fixtures", "ui_fixtures")

KEY = "a-key-of-this-test"
CHARTS = (
    "Tokens per second",
    "Time to the first token",
    "Time between tokens",
    "KV cache in use",
    "Requests",
)


@pytest.fixture(scope="module")
def locked(server: ThreadedServer) -> str:
    return server.open(ServerSettings(port=0, served_model_name=NAME, api_key=["another", KEY]))


# The key


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Browser, locked: str) -> None:
    with page_at(browser, locked) as watched:
        page = watched.page
        dialog = page.get_by_role("dialog", name="This server asks for a key")
        expect(dialog).to_be_visible()
        expect(dialog.get_by_role("alert")).to_be_hidden()

        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).not_to_be_empty()

        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        loaded(page)
        show(page, "parameters")
        page.get_by_label("Max tokens").fill("8")
        ask(page, "Hello")
        expect(page.get_by_role("article", name="Answer")).to_contain_text("tokens")

        page.reload()
        loaded(page)
        expect(dialog).to_be_hidden()
        assert not [request.url for request in watched.requests if KEY in request.url]
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_a_key_that_is_not_given_can_be_given_later(browser: Browser, locked: str) -> None:
    with page_at(browser, locked) as watched:
        page = watched.page
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#notice")).to_be_visible()
        page.get_by_role("button", name="Try again").click()
        page.get_by_label("Key", exact=True).fill(KEY)
        page.get_by_role("button", name="Continue").click()
        loaded(page)
        expect(page.locator("#notice")).to_be_hidden()


# Parameters


def test_only_what_was_set_is_sent(page: Page) -> None:
    says(page, "Yes.")
    with page.expect_request(CHAT) as plain:
        ask(page, "Hello")
    expect(page.get_by_role("article", name="Answer")).to_contain_text("Yes.")
    assert plain.value.post_data_json == {
        "model": NAME,
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


SET = {
    "temperature": ("Temperature", "0.5", 0.5),
    "top_p": ("Top p", "0.9", 0.9),
    "top_k": ("Top k", "20", 20),
    "min_p": ("Min p", "0.05", 0.05),
    "max_completion_tokens": ("Max tokens", "12", 12),
    "seed": ("Seed", "7", 7),
    "presence_penalty": ("Presence penalty", "0.25", 0.25),
    "frequency_penalty": ("Frequency penalty", "-0.5", -0.5),
    "repetition_penalty": ("Repetition penalty", "1.1", 1.1),
    "stop": ("Stop", "END\n\\n\\n", ["END", "\n\n"]),
}


def test_every_parameter_reaches_the_server_and_reset_takes_all_back(page: Page) -> None:
    show(page, "parameters")
    for label, typed, _ in SET.values():
        page.locator("#fields").get_by_label(label, exact=True).fill(typed)
    page.get_by_label("System prompt").fill("You are a sailor.")
    expect(page.get_by_role("button", name="Parameters")).to_contain_text("11")
    with page.expect_response(CHAT) as answered:
        ask(page, "Hello")
    sent = answered.value.request.post_data_json
    assert answered.value.status == 200
    assert sent["messages"][0] == {"role": "system", "content": "You are a sailor."}
    assert {name: sent[name] for name in SET} == {name: value for name, (_, _, value) in SET.items()}

    page.reload()
    expect(page.get_by_label("Temperature")).to_have_value("0.5")
    page.get_by_role("button", name="Reset").click()
    expect(page.get_by_label("Temperature")).to_have_value("")
    expect(page.locator("#changed")).to_be_hidden()


def test_a_value_that_is_the_default_is_not_sent(page: Page) -> None:
    show(page, "parameters")
    expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "1")
    page.get_by_label("Temperature").fill("1.0")
    says(page, "Yes.")
    with page.expect_request(CHAT) as sent:
        ask(page, "Hello")
    assert "temperature" not in sent.value.post_data_json


def test_a_wrong_value_is_shown_and_nothing_is_sent(page: Page, watched: Watched) -> None:
    show(page, "parameters")
    page.get_by_label("Top p").fill("1.5")
    show(page, "chat")
    ask(page, "Hello")
    expect(page.get_by_label("Top p")).to_be_focused()
    assert watched.count("/v1/chat/completions") == 0
    expect(page.get_by_label("Message", exact=True)).to_have_value("Hello")


# Live and platform


def test_charts_are_drawn_from_what_the_server_does(page: Page) -> None:
    endless(page)
    ask(page, "Hello")
    for title in CHARTS:
        chart = page.get_by_role("figure").filter(has_text=title)
        expect(chart.locator(".line-0")).to_have_attribute("d", re.compile(r"M[^M]*L"))
        expect(chart.locator(".legend b").first).not_to_have_text("–")
    requests = page.get_by_role("figure").filter(has_text=CHARTS[-1])
    now = "Requests over the last two minutes. Now: running 1, waiting 0"
    expect(requests.get_by_role("img")).to_have_attribute("aria-label", now)
    requests.locator("svg").hover()
    expect(requests.locator(".pointer")).to_have_attribute("visibility", "visible")
    page.keyboard.press("Escape")


def test_the_server_is_polled_only_while_somebody_looks(browser: Browser, url: str) -> None:
    with browser.new_context(viewport=DESKTOP) as context:
        page = context.new_page()
        page.clock.install()
        watched = Watched(page)
        page.goto(url)
        loaded(page)
        with page.expect_request("**/stats"):
            page.clock.run_for(1000)

        show(page, "platform")
        asked = watched.count("/stats")
        page.clock.run_for(10_000)
        assert watched.count("/stats") == asked

        with page.expect_request("**/stats"):
            show(page, "live")
        hidden = (
            "Object.defineProperty(document, 'visibilityState', {get: () => 'hidden', configurable: true})"
        )
        page.evaluate(f"{hidden}; document.dispatchEvent(new Event('visibilitychange'))")
        asked = watched.count("/stats")
        page.clock.run_for(10_000)
        assert watched.count("/stats") == asked


def test_the_ledger_says_what_runs_where_and_why(page: Page, server: ThreadedServer) -> None:
    show(page, "platform")
    rows = page.get_by_role("table", name="What runs where, and why").locator("tbody tr")
    expect(rows).to_have_count(len(server.engine.info.ledger))
    rejected = next(row for row in server.engine.info.ledger if row["rejected"])
    row = rows.filter(has=page.get_by_role("rowheader", name=rejected["what"], exact=True))
    expect(row).to_contain_text(rejected["provider"])
    expect(row).to_contain_text(
        f"not {rejected['rejected'][0]['provider']}: {rejected['rejected'][0]['reason']}"
    )
    expect(page.locator("#facts")).to_contain_text("8,192 tokens")


# Other models


def test_the_model_that_is_picked_is_asked(browser: Browser, server: ThreadedServer) -> None:
    settings = ServerSettings(port=0)
    models = [Served(name=name, spelled=name, engine=server.engine) for name in ("first", "second")]
    with page_at(browser, server.open(settings, app_of(State(settings, models)))) as watched:
        page = loaded(watched.page, "first")
        says(page, "Yes.")
        page.get_by_label("Model").select_option("second")
        loaded(page, "second")
        with page.expect_request(CHAT) as sent:
            ask(page, "Hello")
        assert sent.value.post_data_json["model"] == "second"
        expect(page.get_by_role("figure").last.locator(".legend b").first).to_have_text("0")


def test_without_a_chat_template_the_page_says_so_and_shows_the_charts(
    browser: Browser, url: str, server: ThreadedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.engine.intake.tokenizer, "chat_template", None)
    with page_at(browser, url, PHONE) as watched:
        expect(loaded(watched.page).locator("#notice")).to_have_text(
            f"There is nothing to chat with: {NAME} has no chat template."
        )
        expect(watched.page.get_by_label("Message", exact=True)).to_be_hidden()
        expect(watched.page.get_by_role("figure")).to_have_count(5)


def test_a_model_that_makes_embeddings_gets_no_chat(browser: Browser, tmp_path: Path) -> None:
    config = EngineConfig(**engine_keywords(make(tmp_path, "Bert")))
    with ThreadedServer(config, MAX_QUEUED) as server:
        url = server.open(ServerSettings(port=0, served_model_name="vectors"))
        with page_at(browser, url) as watched:
            page = loaded(watched.page, "vectors")
            expect(page.locator("#notice")).to_have_text(
                "There is nothing to chat with: vectors makes embeddings."
            )
            expect(page.get_by_role("button", name="Chat", exact=True)).to_be_hidden()
            httpx.post(f"{url}/v1/embeddings", json={"input": "Hello"}).raise_for_status()
            expect(page.get_by_role("figure").first.locator(".legend")).to_contain_text("of prompts")
            show(page, "platform")
            expect(page.get_by_role("table")).to_be_visible()


# Every reader


WIDE = "x" * 400 + "\n\n```\n" + "y" * 400 + "\n```\n\n`" + "z" * 400 + "`"


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_never_scrolls_sideways(browser: Browser, url: str, view: str) -> None:
    with page_at(browser, url, PHONE) as watched:
        page = loaded(watched.page)
        says(page, WIDE)
        ask(page, WIDE)
        expect(page.get_by_role("article", name="Answer")).to_contain_text("7 tokens")
        show(page, view)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        place = "#conversation" if view == "chat" else f"#{view}"
        assert page.evaluate(f"(e => e.scrollWidth - e.clientWidth)(document.querySelector('{place}'))") <= 0
        shown = [page.locator(f"#{other}").is_visible() for other in VIEWS]
        assert shown == [other == view for other in VIEWS]


FOCUSED = """() => {
    const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
    const ring = getComputedStyle(document.activeElement.closest("form") ?? document.activeElement);
    const seen = [outlineStyle, ring.outlineStyle].some((style) => style !== "none");
    return [document.activeElement.id || document.activeElement.innerText.trim(), seen];
}"""


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    says(page, "Yes.")
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(page.get_by_label("Message", exact=True)).to_have_value("One\ntwo")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="Answer")).to_contain_text("Yes.")

    page.get_by_role("link", name="Skip to the message").focus()
    met: list[str] = []
    while not met or met[-1] != "send":
        name, seen = page.evaluate(FOCUSED)
        assert seen, f"{name} does not show that it has the focus"
        met.append(name)
        assert len(met) < 40
        page.keyboard.press("Tab")
    assert {view.capitalize() for view in VIEWS} <= {*met}
    assert {"conversation", "Copy", "Regenerate", "message", "clear"} <= {*met}


def test_the_first_link_leads_to_the_message(page: Page) -> None:
    page.locator("a, button, input, select, textarea").first.focus()
    expect(page.get_by_role("link", name="Skip to the message")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_every_control_has_a_name(page: Page) -> None:
    unnamed = """() => {
        const name = (control) => (control.labels?.length ? control.labels[0] : control).textContent.trim();
        const controls = [...document.querySelectorAll("button, input, select, textarea")];
        return controls.filter((control) => !name(control)).map((control) => control.outerHTML);
    }"""
    assert page.evaluate(unnamed) == []


PAIRS = [
    *((ink, ground, 4.5) for ink in ("ink", "soft") for ground in ("paper", "raised", "sunk")),
    ("ink", "chosen", 4.5),
    ("ink", "accent-wash", 4.5),
    ("accent-ink", "accent", 4.5),
    ("wrong", "wrong-wash", 4.5),
    ("wrong", "raised", 4.5),
    ("edge", "raised", 3.0),
    ("accent", "paper", 3.0),
    ("accent", "raised", 3.0),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_to_read_by(browser: Browser, url: str, scheme: Any) -> None:
    with page_at(browser, url, color_scheme=scheme) as watched:
        read = "(name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()"
        names = {name for pair in PAIRS for name in pair[:2]}
        colours = {name: watched.page.evaluate(read, name) for name in names}
    ratios = {(ink, ground): contrast(colours[ink], colours[ground]) for ink, ground, _ in PAIRS}
    assert [(ink, ground) for ink, ground, least in PAIRS if ratios[ink, ground] < least] == []


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, "contrast ratio"."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_nothing_moves_for_those_who_want_that(browser: Browser, url: str) -> None:
    with page_at(browser, url, reduced_motion="reduce") as watched:
        page = loaded(watched.page)
        endless(page)
        ask(page, "Hello")
        page.locator(".answer.writing").wait_for()
        moving = "document.getAnimations().length"
        assert page.evaluate(moving) == 0
        page.keyboard.press("Escape")
