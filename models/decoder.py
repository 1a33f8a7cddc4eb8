"""The decoder that Llama, Mistral, Qwen2, Qwen3 and their kin share.

A family is a page of declared differences (`DecoderSettings`); this file is all of their code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.layers.decoder import DecoderLayer
from core.layers.embedding import Embedding
from core.layers.rotary import RotaryTable, frequencies

if TYPE_CHECKING:
    from torch import Tensor

    from core.contracts.model import ModelDescription, Parts, StepInputs, Weights
    from models.settings import DecoderSettings


class Decoder:
    """Embedding, layers, norm, head. Implements `core.contracts.model.Model`."""

    def __init__(self, description: ModelDescription, weights: Weights, parts: Parts) -> None:
        settings: DecoderSettings = description.settings
        hidden, vocabulary = description.hidden_size, description.vocab_size
        self.embedding = Embedding(weights, parts, "model.embed_tokens", vocabulary, hidden)
        self.layers = [
            DecoderLayer(weights, parts, i, shape, settings.layer)
            for i, shape in enumerate(description.layers)
        ]
        self.norm = weights.take("model.norm.weight", hidden)
        self.eps, self.add_rms_norm = settings.layer.norm_eps, parts.kernels.add_rms_norm
        head = "model.embed_tokens.weight" if settings.tied else "lm_head.weight"
        self.head = parts.kernels.linear(weights.take_linear([head], [vocabulary], hidden), None)
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
        for layer in self.layers[:-1]:
            x, residual = layer(x, residual, inputs, cos, sin)
        x, residual = self.layers[-1](x, residual, inputs, cos, sin, inputs.rows)  # [num_rows, H]
        x, _ = self.add_rms_norm(x, residual, self.norm, self.eps)
        return x  # [num_rows, H]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)  # [num_rows, V]
