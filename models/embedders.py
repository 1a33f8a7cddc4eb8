"""Decoders trained for embeddings or labels and nothing else, under the names that such checkpoints have."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.contracts.attention import AttentionShape
from core.contracts.model import ModelDescription, Pooling
from models import gemma, llama
from models.pooling import pooled


def _gritlm(config: Mapping[str, Any]) -> ModelDescription:
    """Mistral, trained for both: an embedding is the mean of what follows the instruction, and sees the whole text.

    Source: GritLM, Muennighoff et al. 2024, section 2.
    """
    described = replace(llama.MISTRAL.describe(config), architecture="GritLM")
    both_ways = tuple(
        replace(shape, causal=False, sliding_window=None)
        for shape in described.layers
        if isinstance(shape, AttentionShape)
    )
    pooling = Pooling(tokens="mean", size=described.hidden_size, normalize=True, after="<|embed|>\n")
    return replace(described, embedder=replace(described, layers=both_ways, pooling=pooling))


GRITLM = replace(llama.MISTRAL, name="GritLM", describe=_gritlm, gguf=None)

ALL = [
    GRITLM,
    *pooled(llama.LLAMA, "Llama"),
    *pooled(llama.MISTRAL, "Mistral"),
    *pooled(llama.QWEN2, "Qwen2"),
    *pooled(llama.QWEN3, "Qwen3"),
    *pooled(gemma.GEMMA, "Gemma"),
    *pooled(gemma.GEMMA2, "Gemma2"),
    *pooled(gemma.GEMMA3, "Gemma3Text"),
]
