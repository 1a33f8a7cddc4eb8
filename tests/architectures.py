"""Tiny random models of many architectures, and what each must show: that we compute what transformers computes.

A model is made from its architecture's name: the sizes below, where its config has such a key, and what it needs
besides. Every check runs on a ragged batch in chunks, with a prompt that is found in the prefix cache.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from parity import Reference, assert_greedy_parity

from core import LLM, RequestOutput, SamplingParams

TOLERANCE = 1e-4
"""Of log-probabilities: absolute where they are small, else relative."""

LENGTH = 32
_LISTED = 20  # log-probabilities compared at each position: the likeliest ones

_SIZES: Mapping[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "sliding_window": 20,
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 512,
    "dff": 96,
    "ffn_dim": 96,
    "ffn_hidden_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "is_decoder": True,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def tiny_config(architecture: str, changes: Mapping[str, Any]) -> Any:
    """A transformers config; a change to None leaves the config's own default."""
    import transformers

    config_class = getattr(transformers, architecture).config_class
    known = config_class().to_dict().keys() | config_class.attribute_map.keys()
    sizes = {**{key: value for key, value in _SIZES.items() if key in known}, **changes}
    return config_class(**{key: value for key, value in sizes.items() if value is not None})


def write_tiny(folder: Path, architecture: str, changes: Mapping[str, Any]) -> Path:
    """A model with random weights, so wide that greedy choices are clear-cut; returns the folder."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, architecture)(tiny_config(architecture, changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module = ".".join(name.split(".")[-3:])
            scale = "norm" in module or "ln_" in module
            parameter.normal_(1.0, 0.1) if scale and "weight" in name else parameter.normal_(0.0, 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):  # of a router, which is no parameter
                buffer.normal_(0.0, 0.1)
    model.save_pretrained(folder)
    return folder


def prompts() -> list[list[int]]:
    """Of 1 to 130 tokens, some of which begin alike."""
    rng = random.Random(5)
    made = [[rng.randrange(5, 320) for _ in range(n)] for n in (1, 3, 15, 16, 17, 40, 90, 130)]
    return [*made, made[7][:64] + made[1]]


def check(folder: Path, platform: str, model_impl: str) -> None:
    """Raises AssertionError where the engine and transformers differ."""
    reference, asked = Reference(folder, attention="eager"), prompts()
    params = SamplingParams(
        temperature=0, max_tokens=LENGTH, ignore_eos=True, detokenize=False, logprobs=_LISTED
    )
    with LLM(
        str(folder),
        platform=platform,
        model_impl=model_impl,
        dtype="float32",
        skip_tokenizer_init=True,
        max_num_batched_tokens=64,
    ) as llm:
        first = llm.generate(asked, params, use_tqdm=False)
        again = llm.generate(asked[-2:], params, use_tqdm=False)
    assert all(output.num_cached_tokens for output in again), "no prefix was found in the cache"
    assert_same(reference, [*asked, *asked[-2:]], [*first, *again], LENGTH)


def assert_same(
    reference: Reference, asked: Sequence[Sequence[int]], outputs: Sequence[RequestOutput], length: int
) -> None:
    """Every answer is the reference's, and so are its log-probabilities."""
    assert not any(output.error for output in outputs), outputs[0].error
    assert_greedy_parity(reference, asked, [output.outputs[0].token_ids for output in outputs], length)
    for i, (prompt, output) in enumerate(zip(asked, outputs, strict=True)):
        answer = output.outputs[0]
        logits = reference.logits([*prompt, *answer.token_ids])[len(prompt) - 1 : -1]
        for step, (row, found) in enumerate(zip(logits.log_softmax(-1), answer.logprobs or (), strict=True)):
            _assert_close(
                row, {token: each.logprob for token, each in found.items()}, f"prompt {i}, step {step}"
            )


def _assert_close(expected: torch.Tensor, found: Mapping[int, float], where: str) -> None:
    for token, logprob in found.items():
        wanted = float(expected[token])
        assert abs(logprob - wanted) <= TOLERANCE * max(1.0, abs(wanted)), f"{where}: {logprob}, not {wanted}"
