"""A layer of a Llama-like decoder: attention and gated MLP, each behind a norm, each added to the stream."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from core.contracts.attention import Attention, AttentionShape, LayerCache
from core.contracts.kernels import CachedSequences, Case, Cost, DecoderLayerWeights, Kernel, Kernels
from core.reference.costs import GATE_FLOPS, NORM_FLOPS, ROTARY_FLOPS, product_flops, sight, stored_bytes
from core.reference.inputs import Inputs, rounded

Apply = Callable[..., tuple[Tensor, Tensor]]

_EPS = 1e-5


def decoder_layer(kernels: Kernels, attention: Attention, weights: DecoderLayerWeights, eps: float) -> Apply:
    """One layer -> a function (x, residual, cos, sin, cache, plan, rows=None) -> (x, residual).

    attention   of this layer, already chosen
    weights     shapes are those of `DecoderLayerWeights`, in core/contracts/kernels.py
    eps         of every norm

    x           [N, H]: what the layer before added to the stream
    residual    [N, H]: the stream without it; None in the first layer, where x is the stream
    cos, sin    [N, R / 2], model dtype: the rotation of each token's position
    cache, plan of this layer, from `attention`
    rows        [R], int64, distinct: the tokens whose x and residual are asked for, [R, H] each, in this order; None:
                all. The keys and values of every token are cached, whatever is asked for

    x and residual are given away: a platform may overwrite them, and return them.
    """
    attend = _attend(kernels, attention, weights, eps)
    project = kernels.linear(weights.output, weights.output_bias)
    mlp = kernels.gated_mlp(weights.gate_up, weights.down)

    def apply(
        x: Tensor,
        residual: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache,
        plan: Any,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if residual is None:
            normed, stream = kernels.rms_norm(x, weights.input_norm, eps), x
        else:
            normed, stream = kernels.add_rms_norm(x, residual, weights.input_norm, eps)
        attended = attend(normed, cos, sin, cache, plan)
        if rows is not None:
            attended, stream = attended[rows], stream[rows]
        attended = project(attended)
        normed, stream = kernels.add_rms_norm(attended, stream, weights.mlp_norm, eps)
        return mlp(normed), stream

    return apply


def _attend(
    kernels: Kernels, attention: Attention, weights: DecoderLayerWeights, eps: float
) -> Callable[[Tensor, Tensor, Tensor, LayerCache, Any], Tensor]:
    heads, kv_heads, dim = attention.spec.num_heads, attention.spec.num_kv_heads, attention.spec.head_dim
    project = kernels.linear(weights.qkv, weights.qkv_bias)

    def attend(x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, plan: Any) -> Tensor:
        stacked = project(x).split_with_sizes((heads * dim, kv_heads * dim, kv_heads * dim), dim=-1)
        query, key, value = (part.reshape(len(x), -1, dim) for part in stacked)  # [N, heads, D]
        if weights.query_norm is not None:
            query = kernels.rms_norm(query, weights.query_norm, eps)
            key = kernels.rms_norm(key, weights.key_norm, eps)
        query, key = kernels.rotary(query, key, cos, sin)
        attention.write(key, value, cache, plan)
        return attention.attend(query, cache, plan).reshape(len(x), -1)

    return attend


def _weights(inputs: Inputs, shape: AttentionShape, hidden: int, *, extras: bool) -> DecoderLayerWeights:
    """`extras`: with the biases and head norms that some families have."""
    query, dim, intermediate = shape.num_heads * shape.head_dim, shape.head_dim, 2 * hidden + 5
    outputs = query + 2 * shape.num_kv_heads * dim
    return DecoderLayerWeights(
        input_norm=inputs.near_one(hidden),
        qkv=inputs.weight(outputs, hidden),
        qkv_bias=inputs.normal(outputs, scale=0.5) if extras else None,
        query_norm=inputs.near_one(dim) if extras else None,
        key_norm=inputs.near_one(dim) if extras else None,
        output=inputs.weight(hidden, query),
        output_bias=inputs.normal(hidden, scale=0.5) if extras else None,
        mlp_norm=inputs.near_one(hidden),
        gate_up=inputs.weight(2 * intermediate, hidden),
        down=inputs.weight(hidden, intermediate),
    )


def _cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    plain = AttentionShape(num_heads=9, num_kv_heads=3, head_dim=64, scale=64**-0.5)
    small = AttentionShape(num_heads=4, num_kv_heads=4, head_dim=16, scale=0.3)
    yield _case(inputs, "a decode", small, 64, ((1, 30),))
    yield _case(inputs, "the first token of all", small, 64, ((1, 1),), first=True)
    yield _case(inputs, "decodes", plain, 100, ((1, 7), (1, 40), (1, 1)))
    yield _case(inputs, "a prompt", plain, 576, ((33, 33),), first=True)
    yield _case(inputs, "a chunk", plain, 100, ((9, 50),), extras=True)
    yield _case(inputs, "biases and head norms", small, 64, ((1, 12), (1, 33)), extras=True)
    prompts = ((5, 5), (6, 20))
    yield _case(inputs, "the rows that sample", plain, 96, prompts, rows=(4, 10))
    yield _case(inputs, "rows out of order", small, 64, prompts, rows=(10, 3, 0), first=True)
    yield _case(inputs, "no row, only the cache", small, 64, ((9, 30),), rows=())
    windowed = replace(plain, sliding_window=8)
    yield _case(inputs, "a chunk behind a window", windowed, 96, ((6, 20),), rotary_dim=32)
    wide = AttentionShape(num_heads=2, num_kv_heads=1, head_dim=128, scale=128**-0.5)
    yield _case(inputs, "decodes, heads of 128", wide, 64, ((1, 20), (1, 3)))


def _case(
    inputs: Inputs,
    name: str,
    shape: AttentionShape,
    hidden: int,
    sequences: tuple[tuple[int, int], ...],
    *,
    first: bool = False,
    extras: bool = False,
    rotary_dim: int | None = None,
    rows: tuple[int, ...] | None = None,
) -> Case:
    new_tokens, cached = sum(new for new, _ in sequences), sum(length - new for new, length in sequences)
    half = (rotary_dim or shape.head_dim) // 2
    angles = inputs.integers(4096, new_tokens, 1) * 10000.0 ** -(inputs.integers(1000, 1, half) / 1000)
    residual = None if first else inputs.normal(new_tokens, hidden)
    return Case(
        name=name,
        prepare=(_weights(inputs, shape, hidden, extras=extras), _EPS),
        arguments=(
            inputs.normal(new_tokens, hidden),
            residual,
            angles.cos().to(inputs.dtype),
            angles.sin().to(inputs.dtype),
        ),
        cached=CachedSequences(
            shape=shape,
            sequences=sequences,
            key=inputs.normal(cached, shape.num_kv_heads, shape.head_dim),
            value=inputs.normal(cached, shape.num_kv_heads, shape.head_dim),
            rows=rows,
        ),
    )


def _cost(case: Case) -> Cost:
    """Every weight as it is stored, x, the residual, the rotation and the cached keys and values that are seen are
    read; new keys and values and the rows asked for, twice, are written. Flops are those of the parts: products,
    norms, rotation, gate, and 4 * Hq * D for each row and token that it sees. Tokens whose rows nobody asks for need
    keys and values alone.
    """
    return Cost(_bytes_moved(case), _flops(case))


def _bytes_moved(case: Case) -> int:
    assert case.cached is not None
    weights, shape, seen = case.prepare[0], case.cached.shape, sight(case.cached)
    x, residual, cos, sin = case.arguments
    token = 2 * shape.num_kv_heads * shape.head_dim * x.element_size()  # its key and value
    read = (
        stored_bytes(x, residual, cos, sin) + seen.cached * token + _weight_bytes(weights, shape, seen.rows)
    )
    return read + len(x) * token + 2 * seen.rows * x.shape[1] * x.element_size()


def _weight_bytes(weights: DecoderLayerWeights, shape: AttentionShape, rows: int) -> int:
    """Without any row that is asked for, those that make keys and values."""
    if rows:
        return stored_bytes(*(getattr(weights, part.name) for part in fields(weights)))
    kv_heads, heads = 2 * shape.num_kv_heads, shape.num_heads + 2 * shape.num_kv_heads
    projection = stored_bytes(weights.qkv, weights.qkv_bias) * kv_heads // heads
    return stored_bytes(weights.input_norm, weights.key_norm) + projection


def _flops(case: Case) -> int:
    assert case.cached is not None
    weights, shape, seen = case.prepare[0], case.cached.shape, sight(case.cached)
    x, residual, cos, _ = case.arguments
    hidden, dim = x.shape[1], shape.head_dim
    head = 2 * hidden * dim + ROTARY_FLOPS * 2 * cos.shape[1]  # of a query or key: projected and rotated
    head += 0 if weights.query_norm is None else NORM_FLOPS * dim
    token = (NORM_FLOPS + (residual is not None)) * hidden + shape.num_kv_heads * (head + 2 * hidden * dim)
    row = shape.num_heads * head + (NORM_FLOPS + 1) * hidden + GATE_FLOPS * weights.down.shape[1]
    row += sum(product_flops(1, weight) for weight in (weights.output, weights.gate_up, weights.down))
    return len(x) * token + seen.rows * row + 4 * shape.num_heads * dim * seen.pairs


DECODER_LAYER = Kernel(
    name="decoder_layer",
    reference=decoder_layer,
    cases=_cases,
    tolerance=rounded(32),
    cost=_cost,
    prepared=True,
    composed=("rms_norm", "add_rms_norm", "linear", "rotary", "gated_mlp"),
    given_away=2,
    summary="a whole layer of a Llama-like decoder, attention included",
)
