"""Inputs as large as those of a model: for each kernel, a small table of cases to measure it on.

Knows no clock, and nothing of what is right.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.conformance.heads import head_dim_for
from core.conformance.quantized import stored_weight
from core.contracts.attention import AttentionShape
from core.contracts.kernels import CachedSequences, Case, DecoderLayerWeights, MoeWeights, Routing
from core.contracts.platform import Capabilities
from core.contracts.quantization import WeightFormat
from core.contracts.state import StateBatch
from core.reference.causal_conv import state_batch
from core.reference.inputs import Inputs
from core.reference.sample_cases import sampling_case

_EPS = 1e-5
_ROUTING = Routing(top_k=4, normalized=True)


@dataclass(frozen=True, slots=True)
class Step:
    """What a step computes: so many sequences, each with so many new tokens."""

    name: str
    sequences: int
    new: int

    @property
    def rows(self) -> int:
        return self.sequences * self.new


STEPS = (Step("a decode", 1, 1), Step("32 decodes", 32, 1), Step("a prompt of 512", 1, 512))
DECODES = tuple(step for step in STEPS if step.new == 1)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The model that shapes are taken from. context: tokens that each sequence has cached when it decodes."""

    hidden: int
    intermediate: int
    vocabulary: int
    context: int
    head_dim: int = 64
    experts: int = 16

    @property
    def shape(self) -> AttentionShape:
        """Four query heads to each head of keys and values."""
        kv_heads = max(1, self.hidden // self.head_dim // 4)
        return AttentionShape(
            num_heads=4 * kv_heads, num_kv_heads=kv_heads, head_dim=self.head_dim, scale=self.head_dim**-0.5
        )


FULL = Scale(hidden=2048, intermediate=8192, vocabulary=32768, context=1024)
QUICK = Scale(hidden=512, intermediate=2048, vocabulary=8192, context=128)


def scale_for(capabilities: Capabilities, *, quick: bool) -> Scale:
    """The scale to measure a device at, with heads of a size that it accepts."""
    scale = QUICK if quick else FULL
    return replace(scale, head_dim=head_dim_for(capabilities, scale.head_dim))


class Shapes(Inputs):
    """Inputs without contents, for whoever only counts their bytes."""

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def near_one(self, *shape: int) -> Tensor:
        return self.normal(*shape)


def bench_cases(kernel: str, scale: Scale, inputs: Inputs) -> Iterator[Case]:
    """The cases of a kernel, by its name. Those of a prepared one share their weights."""
    return _CASES[kernel](scale, inputs)


def quantized_linear(scale: Scale, inputs: Inputs, format: WeightFormat) -> Iterator[Case]:
    """Decodes through a projection in this format."""
    rms = scale.hidden**-0.5
    weight = stored_weight(inputs, format, scale.intermediate, scale.hidden, rms=rms)
    for step in DECODES:
        x = inputs.normal(step.rows, scale.hidden)
        yield Case(name=f"{step.name} as {format.name}", prepare=(weight, None), arguments=(x,))


def _embedding(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    table = inputs.normal(scale.vocabulary, scale.hidden)
    for step in STEPS:
        yield Case(name=step.name, arguments=(inputs.integers(scale.vocabulary, step.rows), table))


def _linear(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    weight = inputs.weight(scale.intermediate, scale.hidden)
    for step in STEPS:
        x = inputs.normal(step.rows, scale.hidden)
        yield Case(name=step.name, prepare=(weight, None), arguments=(x,))


def _rms_norm(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    weight = inputs.near_one(scale.hidden)
    for step in STEPS:
        yield Case(name=step.name, arguments=(inputs.normal(step.rows, scale.hidden), weight, _EPS))


def _add_rms_norm(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    weight = inputs.near_one(scale.hidden)
    for step in STEPS:
        x, residual = (inputs.normal(step.rows, scale.hidden) for _ in range(2))
        yield Case(name=step.name, arguments=(x, residual, weight, _EPS))


def _layer_norm(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    weight, bias = inputs.near_one(scale.hidden), inputs.normal(scale.hidden)
    for step in STEPS:
        yield Case(name=step.name, arguments=(inputs.normal(step.rows, scale.hidden), weight, bias, _EPS))


def _activation(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    for step in STEPS:
        yield Case(name=step.name, arguments=(inputs.normal(step.rows, scale.intermediate), "gelu_tanh"))


def _rotary(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    heads, kv_heads, dim = scale.shape.num_heads, scale.shape.num_kv_heads, scale.head_dim
    for step in STEPS:
        # As layers make them: views into one stacked projection.
        stacked = inputs.normal(step.rows, (heads + 2 * kv_heads) * dim)
        query, key, _ = stacked.split_with_sizes((heads * dim, kv_heads * dim, kv_heads * dim), dim=-1)
        both = (query.view(step.rows, heads, dim), key.view(step.rows, kv_heads, dim))
        yield Case(name=step.name, arguments=(*both, *_rotation(scale, inputs, step.rows)))


def _rotation(scale: Scale, inputs: Inputs, rows: int) -> tuple[Tensor, Tensor]:
    angles = inputs.integers(4096, rows, 1) * 10000.0 ** -torch.linspace(0, 1, scale.head_dim // 2)
    return angles.cos().to(inputs.dtype), angles.sin().to(inputs.dtype)


def _silu_and_mul(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    for step in STEPS:
        yield Case(name=step.name, arguments=(inputs.normal(step.rows, 2 * scale.intermediate),))


def _gated_mlp(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    gate_up = inputs.weight(2 * scale.intermediate, scale.hidden)
    down = inputs.weight(scale.hidden, scale.intermediate)
    for step in STEPS:
        x = inputs.normal(step.rows, scale.hidden)
        yield Case(name=step.name, prepare=(gate_up, down), arguments=(x,))


def _route(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    for step in STEPS:
        logits = inputs.normal(step.rows, scale.experts).float()
        yield Case(name=step.name, arguments=(logits, None, _ROUTING))


def _experts(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    weights = _moe_weights(scale, inputs)
    for step in STEPS:
        # Each expert has as many tokens as the others.
        ids = (torch.arange(step.rows * _ROUTING.top_k) % scale.experts).view(step.rows, -1)
        counts = inputs.normal(*ids.shape).float()
        x = inputs.normal(step.rows, scale.hidden)
        yield Case(name=step.name, prepare=(weights.gate_up, weights.down), arguments=(x, counts, ids))


def _moe(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    weights = _moe_weights(scale, inputs)
    for step in STEPS:
        x = inputs.normal(step.rows, scale.hidden)
        yield Case(name=step.name, prepare=(weights, _ROUTING), arguments=(x,))


def _moe_weights(scale: Scale, inputs: Inputs) -> MoeWeights:
    """Together, the experts of a token are as large as the MLP that they stand for, less the shared one."""
    hidden, wide = scale.hidden, scale.intermediate // (2 * _ROUTING.top_k)
    return MoeWeights(
        router=inputs.weight(scale.experts, hidden).float(),
        bias=None,
        gate_up=tuple(inputs.weight(2 * wide, hidden) for _ in range(scale.experts)),
        down=tuple(inputs.weight(hidden, wide) for _ in range(scale.experts)),
        shared_gate_up=inputs.weight(scale.intermediate, hidden),
        shared_down=inputs.weight(hidden, scale.intermediate // 2),
    )


def _decoder_layer(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    weights, shape = _layer_weights(scale, inputs), scale.shape
    for step in STEPS:
        before = scale.context if step.new == 1 else 0
        cached = (step.sequences * before, shape.num_kv_heads, shape.head_dim)
        yield Case(
            name=step.name,
            prepare=(weights, _EPS),
            arguments=(
                *(inputs.normal(step.rows, scale.hidden) for _ in range(2)),
                *_rotation(scale, inputs, step.rows),
            ),
            cached=CachedSequences(
                shape=shape,
                sequences=((step.new, before + step.new),) * step.sequences,
                key=inputs.normal(*cached),
                value=inputs.normal(*cached),
            ),
        )


def _causal_conv(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    channels, weight = 2 * scale.hidden, inputs.weight(2 * scale.hidden, 4)
    for step, batch in _recurrent():
        x, states = inputs.normal(step.rows, channels), inputs.normal(2 * step.sequences + 1, 3, channels)
        yield Case(name=step.name, arguments=(x, weight, inputs.normal(channels), states, batch))


def _selective_scan(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    channels, size = 2 * scale.hidden, 16
    a, bias, d = (inputs.near_one(*shape).float() for shape in ((channels, size), (channels,), (channels,)))
    for step, batch in _recurrent():
        x, gate = (inputs.normal(step.rows, channels, 1) for _ in range(2))
        b, c = (inputs.normal(step.rows, 1, size) for _ in range(2))
        states = inputs.normal(2 * step.sequences + 1, channels, 1, size).float()
        time = inputs.normal(step.rows, channels)
        yield Case(name=step.name, arguments=(x, time, bias, -a, b, c, d, gate, states, batch))


def _recurrent() -> Iterator[tuple[Step, StateBatch]]:
    """Each step, and the states of its sequences: those of decodes have begun."""
    for step in STEPS:
        yield step, state_batch((step.new,) * step.sequences, (step.new == 1,) * step.sequences)


def _layer_weights(scale: Scale, inputs: Inputs) -> DecoderLayerWeights:
    hidden, shape = scale.hidden, scale.shape
    query, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return DecoderLayerWeights(
        input_norm=inputs.near_one(hidden),
        qkv=inputs.weight(query + 2 * keys, hidden),
        qkv_bias=None,
        query_norm=None,
        key_norm=None,
        output=inputs.weight(hidden, query),
        output_bias=None,
        mlp_norm=inputs.near_one(hidden),
        gate_up=inputs.weight(2 * scale.intermediate, hidden),
        down=inputs.weight(hidden, scale.intermediate),
    )


def _argmax(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    for step in DECODES:
        yield Case(name=step.name, arguments=(inputs.normal(step.rows, scale.vocabulary),))


def _sample(scale: Scale, inputs: Inputs) -> Iterator[Case]:
    for step in DECODES:
        logits = inputs.normal(step.rows, scale.vocabulary, scale=3.0).float()
        asked = [(0.8, 0, 0.95, 0.0, (row + 0.5) / step.rows) for row in range(step.rows)]
        yield sampling_case(step.name, logits, asked)


_CASES: Mapping[str, Callable[[Scale, Inputs], Iterator[Case]]] = {
    "embedding": _embedding,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "layer_norm": _layer_norm,
    "rotary": _rotary,
    "activation": _activation,
    "silu_and_mul": _silu_and_mul,
    "gated_mlp": _gated_mlp,
    "route": _route,
    "experts": _experts,
    "moe": _moe,
    "causal_conv": _causal_conv,
    "selective_scan": _selective_scan,
    "decoder_layer": _decoder_layer,
    "argmax": _argmax,
    "sample": _sample,
}
