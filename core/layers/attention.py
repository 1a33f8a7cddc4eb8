"""The mixer of most layers: projections of queries, keys and values, attention, and the projection of its result."""

import torch
from torch import Tensor

from core.contracts.attention import Attention, AttentionShape, LayerCache
from core.contracts.model import Parts, StepInputs, Weights
from core.contracts.quantization import Weight
from core.layers.mlp import take_biases
from core.layers.norm import Norm, norm_of, take_norm
from core.layers.rotary import Rotation
from core.layers.settings import AttentionSettings, NormSettings


class AttentionMixer:
    """x [N, H] -> what attention adds to the stream, [R, H], of the rows that are asked for."""

    def __init__(
        self,
        weights: Weights,
        parts: Parts,
        index: int,
        hidden: int,
        shape: AttentionShape,
        settings: AttentionSettings,
    ) -> None:
        attention = parts.attention[index]
        assert attention is not None
        self._attention: Attention = attention
        self._index, self._shape, self._clip = index, shape, settings.clip
        self._kernels = parts.kernels
        self._project = parts.kernels.linear(*take_qkv(weights, hidden, shape, settings))
        output = weights.take_linear(
            [f"{settings.output}.weight"],
            [hidden],
            shape.num_heads * shape.head_dim,
            transposed=settings.transposed,
        )
        bias = weights.take(f"{settings.output}.bias", hidden) if settings.output_bias else None
        self._leave = parts.kernels.linear(output, bias)
        self._query_norm = _head_norm(weights, parts, settings, settings.query_norm)
        self._key_norm = _head_norm(weights, parts, settings, settings.key_norm)

    def __call__(
        self, x: Tensor, inputs: StepInputs, rotation: Rotation | None, rows: Tensor | None
    ) -> Tensor:
        query, key, value = self._heads(x)
        if rotation is not None:
            query, key = self._kernels.rotary(query, key, *rotation)
        cache: LayerCache = inputs.caches[self._index]
        plan = inputs.plans[self._index]
        self._attention.write(key, value, cache, plan)
        attended = self._attention.attend(query, cache, plan).reshape(len(x), -1)
        return self._leave(attended if rows is None else attended[rows])

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [N, heads, D] each, before rotation."""
        shape = self._shape
        stacked = self._project(x)
        if self._clip is not None:
            stacked = stacked.clamp(-self._clip, self._clip)
        sizes = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
        query, key, value = stacked.split_with_sizes([size * shape.head_dim for size in sizes], dim=-1)
        heads = (len(x), -1, shape.head_dim)
        if self._query_norm is not None:
            query = self._query_norm(query)
        if self._key_norm is not None:
            key = self._key_norm(key)
        return query.reshape(heads), key.reshape(heads), value.reshape(heads)


def take_qkv(
    weights: Weights, hidden: int, shape: AttentionShape, settings: AttentionSettings
) -> tuple[Weight, Tensor | None]:
    """The stacked projection, queries first, then keys, then values, and its bias."""
    query, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes = [query, kv, kv] if len(settings.qkv) == 3 else [query + 2 * kv]
    rows = qkv_rows(shape, settings)
    weight = weights.take_linear(
        [f"{name}.weight" for name in settings.qkv],
        sizes,
        hidden,
        rows=rows,
        transposed=settings.transposed,
    )
    if not settings.qkv_bias:
        return weight, None
    bias = take_biases(weights, settings.qkv, sizes)
    return weight, bias if rows is None else bias[rows]


def qkv_rows(shape: AttentionShape, settings: AttentionSettings) -> list[int] | None:
    """Of the projections as they are stored, the rows of queries, then keys, then values; None: as they are."""
    heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
    order = torch.arange((heads + 2 * kv_heads) * dim).view(-1, dim)
    if settings.grouped:
        parts = order.view(kv_heads, -1, dim).split_with_sizes((heads // kv_heads, 1, 1), dim=1)
        order = torch.cat([part.reshape(-1, dim) for part in parts])
    rotary = settings.rotary
    if rotary is not None and rotary.interleaved:
        turned = order[: heads + kv_heads].index_select(1, _halves(dim, rotary.rotary_dim))
        order = torch.cat((turned, order[heads + kv_heads :]))
    rows = [int(row) for row in order.flatten()]
    return None if rows == list(range(len(rows))) else rows


def _halves(dim: int, rotary_dim: int) -> Tensor:
    """Of a head whose neighbours are rotated together, the order in which its halves are: first evens, then odds."""
    pairs = torch.arange(rotary_dim)
    return torch.cat((pairs[0::2], pairs[1::2], torch.arange(rotary_dim, dim)))


def _head_norm(
    weights: Weights, parts: Parts, settings: AttentionSettings, norm: NormSettings | None
) -> Norm | None:
    """A norm of x [N, heads * D], over each head or over all."""
    if norm is None:
        return None
    weight, dim = take_norm(weights, norm), norm.size
    bias = weights.take(f"{norm.name}.bias", dim) if norm.bias else None
    if not norm.over_a_head:
        return norm_of(parts.kernels, norm, weight, bias)
    if settings.rotary is not None and settings.rotary.interleaved:
        order = _halves(dim, settings.rotary.rotary_dim)
        weight = None if weight is None else weight[..., order]
        bias = None if bias is None else bias[order]
    apply = norm_of(parts.kernels, norm, weight, bias)
    return lambda x: apply(x.reshape(len(x), -1, dim)).reshape(len(x), -1)
