"""Comparing greedy tokens with Hugging Face transformers on the same weights.

The reference sees the prompt and our answer in one pass. As long as each of our tokens is the reference's
likeliest, its own greedy decoding would have taken the same path; the first that is not is a difference.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

TIE = 1e-4
"""A first difference is excused where the reference's two logits are this close."""


class Reference:
    """transformers in float32, one sequence at a time."""

    def __init__(self, folder: Path, attention: str = "sdpa") -> None:
        import transformers

        (name,) = json.loads((folder / "config.json").read_text())["architectures"]
        model_class: Any = getattr(transformers, name)
        self.model = model_class.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        ).eval()

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[len(token_ids), vocab_size]"""
        return self.model(torch.tensor([list(token_ids)])).logits[0]

    def first_difference(self, prompt: Sequence[int], answer: Sequence[int]) -> str | None:
        """Where greedy decoding would have gone another way, or None. Ties end the comparison."""
        logits = self.logits([*prompt, *answer])[len(prompt) - 1 : -1]
        for step, (row, token) in enumerate(zip(logits, answer, strict=True)):
            best = int(row.argmax())
            if best != token:
                gap = float(row[best] - row[token])
                return (
                    None if gap <= TIE else f"step {step}: {token} instead of {best}, {gap:.5f} less likely"
                )
        return None


def assert_greedy_parity(
    reference: Reference, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int
) -> None:
    """Every answer has `length` tokens and is what transformers would have said."""
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert len(answer) == length, f"prompt {i}: {len(answer)} tokens"
        difference = reference.first_difference(prompt, answer)
        assert difference is None, f"prompt {i} of {len(prompt)} tokens, {difference}"
