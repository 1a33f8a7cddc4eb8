"""lm-eval against a live server: what it measures over HTTP is what the engine says in this process."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from datasets import Dataset
from live_server import NAME, ThreadedServer
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from core import LLM, SamplingParams

pytest_plugins = ("server_fixtures",)
pytestmark = pytest.mark.filterwarnings("default")  # lm-eval's own are not ours

TASK = "tides"
DOCUMENTS = [
    {"question": "The tides come and", "answer": " go"},
    {"question": "Once upon a", "answer": " time there was a tide"},
    {"question": "ünd so", "answer": " weiter 🌊"},
]


def task(kind: str, **more: Any) -> dict[str, ConfigurableTask]:
    config = {
        "task": TASK,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(DOCUMENTS)},
        "test_split": "test",
        "output_type": kind,
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
    }
    return {TASK: ConfigurableTask(config=config | more)}


def answers(lm: Any, tasks: dict[str, ConfigurableTask], **more: Any) -> list[Any]:
    """What the server answered, document by document."""
    samples = evaluate(lm, tasks, bootstrap_iters=0, **more)["samples"][TASK]
    return [sample["resps"][0][0] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]


@pytest.fixture(scope="module")
def llm(server: ThreadedServer) -> Iterator[LLM]:
    """The same model in this process."""
    info = server.engine.info
    with LLM(info.model_path, platform="cpu", dtype="float32", kv_cache_memory="8MiB") as loaded:
        yield loaded


@pytest.fixture
def known(server: ThreadedServer, url: str) -> dict[str, Any]:
    folder = server.engine.info.model_path
    return {"model": NAME, "base_url": f"{url}/v1/completions", "tokenizer": folder, "max_retries": 1}


def scored(llm: LLM, document: dict[str, str]) -> tuple[float, bool]:
    """The log-probability of the answer after the question, and whether it is the greedy one."""
    begin = llm.get_tokenizer().encode(document["question"])
    ids = llm.get_tokenizer().encode(document["question"] + document["answer"])
    params = SamplingParams(max_tokens=1, prompt_logprobs=1)
    (output,) = llm.generate([{"prompt_token_ids": ids}], params)
    assert output.prompt_logprobs is not None
    chosen = [
        position[token]
        for token, position in zip(ids[len(begin) :], output.prompt_logprobs[len(begin) :], strict=True)
        if position is not None
    ]
    return sum(candidate.logprob for candidate in chosen), all(candidate.rank == 1 for candidate in chosen)


@pytest.mark.parametrize(
    "more",
    [
        {"tokenizer_backend": "huggingface"},
        {"tokenizer_backend": "huggingface", "batch_size": 3},
        {"tokenizer_backend": "huggingface", "num_concurrent": 3},
        {"tokenizer_backend": "huggingface", "tokenized_requests": False},
        {"tokenizer_backend": "remote", "tokenizer": None},
    ],
)
def test_a_loglikelihood_over_http_is_the_one_of_this_process(
    known: dict[str, Any], llm: LLM, more: dict[str, Any]
) -> None:
    lm = LocalCompletionsAPI(**known | more)

    measured = answers(lm, task("loglikelihood"))

    for (logprob, greedy), document in zip(measured, DOCUMENTS, strict=True):
        expected, is_greedy = scored(llm, document)
        assert logprob == pytest.approx(expected, abs=1e-3)
        assert greedy == is_greedy
    if more["tokenizer_backend"] == "remote":
        lm.tokenizer.session.close()


def test_a_choice_among_answers_is_the_likeliest(known: dict[str, Any], llm: LLM) -> None:
    choices = [document["answer"] for document in DOCUMENTS]
    lm = LocalCompletionsAPI(**known, tokenizer_backend="huggingface")
    tasks = task("multiple_choice", doc_to_choice=choices, doc_to_target=0)

    results = evaluate(lm, tasks, bootstrap_iters=0)

    likeliest = [
        max(range(3), key=lambda i: scored(llm, document | {"answer": choices[i]})[0])
        for document in DOCUMENTS
    ]
    assert results["results"][TASK]["acc,none"] == pytest.approx(likeliest.count(0) / 3)


def test_a_greedy_answer_over_http_is_the_one_of_this_process(known: dict[str, Any], llm: LLM) -> None:
    lm = LocalCompletionsAPI(**known, tokenizer_backend="huggingface", tokenized_requests=False)
    given = {"until": ["\n\n"], "max_gen_toks": 12, "temperature": 0}

    measured = answers(lm, task("generate_until", generation_kwargs=given))

    params = SamplingParams(max_tokens=12, temperature=0, stop=["\n\n", "</s>"])
    outputs = llm.generate([document["question"] for document in DOCUMENTS], params)
    assert measured == [output.outputs[0].text for output in outputs]


def test_a_chat_answer_over_http_is_the_one_of_this_process(known: dict[str, Any], llm: LLM) -> None:
    address = known["base_url"].replace("/v1/completions", "/v1/chat/completions")
    lm = LocalChatCompletion(model=NAME, base_url=address, max_retries=1)
    given = {"until": ["\n\n"], "max_gen_toks": 12, "temperature": 0}

    measured = answers(lm, task("generate_until", generation_kwargs=given), apply_chat_template=True)

    params = SamplingParams(max_tokens=12, temperature=0, stop=["\n\n"])
    for answer, document in zip(measured, DOCUMENTS, strict=True):
        (output,) = llm.chat([{"role": "user", "content": document["question"]}], params)
        assert answer == output.outputs[0].text


def test_the_requests_that_lm_eval_sends_are_answered_in_its_shape(url: str) -> None:
    body = {
        "model": NAME,
        "prompt": [[70, 71, 72], [73, 74]],
        "temperature": 0,
        "max_tokens": 1,
        "seed": 1234,
    }
    choices = httpx.post(f"{url}/v1/completions", json=body | {"logprobs": 1, "echo": True}).json()["choices"]

    for choice, ids in zip(choices, body["prompt"], strict=True):
        assert choice["logprobs"]["token_logprobs"][0] is None
        assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1
        for logprob, top in zip(
            choice["logprobs"]["token_logprobs"][1:], choice["logprobs"]["top_logprobs"][1:], strict=True
        ):
            assert logprob <= max(top.values())
