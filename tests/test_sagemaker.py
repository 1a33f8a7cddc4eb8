"""What SageMaker asks of a container: /ping, and /invocations, which is whatever its body makes it."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live_server import CHAT, NAME, ThreadedServer, engine_keywords, events, refused
from pooling_models import make

from core.config import EngineConfig
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

TEXTS = ["the tides come and go", "a ship"]


@pytest.fixture(scope="module")
def labeller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    labels = {0: "calm", 1: "rough", 2: "stormy"}
    folder = make(tmp_path_factory.mktemp("labeller"), "Bert", "ForSequenceClassification", id2label=labels)
    with ThreadedServer(EngineConfig(**engine_keywords(folder)), 24) as running:
        url = running.open(ServerSettings(port=0, served_model_name=NAME))
        with httpx.Client(base_url=url, timeout=60) as made:
            yield made


def invoked(http: httpx.Client, **body: Any) -> Any:
    response = http.post("/invocations", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_ping_is_answered_without_a_key_and_an_invocation_is_not(server: ThreadedServer) -> None:
    url = server.open(ServerSettings(port=0, served_model_name=NAME, api_key=["sesame"]))
    body = {"prompt": "Once", "max_tokens": 2}
    assert httpx.get(f"{url}/ping").json() == {"status": "ok"}
    assert httpx.post(f"{url}/invocations", json=body).status_code == 401
    headers = {"authorization": "Bearer sesame", "x-amzn-sagemaker-custom-attributes": "trace=7"}
    assert httpx.post(f"{url}/invocations", json=body, headers=headers, timeout=60).status_code == 200


def test_messages_make_a_chat_and_a_prompt_a_completion(http: httpx.Client) -> None:
    asked = {"temperature": 0, "max_tokens": 5}
    assert invoked(http, messages=CHAT, **asked)["object"] == "chat.completion"
    whole = invoked(http, prompt="Once", **asked)
    assert whole["object"] == "text_completion"
    direct = http.post("/v1/completions", json={"prompt": "Once", **asked}).json()
    assert whole["choices"] == direct["choices"]


def test_it_streams(http: httpx.Client) -> None:
    body = {"messages": CHAT, "max_tokens": 3, "stream": True}
    with http.stream("POST", "/invocations", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert events(response)[-1] == "[DONE]"


def test_input_makes_labels_of_a_model_that_gives_labels(labeller: httpx.Client) -> None:
    labels = [entry["label"] for entry in invoked(labeller, input=TEXTS)["data"]]
    direct = labeller.post("/classify", json={"input": TEXTS}).json()["data"]
    assert labels == [entry["label"] for entry in direct]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"input": TEXTS}, "/v1/embeddings"),
        ({"text_1": TEXTS[0], "text_2": TEXTS[1]}, "/v1/score"),
        ({"query": TEXTS[0], "documents": TEXTS}, "/v1/rerank"),
    ],
)
def test_what_the_model_cannot_do_is_refused_as_on_its_own_route(
    http: httpx.Client, body: dict[str, Any], path: str
) -> None:
    assert refused(http, "/invocations", body) == refused(http, path, body)


@pytest.mark.parametrize(
    "body", [{}, {"text": "Once"}, {"prompt": "Once", "messages": CHAT}, {"prompt": None}]
)
def test_a_body_that_does_not_tell_is_refused(http: httpx.Client, body: dict[str, Any]) -> None:
    assert (
        "exactly one of messages, prompt, input, text_1, documents"
        in refused(http, "/invocations", body)["message"]
    )


def test_unknown_fields_and_models_are_refused_as_everywhere(http: httpx.Client) -> None:
    assert refused(http, "/invocations", {"prompt": "Once", "colour": 3})["param"] == "colour"
    answer = http.post("/invocations", json={"input": "Once", "model": "nobody"})
    assert answer.status_code == 404
    assert http.post("/invocations", content=b"[1]").status_code == 400
