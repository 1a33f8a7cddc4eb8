"""Mamba and Jamba against transformers: in chunks, with prefixes, preempted, aborted, and beside rows that fail."""

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import check, write_tiny
from parity import Reference, assert_greedy_parity
from safetensors.torch import load_file, save_file
from storm import assert_storm_proof

from core import LLM, SamplingParams

BAD = 300
"""A token whose embedding is not a number."""
JAMBA = {"num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaForCausalLM", {"tie_word_embeddings": True}),
    "mamba with biases, and a head of its own": (
        "MambaForCausalLM",
        {"use_bias": True, "use_conv_bias": False, "time_step_rank": 7, "expand": 3, "conv_kernel": 2},
    ),
    "jamba": ("JambaForCausalLM", JAMBA),
    "jamba without experts": ("JambaForCausalLM", {**JAMBA, "num_experts": 1, "mamba_proj_bias": True}),
}


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("recurrent"), *MODELS[request.param])


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
@pytest.mark.parametrize("folder", MODELS, indirect=True)
def test_it_computes_what_transformers_computes(folder: Path, platform: str) -> None:
    check(folder, platform, "native")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("folder", ["jamba"], indirect=True)
def test_r13_a_hybrid_model_weathers_a_storm(
    folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_SIMULATED", "block_size=12")
    assert_storm_proof(folder, (8, 14), "simulated", seed)


@pytest.mark.parametrize("folder", ["mamba"], indirect=True)
def test_so_does_one_of_states_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_SIMULATED", "block_size=12")
    assert_storm_proof(folder, (6,), "simulated", 7)


@pytest.mark.parametrize("folder", ["jamba"], indirect=True)
def test_so_does_it_without_a_prefix_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_SIMULATED", "block_size=12")
    assert_storm_proof(folder, (8, 22), "simulated", 11, enable_prefix_caching=False)


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
@pytest.mark.parametrize("folder", ["jamba"], indirect=True)
def test_a_row_that_fails_spoils_nobody_elses_state(folder: Path, platform: str, tmp_path: Path) -> None:
    write_tiny(tmp_path, *MODELS["jamba"])
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.embed_tokens.weight"][BAD] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    common = list(range(5, 65))
    bad = [[*common[:n], BAD, *common[n:]] for n in (0, 24, 50, 60)]
    good = [[*common[:n], 7, *common] for n in (0, 24, 30, 50, 60)]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    prompts = [prompt for pair in zip(bad, good, strict=False) for prompt in pair] + good[4:]
    with LLM(
        str(tmp_path), platform=platform, dtype="float32", skip_tokenizer_init=True, max_num_batched_tokens=96
    ) as llm:
        outputs = llm.generate([*prompts, *prompts], params, use_tqdm=False)
        outputs += llm.generate([*prompts, *good], params, use_tqdm=False)
    asked = [*prompts, *prompts, *prompts, *good]
    assert [output.error is not None for output in outputs] == [BAD in prompt for prompt in asked]
    right = [(p, o.outputs[0].token_ids) for p, o in zip(asked, outputs, strict=True) if not o.error]
    reference = Reference(folder, attention="eager")
    assert_greedy_parity(reference, [p for p, _ in right], [tokens for _, tokens in right], 8)
