"""Every declared difference between the decoder families, against transformers on tiny random weights."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parity import Reference, assert_greedy_parity
from storm import assert_storm_proof

from core import LLM, SamplingParams

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True}),
    "llama with tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "llama of one key head": ("llama", {"num_key_value_heads": 1}),
    "llama of wide heads": ("llama", {"head_dim": 32}),
    "llama 3.1 rotary": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 10000.0,
            }
        },
    ),
    "llama linear rotary": (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window of 20": ("mistral", {"sliding_window": 20}),
    "qwen2": ("qwen2", {}),
    "qwen2 with a window in its upper layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
}
LENGTH = 32


def tiny_prompts() -> list[list[int]]:
    rng = random.Random(5)
    made = [[rng.randrange(5, 320) for _ in range(n)] for n in (1, 3, 15, 16, 17, 40, 90, 130)]
    return [*made, made[6][:64] + made[1]]


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_family_gives_the_same_tokens_as_transformers(
    tiny_model: Callable[..., Path], family: str, platform: str
) -> None:
    name, overrides = FAMILIES[family]
    folder = tiny_model(name, **overrides)
    prompts, params = tiny_prompts(), SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    with LLM(str(folder), platform=platform, dtype="float32", max_num_batched_tokens=64) as llm:
        answers = [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]
    assert_greedy_parity(Reference(folder), prompts, answers, LENGTH)


@pytest.mark.parametrize(
    ("family", "blocks", "caching"),
    [
        ("llama", (14,), True),
        pytest.param("llama", (20,), False, marks=pytest.mark.slow),
        pytest.param("qwen2 with a window in its upper layer", (14, 10), True, marks=pytest.mark.slow),
    ],
)
def test_r13_a_decoder_weathers_a_storm(
    tiny_model: Callable[..., Path],
    family: str,
    blocks: tuple[int, ...],
    caching: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLM_SIMULATED", "block_size=12")
    name, overrides = FAMILIES[family]
    assert_storm_proof(tiny_model(name, **overrides), blocks, "simulated", 3, enable_prefix_caching=caching)


def test_layers_with_and_without_a_window_are_separate_cache_groups(tiny_model: Callable[..., Path]) -> None:
    _, overrides = FAMILIES["qwen2 with a window in its upper layer"]
    with LLM(str(tiny_model("qwen2", **overrides)), platform="cpu", dtype="float32") as llm:
        groups = llm.engine.scheduler.cache.groups
    assert [(group.layers, group.window) for group in groups] == [((0,), None), ((1,), 20)]


def test_a_window_keeps_only_the_blocks_it_needs(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model("mistral", sliding_window=20)
    with LLM(str(folder), platform="cpu", dtype="float32", enable_prefix_caching=False) as llm:
        pool = llm.engine.scheduler.cache.pools[0]
        most = 0
        for _ in llm.stream([7] * 100, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)):
            most = max(most, pool.usable - pool.num_free)
    assert most <= 3, "160 tokens are ten blocks; a window of 20 tokens spans at most three"
