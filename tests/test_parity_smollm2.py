"""SmolLM2-135M in float32 says what transformers says, however the engine is driven."""

from pathlib import Path
from typing import Any

import pytest
from parity import Reference, assert_greedy_parity

from core import LLM, SamplingParams

# The whole comparison takes minutes on a quiet machine and several times that on a busy one.
pytestmark = pytest.mark.timeout(1800)

LENGTH = 64
GREEDY = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)


@pytest.fixture(scope="module")
def reference(smollm2_hf: Path) -> Reference:
    return Reference(smollm2_hf)


@pytest.fixture(scope="module")
def verified(reference: Reference, smollm2_hf: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Answers to all prompts, made one by one on the cpu platform and compared with transformers."""
    with LLM(str(smollm2_hf), platform="cpu", dtype="float32", enable_prefix_caching=False) as llm:
        answers = [llm.generate(p, GREEDY, use_tqdm=False)[0].outputs[0].token_ids for p in prompts]
    assert_greedy_parity(reference, prompts, answers, LENGTH)
    return answers


def answers_of(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY, use_tqdm=False)]


def assert_same(
    reference: Reference, prompts: list[list[int]], expected: list[list[int]], answers: list[list[int]]
) -> None:
    """Equal to the verified answers; what differs is compared with transformers itself."""
    different = [i for i in range(len(prompts)) if answers[i] != expected[i]]
    assert_greedy_parity(reference, [prompts[i] for i in different], [answers[i] for i in different], LENGTH)


WAYS: dict[str, dict[str, Any]] = {
    "one batch": {},
    "no prefix cache": {"enable_prefix_caching": False},
    "chunks of 16": {"max_num_batched_tokens": 16},
    "chunks of 2048": {"max_num_batched_tokens": 2048},
    "tiny cache": {"kv_cache_memory": "48MiB"},
}


FAST = ("one batch", "chunks of 16")


@pytest.mark.parametrize("platform", ["cpu", pytest.param("simulated", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way in FAST else pytest.mark.slow) for way in WAYS]
)
def test_a_batch_gives_the_same_tokens_as_transformers(
    reference: Reference,
    smollm2_hf: Path,
    prompts: list[list[int]],
    verified: list[list[int]],
    platform: str,
    way: str,
) -> None:
    with LLM(str(smollm2_hf), platform=platform, dtype="float32", **WAYS[way]) as llm:
        answers = answers_of(llm, prompts)
        assert_same(reference, prompts, verified, answers)
        if way == "tiny cache":
            assert llm.engine.statistics().num_preemptions > 0
        if way == "one batch":  # again, from the cache
            before = llm.engine.statistics().prefix_cache_hits
            assert_same(reference, prompts, verified, answers_of(llm, prompts))
            assert llm.engine.statistics().prefix_cache_hits - before > 2000


@pytest.mark.slow
def test_one_by_one_on_the_simulated_platform(
    reference: Reference, smollm2_hf: Path, prompts: list[list[int]], verified: list[list[int]]
) -> None:
    with LLM(str(smollm2_hf), platform="simulated", dtype="float32") as llm:
        answers = [answers_of(llm, [prompt])[0] for prompt in prompts]
    assert_same(reference, prompts, verified, answers)


def test_a_batch_on_the_simulated_platform(
    reference: Reference, smollm2_hf: Path, prompts: list[list[int]], verified: list[list[int]]
) -> None:
    few, expected = prompts[8:16], verified[8:16]
    with LLM(str(smollm2_hf), platform="simulated", dtype="float32", max_num_batched_tokens=100) as llm:
        assert_same(reference, few, expected, answers_of(llm, few))


def test_the_gguf_gives_the_same_tokens_as_the_folder(
    reference: Reference, smollm2: Path, prompts: list[list[int]], verified: list[list[int]]
) -> None:
    with LLM(str(smollm2), platform="cpu", dtype="float32") as llm:
        assert_same(reference, prompts[:8], verified[:8], answers_of(llm, prompts[:8]))


def test_the_default_model_answers_the_capital_of_france(smollm2: Path) -> None:
    with LLM(str(smollm2), platform="cpu", dtype="float32") as llm:
        output = llm.chat(
            [{"role": "user", "content": "What is the capital of France?"}],
            SamplingParams(temperature=0, max_tokens=24),
            use_tqdm=False,
        )[0]
    assert output.outputs[0].text.startswith("The capital of France is Paris.")
    assert output.outputs[0].finish_reason == "stop"
