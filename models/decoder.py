"""The decoder that Llama, Mistral, Qwen2, Qwen3 and their kin share.

A family is a page of declared differences (`DecoderSettings`); this file is all of their code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.layers.attention import SelfAttention
from core.layers.embedding import Embedding
from core.layers.linear import GatedMLP
from core.layers.norm import RMSNorm
from core.layers.rotary import RotaryTable, frequencies

if TYPE_CHECKING:
    from torch import Tensor

    from core.contracts.model import ModelDescription, Parts, StepInputs, Weights
    from models.settings import DecoderSettings


class DecoderLayer:
    """Attention and MLP, each behind a norm, each added to the residual stream."""

    def __init__(self, weights: Weights, parts: Parts, description: ModelDescription, index: int) -> None:
        settings: DecoderSettings = description.settings
        prefix, hidden = f"model.layers.{index}", description.hidden_size
        self.input_norm = RMSNorm(weights, parts, f"{prefix}.input_layernorm", hidden, settings.norm_eps)
        self.attention = SelfAttention(
            weights,
            parts,
            f"{prefix}.self_attn",
            index,
            hidden,
            description.layers[index],
            settings.projections,
        )
        self.mlp_norm = RMSNorm(
            weights, parts, f"{prefix}.post_attention_layernorm", hidden, settings.norm_eps
        )
        self.mlp = GatedMLP(weights, parts, f"{prefix}.mlp", hidden, settings.intermediate_size)

    def __call__(
        self, x: Tensor, residual: Tensor | None, inputs: StepInputs, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x [N, H] is what the layer before added; the residual stream without it comes along."""
        if residual is None:
            x, residual = self.input_norm(x), x
        else:
            x, residual = self.input_norm.add(x, residual)
        x = self.attention(x, inputs, cos, sin)
        x, residual = self.mlp_norm.add(x, residual)
        return self.mlp(x), residual


class Decoder:
    """Embedding, layers, norm, head. Implements `core.contracts.model.Model`."""

    def __init__(self, description: ModelDescription, weights: Weights, parts: Parts) -> None:
        settings: DecoderSettings = description.settings
        hidden, vocabulary = description.hidden_size, description.vocab_size
        self.embedding = Embedding(weights, parts, "model.embed_tokens", vocabulary, hidden)
        self.layers = [DecoderLayer(weights, parts, description, i) for i in range(len(description.layers))]
        self.norm = RMSNorm(weights, parts, "model.norm", hidden, settings.norm_eps)
        head = self.embedding.weight if settings.tied else weights.take("lm_head.weight", vocabulary, hidden)
        self.head = parts.kernels.linear(head, None)
        inverse = frequencies(settings.rotary)
        if weights.has("rope_freqs.weight"):  # GGUF carries Llama 3's scaling as divisors
            inverse = inverse / weights.take("rope_freqs.weight", inverse.shape[0], dtype="float32").cpu()
        self.rotary = RotaryTable(
            inverse, description.context, self.embedding.weight.dtype, parts.torch_device
        )

    def forward(self, inputs: StepInputs) -> Tensor:
        x = self.embedding(inputs.token_ids)  # [N, H]
        cos, sin = self.rotary(inputs.positions)
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual, inputs, cos, sin)
        assert residual is not None
        x, _ = self.norm.add(x[inputs.rows], residual[inputs.rows])
        return x  # [num_rows, H]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)  # [num_rows, V]
