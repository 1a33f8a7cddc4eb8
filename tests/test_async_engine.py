"""The engine's asyncio client, with a real engine in a real process."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from live_server import ThreadedServer, engine_keywords, gone

from core.config import EngineConfig
from core.contracts.telemetry import Observer
from core.engine.async_engine import AsyncEngine
from core.engine.room import Room
from core.errors import (
    ConfigError,
    EngineDead,
    ModelNotFound,
    NoPlatform,
    QueueFull,
    RequestError,
    RequestTooLong,
)
from core.llm import LLM
from core.outputs import RequestOutput
from core.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
LONG = GREEDY.with_(max_tokens=8000)


pytest_plugins = ("server_fixtures",)


@pytest.fixture(scope="module")
def model(server: ThreadedServer) -> Path:
    return Path(server.engine.info.model_path)


@asynccontextmanager
async def started(model: Path, platform: str = "cpu", **more: Any) -> AsyncIterator[AsyncEngine]:
    engine = await AsyncEngine.start(EngineConfig(**engine_keywords(model, platform=platform)), **more)
    try:
        yield engine
    finally:
        await engine.close()


async def last(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    *_, final = [output async for output in outputs]
    return final


async def settled(engine: AsyncEngine, count: int, patience: float = 5.0) -> None:
    """Returns once the engine works on `count` sequences."""
    deadline = time.monotonic() + patience
    while (statistics := await engine.statistics()).num_running + statistics.num_waiting != count:
        assert time.monotonic() < deadline, statistics
        await asyncio.sleep(0.01)


async def begun(engine: AsyncEngine, **options: Any) -> AsyncGenerator[RequestOutput]:
    """A long answer of which the first tokens have arrived."""
    outputs = engine.generate("Once upon a time", LONG, **options)
    await anext(outputs)
    return outputs


def test_it_says_what_llm_says(server: ThreadedServer) -> None:
    prompts = ["Once upon a time", "Far away", [5, 6, 7]]
    messages = [{"role": "user", "content": "Tell me about the tides."}]

    async def answers() -> list[RequestOutput]:
        engine = server.engine
        asked = [last(engine.generate(prompt, GREEDY)) for prompt in prompts]
        return await asyncio.gather(*asked, last(engine.chat(messages, GREEDY)))

    with LLM(**engine_keywords(Path(server.engine.info.model_path))) as llm:
        expected = llm.generate(prompts, GREEDY, use_tqdm=False) + llm.chat(messages, GREEDY, use_tqdm=False)

    for output, other in zip(server.call(answers()), expected, strict=True):
        assert (output.prompt, output.prompt_token_ids) == (other.prompt, other.prompt_token_ids)
        assert output.outputs == other.outputs
        assert output.finished


def test_the_clients_process_never_loads_torch(model: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from core.config import EngineConfig\n"
        "from core.engine.async_engine import AsyncEngine\n"
        "import server.run\n"
        "async def main():\n"
        "    engine = await AsyncEngine.start(EngineConfig(model=sys.argv[1], platform='cpu'))\n"
        "    outputs = [output async for output in engine.generate('Once upon a time')]\n"
        "    await engine.close()\n"
        "    print(outputs[-1].finished, 'torch' in sys.modules, 'transformers' in sys.modules)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, timeout=120
    )

    assert done.stdout.split() == ["True", "False", "False"], done.stderr


def test_progress_is_told_and_information_arrives(model: Path) -> None:
    lines: list[str] = []

    async def look() -> AsyncEngine:
        async with started(model, progress=lines.append) as engine:
            engine.check_health()
            return engine

    engine = asyncio.run(look())

    assert engine.info.max_model_len == 8192
    assert engine.info.platform == "cpu"
    assert any("loading" in line for line in lines)


@pytest.mark.parametrize("leave", ["break", "cancel", "close"])
def test_leaving_the_iterator_aborts_the_request(server: ThreadedServer, leave: str) -> None:
    async def scenario() -> None:
        engine = server.engine
        if leave == "cancel":
            task = asyncio.create_task(last(engine.generate("Once upon a time", LONG)))
            await settled(engine, 1)
            task.cancel()
            await asyncio.wait({task})
        else:
            outputs = engine.generate("Once upon a time", LONG)
            async for _ in outputs:
                break
            await settled(engine, 1)
            if leave == "close":
                await outputs.aclose()
            else:
                del outputs  # the loop closes generators that nobody holds
        await settled(engine, 0)
        assert engine.num_unfinished == 0

    server.call(scenario())


def test_abort_finishes_the_output_with_the_text_so_far(server: ThreadedServer) -> None:
    async def scenario() -> RequestOutput:
        engine = server.engine
        outputs = await begun(engine, request_id="mine")
        engine.abort("mine")
        engine.abort("nobody's")
        return await last(outputs)

    output = server.call(scenario())

    assert output.finished
    assert output.outputs[0].finish_reason == "abort"
    assert 0 < len(output.outputs[0].token_ids) < 8000


def test_a_slow_reader_misses_steps_and_no_text(server: ThreadedServer) -> None:
    async def scenario() -> tuple[list[RequestOutput], RequestOutput]:
        engine, params = server.engine, GREEDY.with_(max_tokens=100)
        outputs = engine.generate("Once upon a time", params)
        await anext(outputs)
        await settled(engine, 0, patience=60)
        rest = [output async for output in outputs]
        return rest, await last(engine.generate("Once upon a time", params))

    rest, read_at_once = server.call(scenario())

    assert len(rest) == 1
    assert rest[0].outputs == read_at_once.outputs


def test_a_stop_string_ends_the_request_in_the_engine_too(server: ThreadedServer) -> None:
    async def scenario() -> RequestOutput:
        engine = server.engine
        free = await last(engine.generate("Once upon a time", GREEDY))
        stop = free.outputs[0].text[10:13]
        output = await last(engine.generate("Once upon a time", LONG.with_(stop=[stop])))
        assert stop not in output.outputs[0].text
        await settled(engine, 0)
        return output

    assert server.call(scenario()).outputs[0].finish_reason == "stop"


def test_bad_requests_are_refused_before_they_are_sent(server: ThreadedServer) -> None:
    async def scenario() -> None:
        engine = server.engine
        before = (await engine.statistics()).prompt_tokens
        with pytest.raises(RequestError, match="empty"):
            await engine.request("")
        with pytest.raises(RequestTooLong):
            await engine.request([7] * 8192)
        with pytest.raises(RequestError, match="999999"):
            await engine.request([999999])
        assert (await engine.statistics()).prompt_tokens == before

    server.call(scenario())


def test_a_request_id_is_unique_while_it_is_used(server: ThreadedServer) -> None:
    async def scenario() -> None:
        engine = server.engine
        outputs = await begun(engine, request_id="twice")
        with pytest.raises(RequestError, match="twice is in use"):
            await anext(engine.generate("a", GREEDY, request_id="twice"))
        await outputs.aclose()
        assert (await last(engine.generate("a", GREEDY, request_id="twice"))).finished

    server.call(scenario())


def test_the_queue_is_bounded_and_room_returns(model: Path) -> None:
    async def scenario() -> None:
        async with started(model, room=Room(2)) as engine:
            first, second = await begun(engine), await begun(engine)
            with pytest.raises(QueueFull, match="max_queued") as caught:
                await anext(engine.generate("a", GREEDY))
            assert caught.value.retry_after > 0
            await first.aclose()
            assert (await last(engine.generate("a", GREEDY))).finished
            await second.aclose()

    asyncio.run(scenario())


def test_a_flood_of_questions_holds_up_no_step(server: ThreadedServer) -> None:
    async def scenario() -> None:
        engine = server.engine
        outputs = await begun(engine)
        steps = [(await engine.statistics()).num_steps for _ in range(100)]
        await outputs.aclose()
        assert steps == sorted(set(steps)), "a question was answered twice between two steps"

    server.call(scenario())


def test_a_killed_engine_ends_every_iterator_within_a_second(model: Path) -> None:
    async def scenario() -> float:
        async with started(model) as engine:
            waiting = [asyncio.create_task(last(engine.generate("Once", LONG))) for _ in range(12)]
            await settled(engine, 12)
            asking: list[Awaitable[Any]] = [asyncio.create_task(engine.statistics()) for _ in range(3)]
            os.kill(engine.pid, signal.SIGKILL)
            start = time.monotonic()
            outcomes = await asyncio.gather(*waiting, *asking, return_exceptions=True)
            elapsed = time.monotonic() - start
            assert all(isinstance(outcome, EngineDead) for outcome in outcomes[:12])
            assert "SIGKILL" in str(outcomes[0])
            assert not engine.is_alive
            assert "SIGKILL" in await engine.wait_until_dead()
            for ask in (engine.check_health, lambda: engine.submit([])):
                with pytest.raises(EngineDead):
                    ask()
            with pytest.raises(EngineDead):
                await engine.request("a")
            return elapsed

    assert asyncio.run(scenario()) < 1.0


def test_a_failing_step_ends_every_iterator_with_what_failed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_SIMULATED", "fail_kernel=rms_norm@40")

    async def scenario() -> list[Any]:
        async with started(model, platform="simulated") as engine:
            waiting = [last(engine.generate(f"Once {i}", LONG)) for i in range(3)]
            return await asyncio.gather(*waiting, return_exceptions=True)

    for outcome in asyncio.run(scenario()):
        assert isinstance(outcome, EngineDead)
        assert "rms_norm" in str(outcome)


def test_an_engine_that_hangs_is_killed_when_it_is_closed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_SIMULATED", "hang_step=2")
    monkeypatch.setattr("core.engine.link.SHUTDOWN_S", 0.5)

    async def scenario() -> int:
        async with started(model, platform="simulated") as engine:
            await begun(engine)
            return engine.pid

    assert not psutil.pid_exists(asyncio.run(scenario()))


def test_closing_ends_iterators_and_leaves_nothing_behind(model: Path) -> None:
    async def scenario() -> int:
        engine = await AsyncEngine.start(EngineConfig(**engine_keywords(model)))
        waiting = asyncio.create_task(last(engine.generate("Once", LONG)))
        await settled(engine, 1)
        await engine.close()
        await engine.close()
        with pytest.raises(EngineDead, match="closed"):
            await waiting
        return engine.pid

    before = set(Path(tempfile.gettempdir()).glob("core-*"))
    pid = asyncio.run(scenario())

    assert not psutil.pid_exists(pid)
    assert set(Path(tempfile.gettempdir()).glob("core-*")) <= before


@pytest.mark.parametrize(
    ("keywords", "kind", "says"),
    [
        ({"model": "./no/such/folder"}, ModelNotFound, "no/such/folder"),
        ({"platform": "abacus"}, NoPlatform, "abacus"),
        ({"max_model_len": 10**9}, ConfigError, "max_model_len"),
        ({"kv_cache_memory": 1}, ConfigError, "kv_cache_memory"),
    ],
)
def test_what_the_engine_cannot_start_with_is_raised_here(
    model: Path, keywords: dict[str, Any], kind: type[Exception], says: str
) -> None:
    config = EngineConfig(**(engine_keywords(model) | keywords))

    with pytest.raises(kind, match=says) as caught:
        asyncio.run(AsyncEngine.start(config))

    if isinstance(caught.value, ConfigError):
        assert caught.value.setting == says


def test_a_cancelled_start_leaves_no_process(model: Path) -> None:
    async def scenario() -> list[psutil.Process]:
        before = psutil.Process().children()
        starting = asyncio.create_task(AsyncEngine.start(EngineConfig(**engine_keywords(model))))
        while not (born := [child for child in psutil.Process().children() if child not in before]):
            await asyncio.sleep(0.01)
        starting.cancel()
        await asyncio.wait({starting})
        return born

    assert all(gone(child) for child in asyncio.run(scenario()))


def test_the_event_loop_turns_while_a_long_prompt_is_tokenized(server: ThreadedServer) -> None:
    async def scenario() -> float:
        engine = server.engine
        longest, last_turn = 0.0, time.monotonic()
        asking = asyncio.create_task(engine.request("word " * 400_000))
        while not asking.done():
            await asyncio.sleep(0)
            longest, last_turn = max(longest, time.monotonic() - last_turn), time.monotonic()
        assert isinstance(asking.exception(), RequestTooLong)
        return longest

    assert server.call(scenario()) < 0.5


def test_two_engines_live_side_by_side(model: Path) -> None:
    async def scenario() -> tuple[str, str]:
        async with started(model) as one, started(model) as two:
            first, second = await asyncio.gather(
                last(one.generate("a", GREEDY)), last(two.generate("a", GREEDY))
            )
            return first.outputs[0].text, second.outputs[0].text

    one, two = asyncio.run(scenario())

    assert one == two


class Raising(Observer):
    """Fails at every event of one kind."""

    def __init__(self, event: str) -> None:
        setattr(self, event, self._fail)
        self.times = 0

    def _fail(self, *_: object) -> None:
        self.times += 1
        raise ValueError("an observer's own fault")


@pytest.mark.parametrize("event", ["stepped", "began", "grew", "ended"])
def test_an_observer_that_raises_is_left_out_and_harms_nobody(model: Path, event: str) -> None:
    async def scenario() -> None:
        async with started(model) as engine:
            engine.observe(observer := Raising(event))
            for _ in range(2):
                assert (await asyncio.wait_for(last(engine.generate("Once", GREEDY)), 60)).finished
            assert engine.is_alive
            assert observer.times == 1

    asyncio.run(scenario())
