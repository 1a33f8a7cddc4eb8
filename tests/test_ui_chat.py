"""The chat of the web page, in headless Chromium against a live server."""

import re
from typing import Any

import pytest
from live_server import CHAT as MESSAGES
from live_server import NAME, ThreadedServer, wait_for
from playwright.sync_api import Page, expect
from ui_page import CHAT, Watched, ask, endless, loaded, says, show

from server.errors import ServerStopping

pytest_plugins = ("server_fixtures", "ui_fixtures")

QUESTION = MESSAGES[0]["content"]


def answers(page: Page) -> Any:
    return page.get_by_role("article", name="Answer")


def written(page: Page, least: int) -> int:
    """Waits for so many characters of the answer. Returns how many there are."""
    text = answers(page).locator(".text")
    expect(text).to_have_text(re.compile(r"[\s\S]" f"{{{least},}}"))
    return len(text.text_content() or "")


def test_it_loads_and_waits_for_a_message(page: Page) -> None:
    expect(page.get_by_label("Model")).to_have_value(NAME)
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def test_a_message_is_sent_and_its_answer_shown_with_its_figures(page: Page) -> None:
    show(page, "parameters")
    page.get_by_label("Max tokens").fill("40")
    endless(page)
    ask(page, QUESTION)

    expect(page.get_by_role("article", name="You")).to_have_text(QUESTION)
    expect(answers(page)).to_contain_text("Ended at the limit of tokens · 40 tokens · ")
    assert answers(page).locator(".text").inner_text().strip()
    expect(page.get_by_label("Message", exact=True)).to_have_value("")


def test_an_answer_is_shown_as_it_arrives_and_stop_keeps_what_did(page: Page, server: ThreadedServer) -> None:
    endless(page)
    ask(page, QUESTION)
    some = written(page, 10)
    assert written(page, some + 10) > some
    expect(page.locator(".answer.writing")).to_be_visible()

    page.get_by_role("button", name="Stop").click()

    expect(answers(page)).to_contain_text("Stopped")
    assert len(answers(page).locator(".text").text_content()) > some
    wait_for(lambda: server.num_running() == 0)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_escape_stops(page: Page, server: ThreadedServer) -> None:
    endless(page)
    ask(page, QUESTION)
    wait_for(lambda: server.num_running() == 1)
    page.keyboard.press("Escape")
    expect(answers(page)).to_contain_text("Stopped")
    wait_for(lambda: server.num_running() == 0)


def test_what_the_server_refuses_is_shown_in_its_own_words(page: Page) -> None:
    ask(page, "x" * 9000)
    alert = answers(page).get_by_role("alert")
    expect(alert).to_contain_text("8,192")
    expect(alert.get_by_role("button", name="Try again")).to_be_visible()


def test_a_server_that_cannot_be_reached_is_asked_again_on_request(page: Page) -> None:
    page.route(CHAT, lambda route: route.abort())
    ask(page, QUESTION)
    expect(answers(page)).to_contain_text("The server cannot be reached.")
    page.unroute(CHAT)
    says(page, "Here I am.")

    page.get_by_role("button", name="Try again").click()

    expect(answers(page).locator(".text")).to_have_text("Here I am.")
    expect(answers(page).get_by_role("alert")).to_be_hidden()


def test_an_error_in_the_middle_of_an_answer_leaves_what_arrived(page: Page, server: ThreadedServer) -> None:
    async def stop() -> None:
        server.engine.fail_unfinished(ServerStopping())

    endless(page)
    ask(page, QUESTION)
    written(page, 10)
    server.call(stop())
    expect(answers(page).get_by_role("alert")).to_contain_text("the server stopped")
    assert answers(page).locator(".text").inner_text().strip()


def test_an_answer_that_is_cut_off_is_not_taken_for_whole(page: Page) -> None:
    body = 'data: {"choices": [{"delta": {"content": "Half of"}}]}\n\n'
    page.route(CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    ask(page, QUESTION)
    expect(answers(page)).to_contain_text("Half of")
    expect(answers(page).get_by_role("alert")).to_contain_text("ended before the answer did")


def test_regenerate_replaces_the_last_answer(page: Page) -> None:
    says(page, "One.")
    ask(page, QUESTION)
    expect(answers(page)).to_contain_text("One.")
    page.unroute(CHAT)
    says(page, "Two.")

    page.get_by_role("button", name="Regenerate").click()

    expect(answers(page).locator(".text")).to_have_text("Two.")
    expect(page.get_by_role("article")).to_have_count(2)


def test_the_whole_conversation_is_sent_and_only_the_last_answer_can_be_had_again(page: Page) -> None:
    says(page, "One.")
    ask(page, "First?")
    expect(answers(page)).to_contain_text("One.")
    with page.expect_request(CHAT) as sent:
        ask(page, "Second?")
    assert [(m["role"], m["content"]) for m in sent.value.post_data_json["messages"]] == [
        ("user", "First?"),
        ("assistant", "One."),
        ("user", "Second?"),
    ]
    expect(answers(page)).to_have_count(2)
    expect(page.get_by_role("button", name="Regenerate")).to_have_count(1)


def test_a_question_without_an_answer_is_not_sent_again(page: Page) -> None:
    page.route(CHAT, lambda route: route.abort())
    ask(page, "First?")
    expect(answers(page).get_by_role("alert")).to_be_visible()
    with page.expect_request(CHAT) as sent:
        ask(page, "Second?")
    assert [message["content"] for message in sent.value.post_data_json["messages"]] == ["Second?"]


def test_the_conversation_survives_a_reload_until_it_is_cleared(page: Page) -> None:
    says(page, "The Moon.")
    ask(page, QUESTION)
    expect(answers(page)).to_contain_text("7 tokens")

    loaded(page).reload()

    expect(answers(page).locator(".text")).to_have_text("The Moon.")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("article")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible()


def test_an_answer_that_a_reload_interrupts_counts_as_stopped(page: Page) -> None:
    endless(page)
    ask(page, QUESTION)
    written(page, 10)
    page.reload()
    expect(answers(page)).to_contain_text("Stopped")
    assert answers(page).locator(".text").inner_text().strip()


def test_html_in_an_answer_is_text(page: Page) -> None:
    hostile = '<img src=x onerror="document.title=1"> **<b>b</b>** `<i>i</i>`\n\n- <script>document.title=2</script>'
    says(page, hostile)
    ask(page, "<u>u</u>")
    text = answers(page).locator(".text")
    expect(text).to_contain_text('<img src=x onerror="document.title=1"> <b>b</b> <i>i</i>')
    expect(text).to_contain_text("<script>document.title=2</script>")
    expect(page.get_by_role("article", name="You")).to_have_text("<u>u</u>")
    assert page.locator("#conversation :is(img, script, b, i, u)").count() == 0
    loaded(page)


def test_the_browser_itself_refuses_markup_from_scripts(page: Page, watched: Watched) -> None:
    refused = "try { document.body.innerHTML = '<p>'; 'taken' } catch (error) { error.name }"
    assert page.evaluate(refused) == "TypeError"
    assert "TrustedHTML" in watched.wrong.pop()


ANSWER = """\
# Tides

They come from the **Moon**, with *care*: `x ** 2`.

1. First
2. Second
   still the second
- A point
  - Beneath it

```python
print("tide")

# a comment is no heading
```
Afterwards.
"""


def test_markdown_is_laid_out(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    says(page, ANSWER)
    ask(page, QUESTION)
    text = answers(page).locator(".text")
    expect(text.get_by_role("heading")).to_have_text("Tides")
    expect(text.locator("strong")).to_have_text("Moon")
    expect(text.locator("em")).to_have_text("care")
    expect(text.locator("p code")).to_have_text("x ** 2")
    expect(text.locator("ol li")).to_have_text(["First", "Second still the second"])
    expect(text.locator("ul li")).to_have_text(["A point", "Beneath it"])
    expect(text.locator("p").last).to_have_text("Afterwards.")
    text.get_by_role("button", name="Copy").click()
    expect(text.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == 'print("tide")\n\n# a comment is no heading'


@pytest.mark.parametrize(
    "text", ["**a " * 20_000, "`" * 60_000, "*a" * 30_000, "- " * 30_000, "1. x\n" * 9_000]
)
def test_no_text_takes_long_to_lay_out(page: Page, text: str) -> None:
    script = """async (text) => {
        const { show } = await import("/ui/markdown.js");
        const start = performance.now();
        show(document.createElement("div"), text);
        return performance.now() - start;
    }"""
    assert page.evaluate(script, text) < 2000


def test_an_answer_is_read_out_sentence_by_sentence(page: Page) -> None:
    says(page, "The Moon does it. The Sun helps")
    ask(page, QUESTION)
    spoken = page.locator("#spoken p")
    expect(spoken).to_have_text(["Answering", "The Moon does it.", "The Sun helps", "End of the answer"])
    assert page.locator("#spoken").get_attribute("aria-live") == "polite"
