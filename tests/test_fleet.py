"""Several models in one server, and engines that die or hang and are started anew."""

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from live_server import ServerProcess, engine_keywords, gone, server_process, wait_for

from core.config import EngineConfig
from core.errors import ConfigError, CoreError
from server.fleet import Fleet
from server.settings import ServerSettings
from server.state import State

ENGINE_TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def models(tiny_model: Callable[..., Path]) -> tuple[Path, Path]:
    """Of which the second takes long to answer a long request."""
    return tiny_model("llama"), tiny_model("mistral", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def fleet(models: tuple[Path, Path]) -> Iterator[ServerProcess]:
    """A server of two models whose engines are started anew."""
    with server_process(*models, restart_engine=True, engine_timeout=ENGINE_TIMEOUT_S) as running:
        yield running


@pytest.fixture
def http(fleet: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.url, timeout=60) as made:
        yield made
    wait_for(lambda: is_healthy(fleet))


def is_healthy(server: ServerProcess) -> bool:
    return httpx.get(f"{server.url}/health").status_code == 200


@contextmanager
def stream(http: httpx.Client, model: str, max_tokens: int = 8000) -> Iterator[Iterator[Any]]:
    """The events of a stream that has begun; the first is taken."""
    body = {"model": model, "prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as response:
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        parsed = (line if line == "[DONE]" else json.loads(line) for line in lines)
        assert "choices" in next(parsed)
        yield parsed


def completion(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 4, "ignore_eos": True} | body)


def test_each_model_is_listed_and_answers_under_its_name(
    http: httpx.Client, fleet: ServerProcess, models: tuple[Path, Path]
) -> None:
    first, second = (model.name for model in models)

    assert fleet.line == f"Serving {first}, {second} on {fleet.url}\n"
    assert [card["id"] for card in http.get("/v1/models").json()["data"]] == [first, second]
    assert [http.get(f"/v1/models/{name}").json()["max_model_len"] for name in (first, second)] == [512, 8192]
    for name in (first, second):
        assert completion(http, model=name).json()["model"] == name
    assert completion(http).json()["model"] == first
    assert completion(http, model="third").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_r2_an_engine_that_dies_or_hangs_is_started_anew_and_disturbs_no_other(
    http: httpx.Client, fleet: ServerProcess, models: tuple[Path, Path], number: signal.Signals
) -> None:
    first, second = (model.name for model in models)
    engine = fleet.engines[-1]  # the second model's, which alone is ever started anew
    patience = 1.0 + (2 * ENGINE_TIMEOUT_S if number == signal.SIGSTOP else 0.0)

    with stream(http, second) as events:
        engine.send_signal(number)
        stopped = time.monotonic()
        *_, last = events
        assert last["error"]["code"] == "engine_dead"
        assert time.monotonic() - stopped < patience

    refusal = completion(http, model=second)
    assert refusal.status_code == 503
    assert refusal.json()["error"]["code"] == "restarting"
    assert refusal.headers["x-should-retry"] == "true" and int(refusal.headers["retry-after"]) >= 1
    assert http.get("/health").status_code == http.get("/health/ready").status_code == 503
    assert completion(http, model=first).status_code == 200

    wait_for(lambda: completion(http, model=second).status_code == 200)
    assert is_healthy(fleet)
    assert gone(engine) and len(fleet.engines) == 2


def test_r2_an_idle_engine_that_hangs_is_noticed(
    http: httpx.Client, fleet: ServerProcess, models: tuple[Path, Path]
) -> None:
    engine = fleet.engines[-1]
    engine.suspend()

    wait_for(lambda: not is_healthy(fleet), patience=3 * ENGINE_TIMEOUT_S)
    wait_for(lambda: is_healthy(fleet))

    assert gone(engine)
    assert completion(http, model=models[1].name).status_code == 200


def test_r17_termination_drains_every_model_and_leaves_nothing_behind(models: tuple[Path, Path]) -> None:
    folder = Path(tempfile.gettempdir())
    before = {*folder.glob("core-*"), *Path("/dev/shm").glob("*")}
    with server_process(*models, shutdown_timeout=60) as server, httpx.Client(base_url=server.url) as http:
        engines = server.engines
        with stream(http, models[0].name, 100) as one, stream(http, models[1].name, 100) as two:
            server.process.terminate()
            assert [list(events)[-1] for events in (one, two)] == ["[DONE]", "[DONE]"]
        assert server.wait() == 0

    assert all(gone(engine) for engine in engines)
    assert {*folder.glob("core-*"), *Path("/dev/shm").glob("*")} <= before


@asynccontextmanager
async def started(configs: list[EngineConfig], **settings: Any) -> AsyncIterator[tuple[Fleet, State]]:
    made = Fleet(configs, ServerSettings(**settings), lambda line: None)
    state = await made.start()
    try:
        yield made, state
    finally:
        await made.close()


def test_an_engine_that_dies_again_and_again_is_given_up(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.fleet.MAX_QUICK_DEATHS", 2)
    monkeypatch.setattr("server.fleet.BACK_OFF_S", 0.01)

    async def scenario() -> tuple[str, set[int]]:
        configs = [EngineConfig(**engine_keywords(models[0]))]
        async with started(configs, restart_engine=True) as (fleet, state):
            watching = asyncio.create_task(fleet.watch())
            pids: set[int] = set()
            while not watching.done():
                engine = state.default.engine
                if engine.is_alive:
                    pids.add(engine.pid)
                    with suppress(ProcessLookupError):  # it is dead, and nobody has noticed yet
                        os.kill(engine.pid, signal.SIGKILL)
                await asyncio.sleep(0.01)
            assert state.default.num_restarts == 1
            return watching.result(), pids

    reason, pids = asyncio.run(scenario())

    assert "SIGKILL" in reason and "2 times in a row" in reason
    assert len(pids) == 2


@pytest.mark.parametrize("missing", ["the model", "the interpreter"])
def test_an_engine_that_cannot_be_started_anew_is_given_up_however_long_that_takes(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr("server.fleet.MAX_QUICK_DEATHS", 3)
    monkeypatch.setattr("server.fleet.BACK_OFF_S", 0.01)
    monkeypatch.setattr("server.fleet.STEADY_S", 0.0)  # a start takes longer
    model = shutil.copytree(models[0], tmp_path / "model")

    async def scenario() -> str:
        async with started([EngineConfig(**engine_keywords(model))], restart_engine=True) as (fleet, state):
            if missing == "the model":
                shutil.rmtree(model)
            else:
                monkeypatch.setattr("sys.executable", str(tmp_path / "nothing"))
            os.kill(state.default.engine.pid, signal.SIGKILL)
            return await asyncio.wait_for(fleet.watch(), 60)

    assert "3 times in a row" in asyncio.run(scenario())


def test_a_model_that_cannot_be_loaded_ends_the_engines_before_it(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    configs = [EngineConfig(**engine_keywords(path)) for path in (models[0], tmp_path / "nothing")]
    before = psutil.Process().children()

    async def scenario() -> None:
        async with started(configs):
            pass

    with pytest.raises(CoreError, match="nothing"):
        asyncio.run(scenario())

    assert all(gone(child) for child in psutil.Process().children() if child not in before)


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ([{}], [1.0]),
        ([{}, {}], [0.5, 0.5]),
        ([{"memory_share": 0.2}, {}, {}], [0.2, 0.4, 0.4]),
        ([{"kv_cache_memory": "1MiB"}, {}], [None, 1.0]),
    ],
)
def test_memory_is_shared_out(given: list[dict[str, Any]], shares: list[float | None]) -> None:
    configs = [EngineConfig(model=f"model-{i}", **keywords) for i, keywords in enumerate(given)]

    made = Fleet(configs, ServerSettings(), print)

    assert [config.memory_share for config in made.configs.values()] == pytest.approx(shares)


@pytest.mark.parametrize(
    ("given", "settings", "setting", "says"),
    [
        ([{"model": "a/x"}, {"model": "a/x"}], {}, "model", "'a/x'"),
        ([{"model": "/a/x"}, {"model": "/b/x"}], {}, "model", "different names"),
        ([{"model": "a"}, {"model": "b"}], {"served_model_name": "c"}, "served_model_name", "2 are served"),
        ([{"memory_share": 0.6}, {"model": "b", "memory_share": 0.6}], {}, "memory_share", "1.2"),
        ([{"memory_share": 1}, {"model": "b"}], {}, "memory_share", "2 models"),
    ],
)
def test_models_that_cannot_be_served_together_are_refused(
    given: list[dict[str, Any]], settings: dict[str, Any], setting: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Fleet([EngineConfig(**keywords) for keywords in given], ServerSettings(**settings), print)

    assert caught.value.setting == setting
