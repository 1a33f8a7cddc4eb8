"""One server for all tests that only talk to it; a plugin, so that it is started once per run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from live_server import MAX_MODEL_LEN, MAX_QUEUED, NAME, ThreadedServer, engine_keywords

from core.config import EngineConfig
from server.settings import ServerSettings


@pytest.fixture(scope="session")
def server(tiny_model: Callable[..., Path]) -> Iterator[ThreadedServer]:
    model = tiny_model("llama", max_position_embeddings=MAX_MODEL_LEN)
    with ThreadedServer(EngineConfig(**engine_keywords(model)), MAX_QUEUED) as running:
        yield running


@pytest.fixture(scope="session")
def url(server: ThreadedServer) -> str:
    return server.open(ServerSettings(port=0, served_model_name=NAME, access_log=False))


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as made:
        yield made
