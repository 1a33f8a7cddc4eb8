"""R16: twenty thousand requests of mixed shape, with errors and clients that leave, and nothing is left behind."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from live_server import CHAT, NAME, server_process

NUM_REQUESTS = 20_000
NUM_ROUNDS = 20
"""After each, memory and handles are counted. The first third is warming up."""

AT_ONCE = 24
SLOPE = 0.02
"""How much more resident memory the last third may have than the second: a part of it."""

Shape = Callable[[httpx.AsyncClient, random.Random], Awaitable[str]]


async def whole(client: httpx.AsyncClient, rng: random.Random) -> str:
    """A completion with several answers, each given once."""
    num_prompts, n = rng.randint(1, 3), rng.randint(1, 2)
    body = prompt(rng) | {"n": n, "prompt": [words(rng) for _ in range(num_prompts)]}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(num_prompts * n))
    assert all(choice["finish_reason"] in ("stop", "length") for choice in choices)
    return "whole"


async def streamed(client: httpx.AsyncClient, rng: random.Random) -> str:
    """A conversation whose answer ends once."""
    body = {
        "messages": CHAT,
        "stream": True,
        "max_completion_tokens": rng.randint(1, 12),
        "seed": rng.randint(0, 9),
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        found = [line[6:] async for line in response.aiter_lines() if line]
    assert found.count("[DONE]") == 1 and found[-1] == "[DONE]"
    ends = [json.loads(chunk)["choices"][0]["finish_reason"] for chunk in found[:-1]]
    assert len([end for end in ends if end is not None]) == 1
    return "streamed"


async def left_while_streamed(client: httpx.AsyncClient, rng: random.Random) -> str:
    body = prompt(rng) | {"stream": True, "max_tokens": 400, "ignore_eos": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        async for _ in response.aiter_lines():
            return "left while streamed"
    raise AssertionError("nothing was streamed")


async def left_while_waiting(client: httpx.AsyncClient, rng: random.Random) -> str:
    body = prompt(rng) | {"max_tokens": 400, "ignore_eos": True}
    try:
        await client.post("/v1/completions", json=body, timeout=rng.uniform(0.001, 0.02))
    except httpx.TimeoutException:
        return "left while waiting"
    return "whole"


async def refused(client: httpx.AsyncClient, rng: random.Random) -> str:
    """What no server should take."""
    content, status = rng.choice(
        [
            ({"prompt": "a", "temperature": -1}, 400),
            ({"prompt": [10**6]}, 400),
            ({"prompt": [5] * 600}, 400),
            ({"prompt": "a", "model": "another"}, 404),
            ({"prompt": "a", "stop": [""]}, 400),
            ("no JSON", 400),
        ]
    )
    raw = content if isinstance(content, str) else json.dumps(content)
    response = await client.post("/v1/completions", content=raw.encode())
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]
    return "refused"


async def looked_at(client: httpx.AsyncClient, rng: random.Random) -> str:
    path = rng.choice(["/health", "/metrics", "/v1/models", "/stats"])
    assert (await client.get(path)).status_code == 200
    return "looked at"


SHAPES: list[Shape] = [
    *[whole] * 8,
    *[streamed] * 5,
    *[left_while_streamed] * 2,
    left_while_waiting,
    *[refused] * 3,
    looked_at,
]


def words(rng: random.Random) -> str:
    return " ".join(rng.choices(["tide", "ship", "storm", "sea", "a", "calm"], k=rng.randint(1, 30)))


def prompt(rng: random.Random) -> dict[str, Any]:
    return {
        "model": NAME,
        "prompt": words(rng),
        "max_tokens": rng.randint(1, 12),
        "temperature": rng.choice([0, 1]),
    }


async def round_of(client: httpx.AsyncClient, first: int, count: int) -> Counter[str]:
    """So many requests, some at once, and then one that is answered alone."""
    numbers = iter(range(first, first + count))
    done: Counter[str] = Counter()

    async def work() -> None:
        for number in numbers:
            rng = random.Random(number)
            done[await rng.choice(SHAPES)(client, rng)] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return done


async def settled(client: httpx.AsyncClient) -> dict[str, Any]:
    """The statistics once nothing is under way."""
    async with asyncio.timeout(30):
        while True:
            await whole(client, random.Random(0))
            (stats,) = (await client.get("/stats")).json()["models"]
            if stats["num_unfinished"] == stats["num_running"] == stats["num_waiting"] == 0:
                return stats


def held(processes: list[psutil.Process]) -> dict[str, int]:
    """Memory in bytes, and what else the processes hold."""
    return {
        "rss": sum(process.memory_info().rss for process in processes),
        "fds": sum(process.num_fds() for process in processes),
        "threads": sum(process.num_threads() for process in processes),
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes on a quiet machine, several times that on a busy one
def test_r16_nothing_grows_and_everything_is_answered_once(tiny_llama: Path) -> None:
    samples: list[dict[str, int]] = []
    usage: list[float] = []
    done: Counter[str] = Counter()
    engine = {"max_model_len": 512, "kv_cache_memory": "4MiB", "block_size": 16}

    async def soak(url: str, processes: list[psutil.Process]) -> None:
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        per_round = NUM_REQUESTS // NUM_ROUNDS
        for i in range(NUM_ROUNDS):
            async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
                done.update(await round_of(client, i * per_round, per_round))
                usage.append((await settled(client))["kv_cache_usage"])
                samples.append(held(processes))

    with server_process(tiny_llama, engine=engine, max_queued=512) as running:
        processes = [psutil.Process(running.process.pid), running.engine]
        asyncio.run(soak(running.url, processes))
        assert running.process.poll() is None

    assert done.total() == NUM_REQUESTS
    assert set(usage) == {0.0}, "blocks were not given back"
    third = NUM_ROUNDS // 3
    second, last = samples[third : 2 * third], samples[-third:]
    growth = mean(last, "rss") / mean(second, "rss") - 1
    print(done, f"resident memory grew by {growth:.2%}", samples[0], samples[-1])
    assert growth < SLOPE
    assert max(sample["fds"] for sample in last) <= max(sample["fds"] for sample in second) + 2
    assert max(sample["threads"] for sample in last) <= max(sample["threads"] for sample in second)


def mean(samples: list[dict[str, int]], name: str) -> float:
    return sum(sample[name] for sample in samples) / len(samples)
