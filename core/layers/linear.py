"""Projections. The platform's `linear` kernel takes the weights once and owns their layout."""

from collections.abc import Sequence

import torch
from torch import Tensor

from core.contracts.model import Parts, Weights


class Linear:
    """x [N, in] -> [N, out], with several checkpoint weights of the same input stacked into one."""

    def __init__(
        self,
        weights: Weights,
        parts: Parts,
        names: Sequence[str],
        outputs: Sequence[int],
        inputs: int,
        *,
        bias: bool,
    ) -> None:
        weight = _stack(
            [weights.take(f"{n}.weight", out, inputs) for n, out in zip(names, outputs, strict=True)]
        )
        offset = (
            _stack([weights.take(f"{n}.bias", out) for n, out in zip(names, outputs, strict=True)])
            if bias
            else None
        )
        self._apply = parts.kernels.linear(weight, offset)

    def __call__(self, x: Tensor) -> Tensor:
        return self._apply(x)


class GatedMLP:
    """down(silu(gate(x)) * up(x)), [N, H] -> [N, H]; no biases."""

    def __init__(self, weights: Weights, parts: Parts, prefix: str, hidden: int, intermediate: int) -> None:
        gate = weights.take(f"{prefix}.gate_proj.weight", intermediate, hidden)
        up = weights.take(f"{prefix}.up_proj.weight", intermediate, hidden)
        down = weights.take(f"{prefix}.down_proj.weight", hidden, intermediate)
        self._apply = parts.kernels.gated_mlp(_stack([gate, up]), down)

    def __call__(self, x: Tensor) -> Tensor:
        return self._apply(x)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
