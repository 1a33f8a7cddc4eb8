"""Many clients at once, clients that leave, and an engine that dies under them."""

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import (
    LONG,
    MAX_MODEL_LEN,
    MAX_QUEUED,
    NAME,
    ThreadedServer,
    complete,
    engine_keywords,
    refused,
    wait_for,
)

from core.config import EngineConfig
from core.errors import EngineDead
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)


def test_eight_streams_at_once_each_say_what_they_say_alone(client: openai.OpenAI) -> None:
    prompts = [f"Story number {i}, which begins" + " with a storm" * i for i in range(8)]
    alone = [complete(client, prompt, max_tokens=32).choices[0].text for prompt in prompts]

    def stream(prompt: str) -> str:
        return "".join(c.choices[0].text for c in complete(client, prompt, max_tokens=32, stream=True))

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(stream, prompts))

    assert together == alone


def test_r1_bad_requests_do_not_disturb_a_stream_beside_them(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    undisturbed = complete(client, max_tokens=60).choices[0].text
    canary, text = iter(complete(client, max_tokens=60, stream=True)), ""

    for body in (
        {"prompt": [10**9]},
        {"prompt": "a", "logit_bias": {"320": 1}},
        {"n": 1e400},
        [],
        {"prompt": ""},
    ):
        text += next(canary).choices[0].text
        response = http.post("/v1/completions", content=json.dumps(body).encode())
        assert response.status_code == 400
    text += "".join(chunk.choices[0].text for chunk in canary)

    assert text == undisturbed


def test_one_body_with_more_prompts_than_the_server_holds_is_a_bad_request(http: httpx.Client) -> None:
    assert refused(http, "/v1/completions", {"prompt": ["a"] * (MAX_QUEUED + 1)})["param"] == "prompt"


@pytest.mark.parametrize(
    "more",
    [{"stream": True}, {"stream": False}, {"stream": True, "n": 3}, {"prompt": [[5], [6], [7]]}],
    ids=["stream", "whole", "n", "prompts"],
)
def test_r3_hanging_up_cancels_what_was_asked_for(
    server: ThreadedServer, url: str, more: dict[str, Any]
) -> None:
    body = {"prompt": "Once upon a time"} | LONG | more
    with httpx.Client(base_url=url) as leaving, ThreadPoolExecutor(1) as pool:
        request = leaving.build_request("POST", "/v1/completions", json=body)
        if more.get("stream"):
            response = leaving.send(request, stream=True)
            next(response.iter_lines())
            response.close()
        else:
            waiting = pool.submit(leaving.post, "/v1/completions", json=body, timeout=0.5)
            wait_for(lambda: server.num_running() > 0)
            assert isinstance(waiting.exception(), httpx.ReadTimeout)

    wait_for(lambda: server.num_running() == 0, patience=2)


def test_r3_hanging_up_while_queued_cancels_too(
    server: ThreadedServer, url: str, client: openai.OpenAI
) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as another:
        running = [
            another.completions.create(model=NAME, prompt="a", stream=True, extra_body=LONG) for _ in range(8)
        ]
        for stream in running:
            next(iter(stream))
        with httpx.Client(base_url=url) as leaving, pytest.raises(httpx.ReadTimeout):
            leaving.post("/v1/completions", json={"prompt": "queued"} | LONG, timeout=0.3)
        wait_for(lambda: server.num_running() == 8, patience=2)
        for stream in running:
            stream.close()

    wait_for(lambda: server.num_running() == 0, patience=2)


def test_r3_hanging_up_while_the_prompt_is_computed_cancels_too(tiny_model: Callable[..., Path]) -> None:
    model = tiny_model("llama", max_position_embeddings=MAX_MODEL_LEN)
    prompt = [5 + i % 200 for i in range(8000)]  # five hundred steps of sixteen tokens
    with ThreadedServer(EngineConfig(**engine_keywords(model, max_num_batched_tokens=16)), 4) as server:
        url = server.open(ServerSettings(port=0, access_log=False))
        with httpx.Client(base_url=url) as leaving, ThreadPoolExecutor(1) as pool:
            body = {"prompt": prompt, "max_tokens": 4}
            waiting = pool.submit(leaving.post, "/v1/completions", json=body, timeout=0.2)
            wait_for(lambda: (now := server.engine.latest) is not None and now.num_running == 1)
            assert isinstance(waiting.exception(), httpx.ReadTimeout)
        wait_for(lambda: server.num_running() == 0, patience=2)
        left = server.call(server.engine.statistics())

    assert 0 < left.num_steps < 500 and left.generation_tokens == 0
    assert left.kv_cache_usage == 0


def test_r2_a_dead_engine_turns_health_and_requests_into_503(tiny_llama: Path) -> None:
    with ThreadedServer(EngineConfig(**engine_keywords(tiny_llama)), 4) as server:
        url = server.open(ServerSettings(port=0))
        os.kill(server.engine.pid, signal.SIGKILL)
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 503, patience=2)
        refusal = httpx.post(f"{url}/v1/completions", json={"prompt": "a"})

        assert refusal.status_code == 503
        assert refusal.json()["error"]["code"] == "engine_dead"
        with pytest.raises(EngineDead):
            server.call(server.engine.statistics())
