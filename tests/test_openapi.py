"""/openapi.json says what is accepted and answered; what is generated from it meets neither a 5xx nor a lie."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from live_server import NAME, ThreadedServer, engine_keywords, events
from pooling_models import make, write_sentence_files
from pydantic import BaseModel
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished

from core.config import EngineConfig
from core.engine.async_engine import AsyncEngine
from core.sampling_params import INTEGERS, NUMBERS
from server.app import app_of, declared
from server.openai.answers import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from server.openapi import is_api, openapi
from server.settings import ServerSettings
from server.state import Served, State

pytest_plugins = ("server_fixtures",)

PLAIN = {"/metrics"}
"""Routes whose answer is no JSON."""

SAME = {"/invocations", "/score", "/rerank", "/v2/rerank"}
"""Other names of routes; only the slow test asks them, too."""

POOLING = {
    "embed": "embedder",
    "score": "embedder",
    "rerank": "embedder",
    "pooling": "embedder",
    "classify": "labeller",
}
"""A part of a route's path -> the model that can answer there."""

NEEDS_A_RESPONSE = "/v1/responses/{response_id}"


@pytest.fixture(scope="module")
def state(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[State, str]]:
    """A server of three models, one of each kind, whose answers are short; and its address."""
    embedder = make(tmp_path_factory.mktemp("embedder"), "Bert", is_matryoshka=True)
    write_sentence_files(embedder, "mean_tokens")
    labeller = make(tmp_path_factory.mktemp("labeller"), "Bert", "ForSequenceClassification", num_labels=3)
    small = {"max_model_len": 24, "kv_cache_memory": "8MiB"}
    config = EngineConfig(**engine_keywords(tiny_model("llama"), **small))
    with ThreadedServer(config, 256) as running:

        async def started() -> list[AsyncEngine]:
            configs = [EngineConfig(**engine_keywords(folder, **small)) for folder in (embedder, labeller)]
            return await asyncio.gather(*map(AsyncEngine.start, configs))

        others = running.call(started())
        engines = dict(zip((NAME, "embedder", "labeller"), (running.engine, *others), strict=True))
        settings = ServerSettings(port=0, access_log=False)
        made = State(settings, [Served(name=name, spelled=name, engine=engines[name]) for name in engines])
        yield made, running.open(settings, app_of(made))
        for engine in others:
            running.call(engine.close())


@pytest.fixture(scope="module")
def document(state: tuple[State, str]) -> dict[str, Any]:
    return httpx.get(f"{state[1]}/openapi.json").json()


def narrowed(document: dict[str, Any], leave_out: set[str]) -> dict[str, Any]:
    """The description of fewer routes, in which each asks for a model that can answer."""
    narrow = deepcopy(document)
    narrow["paths"] = {path: methods for path, methods in narrow["paths"].items() if path not in leave_out}
    for path, methods in narrow["paths"].items():
        body = methods.get("post", {}).get("requestBody")
        if body is not None and path != "/invocations":
            reference = body["content"]["application/json"]["schema"]["$ref"]
            fields = narrow["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
            able = next((model for part, model in POOLING.items() if part in path), NAME)
            fields["model"] = {"enum": [able, None], "examples": [able]}
    return narrow


class Outcome:
    """What came of everything that schemathesis generates, the same for the same seed.

    A body that the description admits may be refused still, for what two fields say together (`min_tokens` above
    `max_tokens`) or for the model that is asked, so `positive_data_acceptance` is not checked.
    """

    def __init__(self, document: dict[str, Any], url: str, num_examples: int) -> None:
        self.failures: list[str] = []
        self.answered: Counter[str] = Counter()
        self.num_asked = 0
        settings = {
            "seed": 6,
            "base-url": url,
            "workers": 1,
            "continue-on-failure": True,
            "generation": {"max-examples": num_examples, "deterministic": True, "database": "none"},
            "checks": {"positive_data_acceptance": {"enabled": False}},
            "phases": {"stateful": {"enabled": False}},
        }
        schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig.from_dict(settings))
        for event in from_schema(schema).execute():
            if isinstance(event, NonFatalError):
                self.failures.append(event.info.format())
            if isinstance(event, FatalError):
                raise event.exception
            if isinstance(event, ScenarioFinished):
                self._take(event.recorder)

    def _take(self, recorder: Any) -> None:
        for interaction in recorder.interactions.values():
            self.num_asked += 1
            if interaction.response is None:
                self.failures.append(f"{recorder.label} was not answered")
            elif interaction.response.status_code == 200:
                self.answered[recorder.label] += 1
        for check in (check for checks in recorder.checks.values() for check in checks):
            if (found := check.failure_info) is not None:
                self.failures.append(
                    f"{recorder.label}: {check.name}: {found.failure.message}\n{found.code_sample}"
                )

    def check(self, document: dict[str, Any]) -> None:
        assert not self.failures, f"{len(self.failures)} failures, the first:\n" + "\n\n".join(
            self.failures[:5]
        )
        operations = {
            f"{method.upper()} {path}"
            for path, methods in document["paths"].items()
            for method in methods
            if not path.startswith(NEEDS_A_RESPONSE)
        }
        assert operations <= self.answered.keys(), "some routes were never answered with 200"


def test_what_is_generated_from_the_description_is_answered_as_described(
    document: dict[str, Any], state: tuple[State, str]
) -> None:
    narrow = narrowed(document, SAME)
    outcome = Outcome(narrow, state[1], num_examples=5)
    outcome.check(narrow)
    assert outcome.num_asked > 2000


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes on a quiet machine, several times that on a busy one
def test_so_is_much_more_of_it(document: dict[str, Any], state: tuple[State, str]) -> None:
    narrow = narrowed(document, set())
    Outcome(narrow, state[1], num_examples=100).check(narrow)


def test_every_route_of_the_api_declares_what_it_answers(
    document: dict[str, Any], state: tuple[State, str]
) -> None:
    assert document["openapi"].startswith("3.1")
    for route in declared(state[0]):
        if is_api(route):
            assert route.answer is not None or route.events or route.path in PLAIN, route.path
            assert route.method != "POST" or route.body is not None or "{" in route.path, route.path
    assert set(document["paths"]) == {
        route.path.replace(":path", "") for route in declared(state[0]) if is_api(route)
    }
    ids = [
        operation["operationId"] for methods in document["paths"].values() for operation in methods.values()
    ]
    assert len(set(ids)) == len(ids)


def test_keys_are_asked_of_what_is_not_open(state: tuple[State, str]) -> None:
    paths = openapi(declared(state[0]), [NAME], has_keys=True)["paths"]
    assert paths["/health"]["get"]["security"] == []
    assert paths["/openapi.json"]["get"]["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert "401" in paths["/openapi.json"]["get"]["responses"]


@pytest.mark.parametrize("body", ["ChatBody", "CompletionBody", "MessagesBody", "ResponseBody"])
def test_ranges_are_those_that_are_checked(document: dict[str, Any], body: str) -> None:
    fields = document["components"]["schemas"][body]["properties"]
    for name, accepted in (INTEGERS | NUMBERS).items():
        if (
            name in fields
            and name not in ("max_tokens", "top_k")
            and (body, name) != ("ChatBody", "logprobs")
        ):
            (shape,) = (one for one in fields[name]["anyOf"] if one["type"] in ("integer", "number"))
            low = "exclusiveMinimum" if accepted.open_low else "minimum"
            assert (shape[low], shape["maximum"]) == (accepted.low, accepted.high), name


CASES: list[tuple[str, dict[str, Any], type[BaseModel], type[BaseModel]]] = [
    ("/v1/completions", {"prompt": "Once"}, Completion, CompletionChunk),
    (
        "/v1/completions",
        {"prompt": ["a", "b"], "n": 2, "logprobs": 3, "echo": True},
        Completion,
        CompletionChunk,
    ),
    ("/v1/completions", {"prompt": [[9, 8]], "return_token_ids": True}, Completion, CompletionChunk),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "a"}]},
        ChatCompletion,
        ChatCompletionChunk,
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "logprobs": True,
            "top_logprobs": 2,
            "n": 2,
            "return_token_ids": True,
        },
        ChatCompletion,
        ChatCompletionChunk,
    ),
]


@pytest.mark.parametrize(("path", "body", "whole", "chunk"), CASES)
def test_real_answers_are_what_is_described(
    state: tuple[State, str], path: str, body: dict[str, Any], whole: type[BaseModel], chunk: type[BaseModel]
) -> None:
    given = {"max_tokens": 6, "ignore_eos": True} | body
    whole.model_validate_json(httpx.post(state[1] + path, json=given, timeout=60).raise_for_status().content)
    streamed = given | {"stream": True, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", state[1] + path, json=streamed, timeout=60) as response:
        *chunks, done = events(response)
    assert done == "[DONE]" and len(chunks) > 2
    for one in chunks:
        chunk.model_validate_json(json.dumps(one))
