"""One layer of a Llama-like decoder: its weights by their names, and the kernel that runs it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.contracts.attention import AttentionShape
from core.contracts.kernels import DecoderLayerWeights
from core.contracts.model import Parts, StepInputs, Weights


@dataclass(frozen=True, kw_only=True)
class DecoderLayerSettings:
    """Sizes and declared differences between families: biases, and norms on the heads of queries and keys."""

    hidden_size: int
    intermediate_size: int
    norm_eps: float
    qkv_bias: bool = False
    output_bias: bool = False
    head_norms: bool = False


class DecoderLayer:
    """x [N, H] is what the layer before added to the stream; `residual` [N, H] is the stream without it.

    `rows` [R] are the tokens that somebody goes on with, None for all: the last layer need not finish the others.
    """

    def __init__(
        self,
        weights: Weights,
        parts: Parts,
        index: int,
        shape: AttentionShape,
        settings: DecoderLayerSettings,
    ) -> None:
        self._index = index
        taken = _take(weights, f"model.layers.{index}", shape, settings)
        self._apply = parts.kernels.decoder_layer(parts.attention[index], taken, settings.norm_eps)

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        inputs: StepInputs,
        cos: Tensor,
        sin: Tensor,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        cache, plan = inputs.caches[self._index], inputs.plans[self._index]
        return self._apply(x, residual, cos, sin, cache, plan, rows)


def _take(
    weights: Weights, prefix: str, shape: AttentionShape, settings: DecoderLayerSettings
) -> DecoderLayerWeights:
    hidden, intermediate = settings.hidden_size, settings.intermediate_size
    query, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    qkv = [f"{attention}.{name}_proj" for name in "qkv"]

    def norm(name: str, size: int) -> Tensor:
        return weights.take(f"{name}.weight", size)

    return DecoderLayerWeights(
        input_norm=norm(f"{prefix}.input_layernorm", hidden),
        qkv=weights.take_linear([f"{name}.weight" for name in qkv], (query, kv, kv), hidden),
        qkv_bias=_stacked(weights, qkv, (query, kv, kv)) if settings.qkv_bias else None,
        query_norm=norm(f"{attention}.q_norm", shape.head_dim) if settings.head_norms else None,
        key_norm=norm(f"{attention}.k_norm", shape.head_dim) if settings.head_norms else None,
        output=weights.take_linear([f"{attention}.o_proj.weight"], [hidden], query),
        output_bias=weights.take(f"{attention}.o_proj.bias", hidden) if settings.output_bias else None,
        mlp_norm=norm(f"{prefix}.post_attention_layernorm", hidden),
        gate_up=weights.take_linear(
            [f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"], (intermediate, intermediate), hidden
        ),
        down=weights.take_linear([f"{mlp}.down_proj.weight"], [hidden], intermediate),
    )


def _stacked(weights: Weights, names: Sequence[str], sizes: Sequence[int]) -> Tensor:
    return torch.cat([weights.take(f"{name}.bias", size) for name, size in zip(names, sizes, strict=True)])
