"""The decoder that all families share: embedding, layers, norm, head.

A family is a page of declared differences (`core.layers.settings`, which `core.layers.reading` reads); this package is
all of their code.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from core.layers.classifier import make_classifier
from core.layers.embedding import Embedding
from core.layers.layer import make_layer
from core.layers.norm import Entry, make_norm
from core.layers.rotary import RotaryTable, frequencies

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from core.contracts.model import ModelDescription, Parts, StepInputs, Weights
    from core.layers.rotary import Rotation
    from core.layers.settings import DecoderSettings, RotarySettings


class Decoder:
    """Implements `core.contracts.model.Model`."""

    def __init__(self, description: ModelDescription, weights: Weights, parts: Parts) -> None:
        settings = _as_stored(description.settings, weights)
        head = () if settings.head is None else (f"{settings.head}.",)
        for unused in (*settings.ignored, *((*settings.unused, *head) if description.pooling else ())):
            weights.leave(unused)
        self._input = _Input(description, settings, weights, parts)
        self._layers = [
            make_layer(weights, parts, i, shape, layer)
            for i, (shape, layer) in enumerate(zip(description.layers, settings.layers, strict=True))
        ]
        self._norm = Entry(weights, parts.kernels, settings.norm)
        self._project = _linear(
            weights, parts, settings.project_out, settings.embedding_size, description.hidden_size
        )
        if description.pooling is None:
            self._head = _head(description, settings, weights, parts)
        elif settings.classifier is not None:
            labels = description.pooling.size
            self._head = make_classifier(weights, parts, description.hidden_size, labels, settings.classifier)
        self._scale, self._cap = settings.logit_scale, settings.logit_cap
        self._rotary = _Rotary(settings, weights, parts)

    def forward(self, inputs: StepInputs) -> Tensor:
        """Hidden states at `inputs.rows`, after the last norm: [num_rows, H]."""
        x, residual = self._input(inputs), None  # [N, H]
        rotations = self._rotary(inputs.positions)
        last = len(self._layers) - 1
        for i, layer in enumerate(self._layers):
            rows = inputs.rows if i == last else None
            x, residual = layer(x, residual, inputs, rotations[i], rows)
        x, _ = self._norm(x, residual)  # [num_rows, H]
        return x if self._project is None else self._project(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[num_rows, H] -> [num_rows, V], scaled and capped as the model says."""
        logits = self._head(hidden)  # [num_rows, V]
        if self._scale != 1.0:
            logits = logits * self._scale
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap


def _as_stored(settings: DecoderSettings, weights: Weights) -> DecoderSettings:
    """With names as the checkpoint has them: some were saved without the model's head, and without its prefix."""
    prefix, embedding = settings.prefix, f"{settings.embedding}.weight"
    if not prefix or weights.has(embedding) or not weights.has(embedding.removeprefix(prefix)):
        return settings
    return _stripped(settings, prefix)


def _stripped(value: Any, prefix: str) -> Any:
    """Settings, and all that they are made of, whose names begin behind the prefix."""
    if isinstance(value, str):
        return value.removeprefix(prefix)
    if isinstance(value, tuple):
        return tuple(_stripped(part, prefix) for part in cast("tuple[Any, ...]", value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _stripped(getattr(value, f.name), prefix) for f in fields(value)})
    return value


class _Input:
    """token ids [N], positions [N] -> what the first layer reads, [N, H]."""

    def __init__(
        self, description: ModelDescription, settings: DecoderSettings, weights: Weights, parts: Parts
    ) -> None:
        hidden, width = description.hidden_size, settings.embedding_size
        self._embedding = Embedding(weights, parts, settings.embedding, description.vocab_size, width)
        self._project = _linear(weights, parts, settings.project_in, hidden, width)
        dtype = self._embedding.weight.dtype
        self._scale = torch.tensor(settings.embedding_scale, dtype=dtype).item()
        self._norm = make_norm(weights, parts.kernels, settings.embedding_norm)
        self._positions, self._segments, self._lookup = None, None, parts.kernels.embedding
        if settings.positions is not None:
            table = weights.take(f"{settings.positions.name}.weight", settings.positions.rows, hidden)
            self._positions = table[settings.positions.offset :].contiguous()
        if settings.segments is not None:
            self._segments = weights.take(f"{settings.segments.name}.weight", settings.segments.rows, hidden)

    def __call__(self, inputs: StepInputs) -> Tensor:
        x = self._embedding(inputs.token_ids)
        if self._project is not None:
            x = self._project(x)
        if self._scale != 1.0:
            x = x * self._scale
        if self._positions is not None:
            x = x + self._lookup(inputs.positions, self._positions)
        if self._segments is not None:
            several = inputs.segments is not None and len(self._segments) > 1
            x = x + (self._lookup(inputs.segments, self._segments) if several else self._segments[0])
        return self._norm(x)


class _Rotary:
    """positions [N] -> per layer, its rotation or None; tables are shared."""

    def __init__(self, settings: DecoderSettings, weights: Weights, parts: Parts) -> None:
        self._kinds: list[RotarySettings] = []
        self._kind_of = [self._kind(layer.mixer.rotary) for layer in settings.layers]
        self._tables = [self._table(kind, weights, parts) for kind in self._kinds]

    def __call__(self, positions: Tensor) -> list[Rotation | None]:
        rotations = [table(positions) for table in self._tables]
        return [None if kind is None else rotations[kind] for kind in self._kind_of]

    def _kind(self, rotary: RotarySettings | None) -> int | None:
        if rotary is None:
            return None
        if rotary not in self._kinds:
            self._kinds.append(rotary)
        return self._kinds.index(rotary)

    def _table(self, kind: RotarySettings, weights: Weights, parts: Parts) -> RotaryTable:
        inverse, scale = frequencies(kind, parts.max_model_len)
        if weights.has("rope_freqs.weight"):  # GGUF carries Llama 3's scaling as divisors
            inverse = inverse / weights.take("rope_freqs.weight", inverse.shape[0], dtype="float32").cpu()
        return RotaryTable(
            inverse, parts.max_model_len, getattr(torch, parts.dtype), parts.torch_device, scale
        )


def _linear(
    weights: Weights, parts: Parts, name: str | None, outputs: int, inputs: int
) -> Callable[[Tensor], Tensor] | None:
    if name is None:
        return None
    return parts.kernels.linear(weights.take_linear([f"{name}.weight"], [outputs], inputs), None)


def _head(
    description: ModelDescription, settings: DecoderSettings, weights: Weights, parts: Parts
) -> Callable[[Tensor], Tensor]:
    name = settings.embedding if settings.head is None else settings.head
    taken = weights.take_linear([f"{name}.weight"], [description.vocab_size], settings.embedding_size)
    bias = weights.take(f"{name}.bias", description.vocab_size) if settings.head_bias else None
    return parts.kernels.linear(taken, bias)
