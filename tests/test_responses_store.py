"""Where responses are kept: bounds, files, and what outlives a server."""

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from live_server import LONG, MAX_MODEL_LEN, ThreadedServer, server_process, wait_for

from core.errors import ConfigError
from server.errors import ServerStopping
from server.openai.responses.sqlite import SqliteStore
from server.openai.responses.store import MemoryStore, Store
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

T = TypeVar("T")

MakeStore = Callable[..., Store]


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    if request.param == "memory":
        return MemoryStore
    return lambda *bounds: SqliteStore(str(tmp_path / "responses.db"), *bounds)


def done(work: Awaitable[T]) -> T:
    async def wait() -> T:
        return await work

    return asyncio.run(wait())


def put(store: Store, *ids: str, record: bytes = b"x") -> None:
    for response_id in ids:
        done(store.put(response_id, record))


def held(store: Store, ids: str) -> str:
    return "".join(response_id for response_id in ids if done(store.get(response_id)) is not None)


def test_a_store_gives_back_what_was_put_last(make_store: MakeStore) -> None:
    store = make_store()
    put(store, "a", record=b"old")
    put(store, "a", record=b"new")

    assert done(store.get("a")) == b"new"
    assert done(store.get("b")) is None
    assert done(store.delete("a"))
    assert not done(store.delete("a"))
    assert done(store.get("a")) is None


def test_a_store_holds_so_many_responses_and_the_oldest_go(make_store: MakeStore) -> None:
    store = make_store(3)
    put(store, *"abcd")

    assert held(store, "abcd") == "bcd"
    done(store.delete("c"))
    put(store, "e")
    assert held(store, "abcde") == "bde"


def test_a_store_holds_so_many_bytes(make_store: MakeStore) -> None:
    store = make_store(100, 1000)
    put(store, *"abc", record=b"x" * 400)
    assert held(store, "abc") == "bc"

    put(store, "b", record=b"x" * 100)  # which frees what the longer one took
    put(store, "d", record=b"x" * 500)
    assert held(store, "abcd") == "bcd"

    put(store, "e", record=b"x" * 1001)  # more than there ever is room for
    assert held(store, "abcde") == ""


def test_memory_keeps_what_is_asked_for() -> None:
    store = MemoryStore(2)
    put(store, *"ab")
    done(store.get("a"))
    put(store, "c")

    assert held(store, "abc") == "ac"


def test_a_file_counts_on_where_it_was_left_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "responses.db"
    put(SqliteStore(str(path)), *"abc")
    again = SqliteStore(str(path), 3)
    put(again, "d")

    assert held(again, "abcd") == "bcd"
    assert path.stat().st_mode & 0o077 == 0


def test_many_write_to_one_file_at_once(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "responses.db"), 20)

    async def storm() -> int:
        await asyncio.gather(*(store.put(f"r{i}", b"x" * i) for i in range(60)))
        return sum(await asyncio.gather(*(store.delete(f"r{i}") for i in range(60))))

    assert done(storm()) == 20


def test_a_file_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("these are not responses" * 100)
    for path in (tmp_path, tmp_path / "missing" / "responses.db", other, "nul\0", ""):
        with pytest.raises(ConfigError, match="response_store") as caught:
            ServerSettings(response_store=str(path))
        assert caught.value.setting == "response_store"
    assert other.read_text().startswith("these are")


def settings(path: Path) -> ServerSettings:
    return ServerSettings(port=0, response_store=str(path))


def ask(url: str, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    body = {"input": "Once", "max_output_tokens": 8, "ignore_eos": True, "temperature": 0} | more
    response = httpx.post(f"{url}/v1/responses", json=body, headers=headers, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def found(url: str, response_id: str) -> dict[str, Any]:
    return httpx.get(f"{url}/v1/responses/{response_id}").json()


def test_a_file_outlives_the_server_and_a_conversation_goes_on(
    server: ThreadedServer, tmp_path: Path
) -> None:
    url = server.open(settings(tmp_path / "responses.db"))
    first = ask(url)

    again = server.open(settings(tmp_path / "responses.db"))

    assert found(again, first["id"]) == first
    second = ask(again, input="Go on.", previous_response_id=first["id"])
    items = httpx.get(f"{again}/v1/responses/{second['id']}/input_items?order=asc").json()["data"]
    assert [item["role"] for item in items] == ["user", "assistant", "user"]
    assert items[1]["content"][0]["text"] == first["output"][0]["content"][0]["text"]


def test_what_a_server_that_ended_was_writing_has_failed(server: ThreadedServer, tmp_path: Path) -> None:
    url = server.open(settings(tmp_path / "responses.db"))
    begun = ask(url, background=True, max_output_tokens=LONG["max_tokens"])
    wait_for(lambda: found(url, begun["id"])["status"] == "in_progress")

    elsewhere = server.open(settings(tmp_path / "responses.db"))  # which does not write it
    seen = found(elsewhere, begun["id"])

    assert (seen["status"], seen["error"]["code"]) == ("failed", "server_error")
    assert httpx.delete(f"{url}/v1/responses/{begun['id']}").json()["deleted"] is True
    wait_for(lambda: server.num_running() == 0)


def test_a_server_that_stops_says_so_in_what_it_was_writing(server: ThreadedServer, url: str) -> None:
    begun = ask(url, background=True, max_output_tokens=LONG["max_tokens"])
    wait_for(lambda: found(url, begun["id"])["status"] == "in_progress")

    async def stop() -> None:
        server.engine.fail_unfinished(ServerStopping())

    server.call(stop())

    wait_for(lambda: found(url, begun["id"])["status"] == "failed")
    assert "stopped" in found(url, begun["id"])["error"]["message"]


def test_a_background_response_has_as_long_as_any_other(server: ThreadedServer) -> None:
    url = server.open(ServerSettings(port=0, request_timeout=0.2))
    begun = ask(url, background=True, max_output_tokens=LONG["max_tokens"])
    hurried = ask(url, {"x-request-timeout": "0.1"}, background=True, max_output_tokens=LONG["max_tokens"])

    for response, seconds in ((begun, "0.2 s"), (hurried, "0.1 s")):
        wait_for(lambda: found(url, response["id"])["status"] == "failed")  # noqa: B023
        assert seconds in found(url, response["id"])["error"]["message"]
    wait_for(lambda: server.num_running() == 0)


def test_a_server_that_is_to_stop_finishes_what_it_writes(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model, path = tiny_model("llama", max_position_embeddings=MAX_MODEL_LEN), tmp_path / "responses.db"
    with server_process(model, response_store=str(path), shutdown_timeout=60) as running:
        begun = ask(running.url, background=True, max_output_tokens=3000)
        running.process.terminate()
        assert running.wait() == 0

    stored = json.loads(done(SqliteStore(str(path)).get(begun["id"])) or b"")
    assert stored["response"]["status"] == "incomplete"
    assert stored["response"]["usage"]["output_tokens"] == 3000


def test_a_response_that_cannot_be_stored_is_an_error_of_ours(server: ThreadedServer, tmp_path: Path) -> None:
    url = server.open(settings(tmp_path / "responses.db"))
    with sqlite3.connect(tmp_path / "responses.db") as database:
        database.execute("DROP TABLE responses")
    database.close()

    response = httpx.post(f"{url}/v1/responses", json={"input": "a", "max_output_tokens": 1})

    assert response.status_code == 500
    assert "responses" not in response.text
