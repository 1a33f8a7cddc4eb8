"""Latent attention: what it keeps of a token, and that it weathers preemption, shared prefixes and rows that fail."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import prompts, write_tiny
from parity import Reference, assert_greedy_parity
from safetensors.torch import load_file, save_file
from storm import assert_storm_proof

from core import LLM, SamplingParams
from core.conformance import available_platforms
from core.contracts.attention import AttentionSpec
from core.discovery import load_plugins
from core.execution.dispatch import resolve_attention
from core.ledger import Ledger

CONFIG: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": 8, "num_hidden_layers": 3}
RANK, ROTATED = 32, 8
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)
BAD = 300
"""A token whose embedding is not a number."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("deepseek"), "DeepseekV3ForCausalLM", CONFIG)


@pytest.mark.parametrize("name", ["cpu", "simulated"])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "kept"),
    [
        ("float32", None, (RANK + ROTATED) * 4),
        ("bfloat16", None, (RANK + ROTATED) * 2),
        ("bfloat16", "int8", RANK + ROTATED + 4),
    ],
)
def test_a_token_is_kept_as_one_vector_and_what_is_rotated(
    folder: Path, name: str, dtype: str, cache_dtype: str | None, kept: int
) -> None:
    """DeepSeek-V2, 2024, table 1: d_c + d_R numbers a token and layer, whatever the number of heads."""
    plugins = load_plugins()
    platform, device = available_platforms(plugins)[name]
    config = json.loads((folder / "config.json").read_text())
    layers = plugins.architectures["DeepseekV3ForCausalLM"].describe(config).layers
    size = platform.capabilities(device).block_sizes[0]
    for shape in layers:
        spec = AttentionSpec(**asdict(shape), dtype=dtype, block_size=size, cache_dtype=cache_dtype)
        held = resolve_attention(platform, device, spec, Ledger()).layout(1).tensors(dtype)
        assert (
            sum(math.prod(shape) * getattr(torch, held_as).itemsize for shape, held_as in held) == kept * size
        )


def test_a_cache_of_8_bits_says_the_same_again(folder: Path) -> None:
    with LLM(
        str(folder), platform="cpu", dtype="float32", kv_cache_dtype="int8", skip_tokenizer_init=True
    ) as llm:
        first = llm.generate(prompts(), GREEDY, use_tqdm=False)
        again = llm.generate(prompts(), GREEDY, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in first] == [o.outputs[0].token_ids for o in again]
    assert sum(o.num_cached_tokens for o in again) > 0


@pytest.mark.parametrize("seed", range(3))
def test_r13_it_weathers_a_storm(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_SIMULATED", "block_size=12")
    assert_storm_proof(folder, (14,), "simulated", seed)


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
def test_a_row_that_fails_spoils_nobody_else(folder: Path, platform: str, tmp_path: Path) -> None:
    write_tiny(tmp_path, "DeepseekV3ForCausalLM", CONFIG)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.embed_tokens.weight"][BAD] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    common = list(range(5, 45))
    asked = [[*common[:n], token, *common] for n in (0, 12, 24, 40) for token in (BAD, 7)]
    with LLM(str(tmp_path), platform=platform, dtype="float32", skip_tokenizer_init=True) as llm:
        outputs = llm.generate([*asked, *asked], GREEDY, use_tqdm=False)
    asked = [*asked, *asked]
    assert [output.error is not None for output in outputs] == [BAD in prompt for prompt in asked]
    right = [(p, o.outputs[0].token_ids) for p, o in zip(asked, outputs, strict=True) if not o.error]
    assert_greedy_parity(
        Reference(folder, attention="eager"), [p for p, _ in right], [t for _, t in right], 12
    )


@pytest.mark.parametrize(("quantization", "least"), [("int8", 0.9), ("int4", 0.5)])
def test_rounded_weights_say_nearly_the_same(folder: Path, quantization: str, least: float) -> None:
    """Experts are rounded as other weights are; the router, and what is absorbed, is not."""
    with LLM(
        str(folder), platform="cpu", dtype="float32", quantization=quantization, skip_tokenizer_init=True
    ) as llm:
        outputs = llm.generate(prompts(), GREEDY, use_tqdm=False)
        ledger = {choice.what: choice.detail for choice in llm.engine.ledger.choices}
    assert f"as {quantization}" in ledger["weights"]
    reference, agreeing, count = Reference(folder, attention="eager"), 0, 0
    for prompt, output in zip(prompts(), outputs, strict=True):
        tokens = output.outputs[0].token_ids
        rows = reference.logits([*prompt, *tokens])[len(prompt) - 1 : -1]
        agreeing += int((rows.argmax(-1) == torch.tensor(tokens)).sum())
        count += len(tokens)
    assert agreeing / count >= least


def test_layers_that_only_draft_tokens_are_left_out(folder: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path, "DeepseekV3ForCausalLM", CONFIG)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.3.eh_proj.weight"] = torch.zeros(64, 128)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with LLM(str(tmp_path), platform="cpu", dtype="float32", skip_tokenizer_init=True) as llm:
        (output,) = llm.generate([[5, 6, 7]], GREEDY, use_tqdm=False)
    assert_greedy_parity(Reference(folder, attention="eager"), [[5, 6, 7]], [output.outputs[0].token_ids], 12)
