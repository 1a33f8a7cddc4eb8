"""bfloat16: how far its log-probabilities may lie from float32's, and why.

bfloat16 has 8 significant bits, so every rounding errs by up to 2^-9 of a value. How the roundings of weights,
activations and cache add up in the logits depends on the weights: random ones, as here, amplify them more than
trained ones. So the measure is transformers' own bfloat16 run of the same model, against the same float32 run:
it rounds as often, at other places, and its error is a second draw from the same distribution. Over thousands of
log-probabilities the two root mean squares agree within a few percent; a quarter more is allowed. A kernel that
accumulates in bfloat16 errs once for each of its 64 terms or more: tried in the linear layers, 2.4 times as much.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core import LLM, SamplingParams

NUM_LAYERS = 4
ALLOWANCE = 1.25
PROMPTS = [[(37 * i + 11 * length) % 300 + 10 for i in range(length)] for length in (40, 64, 90)]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 20},
    "qwen2": {},
    "qwen3": {},
}


def folder_of(tiny_model: Callable[..., Path], family: str) -> Path:
    return tiny_model(family, num_hidden_layers=NUM_LAYERS, **FAMILIES[family])


def logprobs(folder: Path, dtype: torch.dtype) -> list[torch.Tensor]:
    """transformers' [len(prompt) - 1, vocabulary] of each prompt."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.inference_mode():
        return [torch.log_softmax(model(torch.tensor([p])).logits[0, :-1].float(), dim=-1) for p in PROMPTS]


def rms(errors: torch.Tensor) -> float:
    return float(errors.double().square().mean().sqrt())


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_stay_within_the_rounding_of_the_format(
    tiny_model: Callable[..., Path], family: str, platform: str
) -> None:
    folder = folder_of(tiny_model, family)
    expected, theirs = logprobs(folder, torch.float32), logprobs(folder, torch.bfloat16)
    params = SamplingParams(max_tokens=1, prompt_logprobs=20)
    with LLM(str(folder), platform=platform, dtype="bfloat16", max_num_batched_tokens=48) as llm:
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)

    ours_off: list[float] = []
    theirs_off: list[float] = []
    for output, exact, rounded in zip(outputs, expected, theirs, strict=True):
        assert output.prompt_logprobs is not None
        for row, found in enumerate(output.prompt_logprobs[1:]):
            assert found is not None
            for token, entry in found.items():
                ours_off.append(entry.logprob - float(exact[row, token]))
                theirs_off.append(float(rounded[row, token] - exact[row, token]))
    assert len(ours_off) > 3500
    ours, reference = rms(torch.tensor(ours_off)), rms(torch.tensor(theirs_off))
    assert 0 < ours < ALLOWANCE * reference, f"{ours:.4f}, and transformers' own {reference:.4f}"


def test_weights_and_cache_take_half_the_memory(tiny_llama: Path) -> None:
    sizes: dict[str, int] = {}
    for dtype in ("float32", "bfloat16"):
        with LLM(str(tiny_llama), platform="cpu", dtype=dtype) as llm:
            assert llm.info.dtype == dtype
            sizes[dtype] = llm.info.kv_cache_bytes
    assert sizes["float32"] == 2 * sizes["bfloat16"]
