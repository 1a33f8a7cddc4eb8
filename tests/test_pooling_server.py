"""The routes that answer with numbers for texts, over a real socket, with OpenAI's own client where it has them."""

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import NAME, ThreadedServer, engine_keywords, refused
from pooling_models import make, write_sentence_files

from core.config import EngineConfig
from server.app import create_app
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

TEXTS = ["the tides come and go", "a ship", "an altogether different matter"]


def served(folder: Path) -> Iterator[str]:
    with ThreadedServer(EngineConfig(**engine_keywords(folder)), 24) as running:
        yield running.open(ServerSettings(port=0, served_model_name=NAME))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = make(tmp_path_factory.mktemp("embedder"), "Bert", is_matryoshka=True)
    write_sentence_files(folder, "mean_tokens")
    yield from served(folder)


@pytest.fixture(scope="module")
def labeller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    labels = {0: "calm", 1: "rough", 2: "stormy"}
    yield from served(
        make(tmp_path_factory.mktemp("labeller"), "Bert", "ForSequenceClassification", id2label=labels)
    )


@pytest.fixture(scope="module")
def crosser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from served(
        make(tmp_path_factory.mktemp("crosser"), "Bert", "ForSequenceClassification", num_labels=1)
    )


@pytest.fixture
def embedding(embedder: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=embedder, timeout=60) as made:
        yield made


def post(url: str, path: str, **body: Any) -> Any:
    response = httpx.post(f"{url}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def test_openais_client_gets_the_same_vectors_as_numbers_and_as_base64(embedder: str) -> None:
    with openai.OpenAI(base_url=f"{embedder}/v1", api_key="unused", max_retries=0) as client:
        plain = client.embeddings.create(model=NAME, input=TEXTS, encoding_format="float")
        by_itself = client.embeddings.create(model=NAME, input=TEXTS)  # it asks for base64, and decodes it
    assert [entry.index for entry in plain.data] == [0, 1, 2]
    assert plain.object == "list" and plain.model == NAME and plain.usage.prompt_tokens > 20
    for numbers, decoded in zip(plain.data, by_itself.data, strict=True):
        assert len(numbers.embedding) == 64
        assert decoded.embedding == pytest.approx(numbers.embedding, abs=1e-6)


def test_base64_is_float32_little_endian(embedder: str) -> None:
    body = {"input": "a ship", "encoding_format": "base64"}
    raw = base64.b64decode(post(embedder, "/v1/embeddings", **body)["data"][0]["embedding"])
    numbers = post(embedder, "/v1/embeddings", input="a ship")["data"][0]["embedding"]
    assert list(struct.unpack("<64f", raw)) == numbers


def test_a_vector_may_be_cut_short_and_is_scaled_again(embedder: str) -> None:
    whole = post(embedder, "/v1/embeddings", input="a ship")["data"][0]["embedding"]
    short = post(embedder, "/v1/embeddings", input="a ship", dimensions=8)["data"][0]["embedding"]
    length = sum(x * x for x in whole[:8]) ** 0.5
    assert short == pytest.approx([x / length for x in whole[:8]], abs=1e-5)


def test_texts_and_token_ids_are_the_same_input(embedder: str) -> None:
    ids = [40, 41, 42]
    one = post(embedder, "/v1/embeddings", input=ids)
    many = post(embedder, "/v1/embeddings", input=[ids, [7]])
    assert one["data"][0]["embedding"] == pytest.approx(many["data"][0]["embedding"], abs=1e-6)
    assert many["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a ship", ""]}, "input[1]"),
        ({"input": [5, -1]}, "input"),
        ({"input": [5, 320]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": "x" * 1000}, "input"),
        ({"input": ["x"] * 2000}, "input"),
        ({"input": "x" * 600_000, "truncate_prompt_tokens": -1}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 65}, "dimensions"),
        ({"input": "a", "dimensions": "8"}, "dimensions"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "a", "use_activation": True}, "use_activation"),
        ({"input": "a", "stream": True}, "stream"),
    ],
)
def test_a_bad_embedding_request_is_refused_by_name(
    embedding: httpx.Client, body: dict[str, Any], parameter: str
) -> None:
    assert refused(embedding, "/v1/embeddings", body)["param"] == parameter


def test_a_text_that_is_too_long_is_cut_where_the_client_says_so(embedder: str) -> None:
    long, cut = "x" * 1000, "x" * 160
    given = post(embedder, "/v1/embeddings", input=long, truncate_prompt_tokens=-1)
    assert given["usage"]["prompt_tokens"] == 160
    expected = post(embedder, "/v1/embeddings", input=cut)["data"][0]["embedding"]
    assert given["data"][0]["embedding"] == pytest.approx(expected, abs=1e-6)


def test_scores_of_embeddings_are_cosines_and_rank_documents(embedder: str) -> None:
    score = post(embedder, "/v1/score", text_1="a ship", text_2=TEXTS)
    scores = [entry["score"] for entry in score["data"]]
    ranked = post(embedder, "/v1/rerank", query="a ship", documents=TEXTS)["results"]

    assert scores[1] == pytest.approx(1, abs=1e-5)
    assert ranked[0]["index"] == 1 and ranked[0]["document"] == {"text": "a ship"}
    assert [result["relevance_score"] for result in ranked] == pytest.approx(sorted(scores, reverse=True))


def test_a_cross_encoder_reads_both_texts(crosser: str) -> None:
    documents = [TEXTS[0], {"text": TEXTS[2]}]
    for route in ("/v1/rerank", "/v2/rerank", "/rerank"):
        best = post(crosser, route, model=NAME, query="a ship", documents=documents, top_n=1)["results"]
        assert len(best) == 1
    ranked = post(crosser, "/rerank", query="a ship", documents=documents, return_documents=False)["results"]
    scores = post(crosser, "/score", text_1=["a ship", "a ship"], text_2=[TEXTS[0], TEXTS[2]])["data"]

    assert all(0 < result["relevance_score"] < 1 and "document" not in result for result in ranked)
    assert {r["index"]: r["relevance_score"] for r in ranked} == pytest.approx(
        {entry["index"]: entry["score"] for entry in scores}
    )


def test_labels_come_with_their_names_and_probabilities(labeller: str) -> None:
    found = post(labeller, "/classify", input=TEXTS)["data"]
    raw = post(labeller, "/classify", input=TEXTS, use_activation=False)["data"]
    pooled = post(labeller, "/pooling", input=TEXTS)["data"]

    for entry, logits, numbers in zip(found, raw, pooled, strict=True):
        assert entry["num_classes"] == 3 and sum(entry["probs"]) == pytest.approx(1, abs=1e-5)
        assert entry["label"] == ("calm", "rough", "stormy")[entry["probs"].index(max(entry["probs"]))]
        assert logits["label"] == entry["label"] and logits["probs"] != entry["probs"]
        assert numbers["data"] == pytest.approx(entry["probs"], abs=1e-6)


def test_a_route_of_another_kind_says_what_the_model_is(embedder: str, labeller: str, url: str) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    wrong = [
        (embedder, "/v1/completions", {"prompt": "a"}, "makes embeddings"),
        (embedder, "/v1/chat/completions", chat, "makes embeddings"),
        (embedder, "/classify", {"input": "a"}, "makes embeddings"),
        (labeller, "/v1/embeddings", {"input": "a"}, "gives numbers for labels"),
        (labeller, "/v1/score", {"text_1": "a", "text_2": "b"}, "3 labels"),
        (url, "/v1/embeddings", {"input": "a"}, "generates text"),
        (url, "/pooling", {"input": "a"}, "generates text"),
        (url, "/v1/rerank", {"query": "a", "documents": ["b"]}, "generates text"),
    ]
    for server, path, body, said in wrong:
        with httpx.Client(base_url=server, timeout=60) as http:
            error = refused(http, path, body)
        assert error["param"] == "model" and said in error["message"], (path, error)


@pytest.mark.parametrize(
    ("path", "body", "parameter"),
    [
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [5]}, "documents[0]"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["b", "x" * 1000]}, "documents[1]"),
        ("/v1/rerank", {"query": "a", "documents": ["b"] * 2000}, "documents"),
        ("/v1/score", {"text_1": "a", "text_2": ["b"] * 2000}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "max_chunks_per_doc": 3}, "max_chunks_per_doc"),
    ],
)
def test_a_bad_pair_is_refused_by_name(
    embedding: httpx.Client, path: str, body: dict[str, Any], parameter: str
) -> None:
    assert refused(embedding, path, body)["param"] == parameter


def test_of_two_texts_that_are_read_together_the_one_at_fault_is_named(crosser: str) -> None:
    with httpx.Client(base_url=crosser, timeout=60) as client:
        for query, documents, parameter in (
            ("x" * 200, ["a", "b"], "query"),
            ("x" * 100, ["a", "b" * 100], "documents[1]"),
            ("a", ["b" * 500_000], "documents"),
        ):
            body = {"query": query, "documents": documents}
            assert refused(client, "/v1/rerank", body)["param"] == parameter, (query, documents)


def test_no_text_is_tokenized_for_a_client_that_has_hung_up(tmp_path: Path) -> None:
    body = json.dumps({"input": ["a", "x" * 1000]}).encode()  # the second would be refused
    received = iter([{"type": "http.request", "body": body}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(received, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/v1/embeddings",
        "headers": [(b"host", b"localhost")],
    }
    scope |= {"query_string": b"", "http_version": "1.1"}
    with ThreadedServer(EngineConfig(**engine_keywords(make(tmp_path / "model", "Bert"))), 24) as running:
        app = create_app(running.engine, ServerSettings(port=0, served_model_name=NAME))
        running.call(app(scope, receive, send))
    assert sent[0]["status"] == 499
