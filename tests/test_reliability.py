"""What must survive what: requests that cannot be computed, equal names, and a cache that hardly holds one request.

Others are where their subject is: R1 and R3 in test_server_load, R2 and R17 in test_server_lifetime and test_fleet, R4
in test_scheduler_machine, R6 and R7 in test_overload, R8 in test_tokenizer, R9 in test_detokenizer, R10 in
test_detokenizer and test_stopping, R12 in test_server, R13 in test_parity_tiny, test_jamba and test_deepseek, R16 in
test_soak.
"""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import MAX_QUEUED, NAME, ThreadedServer, complete, engine_keywords, events
from safetensors.torch import load_file, save_file

from core import SamplingParams
from core.config import EngineConfig
from core.engine.async_engine import AsyncEngine
from core.errors import ConfigError, RequestTooLong
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

BAD_TOKEN = 319
"""Its embedding is NaN in the spoilt model, which is kept from choosing it."""

GIVEN = {"temperature": 0, "ignore_eos": True, "logit_bias": {str(BAD_TOKEN): -100}}


@pytest.fixture(scope="module")
def spoilt(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedServer]:
    """A server whose model computes NaN in the rows that hold BAD_TOKEN, with a cache of 32 blocks."""
    folder = tmp_path_factory.mktemp("spoilt") / "model"
    shutil.copytree(tiny_llama, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][BAD_TOKEN] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    keywords = engine_keywords(folder, kv_cache_memory="256KiB", block_size=16, max_model_len=256)
    with ThreadedServer(EngineConfig(**keywords), MAX_QUEUED) as running:
        yield running


@pytest.fixture(scope="module")
def spoilt_url(spoilt: ThreadedServer) -> str:
    return spoilt.open(ServerSettings(port=0, served_model_name=NAME, access_log=False))


def streamed(url: str, **body: Any) -> list[Any]:
    """Every event of a streamed completion."""
    given = GIVEN | {"stream": True, "max_tokens": 48} | body
    with httpx.stream("POST", f"{url}/v1/completions", json=given, timeout=60) as response:
        assert response.status_code == 200
        return events(response)


def said(found: list[Any]) -> str:
    assert found[-1] == "[DONE]"
    return "".join(event["choices"][0]["text"] for event in found[:-1])


def test_r14_nan_in_one_row_is_that_requests_error_and_nobody_elses(
    spoilt: ThreadedServer, spoilt_url: str
) -> None:
    prompts = [f"Story number {i}, which begins with a storm." for i in range(4)]
    bad = [*range(10, 60), BAD_TOKEN, *range(10, 40)]
    alone = [said(streamed(spoilt_url, prompt=prompt)) for prompt in prompts]

    for _ in range(6):  # its blocks go round: were what it left in them read, a neighbour would change
        with ThreadPoolExecutor(6) as pool:
            neighbours = [pool.submit(streamed, spoilt_url, prompt=prompt) for prompt in prompts]
            failing = pool.submit(streamed, spoilt_url, prompt=bad)
            whole = pool.submit(httpx.post, f"{spoilt_url}/v1/completions", json={"prompt": bad}, timeout=60)
            assert [said(neighbour.result()) for neighbour in neighbours] == alone
            assert failing.result()[-1]["error"]["code"] == "generation_failed"
            assert whole.result().status_code == 500
            assert whole.result().json()["error"]["code"] == "generation_failed"

    statistics = spoilt.call(spoilt.engine.statistics())
    assert (statistics.num_running, statistics.num_waiting) == (0, 0)
    assert statistics.kv_cache_usage == 0.0


def test_r14_what_a_failed_request_computed_is_never_read_from_the_cache(spoilt_url: str) -> None:
    beginning = list(range(10, 58))  # three whole blocks
    before = complete_ids(spoilt_url, beginning)

    for _ in range(2):
        response = httpx.post(
            f"{spoilt_url}/v1/completions", json={"prompt": [*beginning, BAD_TOKEN, *beginning]}
        )
        assert response.status_code == 500

    assert complete_ids(spoilt_url, beginning)["token_ids"] == before["token_ids"]


def complete_ids(url: str, prompt: list[int]) -> dict[str, Any]:
    body = GIVEN | {"prompt": prompt, "max_tokens": 8, "return_token_ids": True}
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def test_r15_fifty_requests_with_one_id_are_fifty_requests(url: str) -> None:
    body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 4}
    wanted = httpx.post(f"{url}/v1/completions", json=body).json()["choices"][0]["text"]

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            slots = asyncio.Semaphore(MAX_QUEUED - 4)

            async def ask() -> httpx.Response:
                async with slots:
                    return await client.post(
                        "/v1/completions", json=body, headers={"x-request-id": "the-same"}
                    )

            return await asyncio.gather(*(ask() for _ in range(50)))

    answers = asyncio.run(together())

    assert [answer.status_code for answer in answers] == [200] * 50
    assert {answer.headers["x-request-id"] for answer in answers} == {"the-same"}
    assert len({answer.json()["id"] for answer in answers}) == 50
    assert {answer.json()["choices"][0]["text"] for answer in answers} == {wanted}


def small(model: Path, **more: Any) -> EngineConfig:
    """An engine whose cache holds one sequence of 128 tokens, and hardly more."""
    return EngineConfig(**engine_keywords(model, block_size=16, max_model_len=128, **more))


def test_r5_what_the_cache_can_never_hold_is_refused_at_the_door(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        asyncio.run(AsyncEngine.start(small(tiny_llama, kv_cache_memory="16KiB")))
    assert caught.value.setting in ("kv_cache_memory", "max_model_len")

    with ThreadedServer(small(tiny_llama, kv_cache_memory="80KiB"), 64) as running:
        with pytest.raises(RequestTooLong):
            running.call(running.engine.request(list(range(10, 10 + 128))))
        running.call(all_get_on(running.engine))


async def all_get_on(engine: AsyncEngine) -> None:
    """More than fits, several answers each: everything ends, and something runs or ends while anything waits."""
    params = SamplingParams(n=2, max_tokens=24, temperature=0, ignore_eos=True)
    prompts = [[10 + (i + j) % 300 for j in range(100)] for i in range(16)]
    asked = [asyncio.create_task(finished(engine, prompt, params)) for prompt in prompts]
    stuck, last_step = 0, -1
    while not all(task.done() for task in asked):
        now = await engine.statistics()
        idle = now.num_running == 0 and now.num_waiting > 0 and now.num_steps == last_step
        stuck, last_step = stuck + 1 if idle else 0, now.num_steps
        assert stuck < 3, "requests wait, nothing runs, and no step was made"
    assert [await task for task in asked] == [[24, 24]] * 16
    assert (await engine.statistics()).num_preemptions > 0


async def finished(engine: AsyncEngine, prompt: list[int], params: SamplingParams) -> list[int]:
    """Tokens of each answer."""
    async for output in engine.generate(prompt, params):
        last = output
    return [len(answer.token_ids) for answer in last.outputs]


def test_r18_at_temperature_0_a_batch_changes_no_token(client: openai.OpenAI) -> None:
    """In float32 a matrix product may be summed in another order for another number of rows: the last digits of a
    log-probability may differ, by less than 1e-4; the tokens are the same.
    """
    prompts = [f"Chapter {i}. " + "The sea was calm. " * i for i in range(12)]
    alone = [complete(client, prompt, logprobs=2, max_tokens=32).choices[0] for prompt in prompts]

    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(
            pool.map(lambda p: complete(client, p, logprobs=2, max_tokens=32).choices[0], prompts)
        )

    assert [choice.text for choice in together] == [choice.text for choice in alone]
    for one, other in zip(alone, together, strict=True):
        assert other.logprobs.tokens == one.logprobs.tokens
        assert other.logprobs.token_logprobs == pytest.approx(one.logprobs.token_logprobs, abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_r11_the_reason_for_the_end_is_the_same_streamed_or_not(client: openai.OpenAI, stream: bool) -> None:
    free = complete(client, max_tokens=24).choices[0].text
    asked: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
        "length": ({"max_tokens": 3}, lambda stop: stop is None),
        "stop": ({"stop": [free[4:6]]}, lambda stop: stop == free[4:6]),
    }
    for reason, (more, expected) in asked.items():
        answer = complete(client, stream=stream, **more)
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == [reason]
        assert expected(choices[-1].stop_reason)
