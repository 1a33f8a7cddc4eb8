"""How the web page's files are served."""

import re
from pathlib import Path

import httpx
import pytest
from live_server import NAME, ThreadedServer

from server.settings import ServerSettings
from server.ui.page import STATIC

pytest_plugins = ("server_fixtures",)

FILES = sorted("/" if path.name == "index.html" else f"/ui/{path.name}" for path in STATIC.iterdir())
TYPES = {"": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def locked(server: ThreadedServer) -> str:
    return server.open(ServerSettings(port=0, served_model_name=NAME, api_key="a key"))


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_open_typed_and_fenced_in(path: str, locked: str) -> None:
    answer = httpx.get(locked + path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == TYPES[Path(path).suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"} <= {*policy}
    assert "unsafe" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", FILES)
def test_a_file_that_a_browser_has_is_not_sent_again(path: str, http: httpx.Client) -> None:
    first = http.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = http.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = http.get(path, headers={"if-none-match": '"of an older version"'})
    assert (other.status_code, other.content) == (200, first.content)
    assert http.head(path).headers["etag"] == first.headers["etag"]


def test_what_the_page_shows_needs_the_key(locked: str) -> None:
    for path in ("/stats", "/v1/models"):
        assert httpx.get(locked + path).status_code == 401


@pytest.mark.parametrize(
    "path", ["/ui/", "/ui/page.py", "/ui/../page.py", "/ui/%2e%2e/page.py", "/ui/index.html"]
)
def test_no_other_file_can_be_had(path: str, http: httpx.Client) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_without_the_page_there_is_nothing_at_its_place(server: ThreadedServer) -> None:
    url = server.open(ServerSettings(port=0, served_model_name=NAME, ui=False))
    for path in FILES:
        answer = httpx.get(url + path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_the_files_need_nothing_that_they_do_not_bring() -> None:
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path.name
        assert "innerHTML" not in text, path.name
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=)", page) == []
