"""Kernels: declared once by the core, implemented by whoever is faster.

A `Kernel` is the declaration: its name, the reference that defines what it computes, inputs to try it on,
the tolerance per dtype, and what a call costs at least. Dispatch, conformance, measurements and documentation are all
derived from it. An `Implementation` is a platform's version, with the same signature as the reference.

A prepared kernel takes weights once and returns the function that is called in every step, so that a
platform owns the layout of its weights: `linear(weight, bias)` returns `apply(x)`.
A coarse kernel names the finer ones it is composed of; its reference receives them first.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.contracts.attention import AttentionShape, AttentionSpec

if TYPE_CHECKING:
    from torch import Tensor

    from core.contracts.quantization import Weight

Arguments = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class DecoderLayerWeights:
    """What a layer of a Llama-like decoder is made of; H is the hidden size, I the intermediate, D the head's.

    input_norm, mlp_norm   [H]
    qkv                    [(Hq + 2 * Hkv) * D, H], queries first, then keys, then values
    query_norm, key_norm   [D], of each head, before it is rotated; None: no such norms
    output                 [H, Hq * D]
    gate_up                [2 * I, H], gate first
    down                   [H, I]
    """

    input_norm: "Tensor"
    qkv: "Weight"
    qkv_bias: "Tensor | None"
    query_norm: "Tensor | None"
    key_norm: "Tensor | None"
    output: "Weight"
    output_bias: "Tensor | None"
    mlp_norm: "Tensor"
    gate_up: "Weight"
    down: "Weight"


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How a router's logits choose the experts of a token, and how much each of these counts.

    top_k       experts of a token
    scoring     "softmax": experts are ranked and weighed by the softmax of the logits; "sigmoid": by that of each;
                "sparsemixer": chosen one after the other, each weighed by the softmax of the logits of those left
                that differ from the best of them by at most `margin` of whichever is larger, the logit's magnitude
                or the best
    groups      experts lie in so many groups of equal size, neighbours together
    top_groups  best groups, outside of which none is chosen
    group_best  a group ranks by the sum of so many best of its experts
    normalized  weights are divided by their sum
    scale       multiplies the weights at last

    Source: Mixtral, Jiang et al. 2024 (softmax, normalised); DeepSeek-V2, 2024, section 2.2 (groups by their best);
    DeepSeek-V3, 2024, section 2.1.2 (sigmoid, groups by their two best, a bias that only ranks); GRIN, Liu et al.
    2024 (sparsemixer).
    """

    top_k: int
    scoring: str = "softmax"
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    normalized: bool = False
    scale: float = 1.0
    margin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MoeWeights:
    """A mixture of E gated MLPs; H is the hidden size, I an expert's intermediate size, S the shared one's.

    router          [E, H], float32
    bias            [E], float32, added to the scores that rank experts; None: nothing is
    gate_up, down   of each expert, [2 * I, H] with the gate first, and [H, I]
    shared_gate_up  [2 * S, H] of the MLP that every token goes through, shared_down [H, S]; None: there is none
    shared_gate     [1, H], float32: its product with a token, through a sigmoid, weighs the shared MLP; None: 1 does
    """

    router: "Tensor"
    bias: "Tensor | None"
    gate_up: "tuple[Weight, ...]"
    down: "tuple[Weight, ...]"
    shared_gate_up: "Weight | None" = None
    shared_down: "Weight | None" = None
    shared_gate: "Tensor | None" = None


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """|actual - expected| <= absolute + relative * |expected|, elementwise."""

    relative: float
    absolute: float


@dataclass(frozen=True, kw_only=True)
class CachedSequences:
    """Sequences in the cache of a layer, for a kernel that attends: the kit puts them there.

    sequences  (new tokens, length including them) each; decodes first
    key, value [tokens cached before, Hkv, D], sequence after sequence
    rows       of the new tokens, those whose results are asked for, in this order; None: all
    """

    shape: AttentionShape
    sequences: tuple[tuple[int, int], ...]
    key: "Tensor"
    value: "Tensor"
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """Inputs to try a kernel on: `prepare` goes to a prepared kernel, `arguments` to the call itself.

    cached  for a kernel that attends: `prepare` is preceded by the `Attention` of the side that is tried, and
            `arguments`, one row per new token, are followed by its cache and plan, and by the rows asked for
    """

    name: str
    arguments: Arguments
    prepare: Arguments = ()
    cached: CachedSequences | None = None


@dataclass(frozen=True)
class Cost:
    """What one call takes at least, whoever implements it.

    bytes_moved  read and written, each once: weights in the form in which they are given, inputs, outputs, and the
                 cached keys and values that are seen. What a fused version keeps to itself is not among them
    flops        a multiplication and the addition to its sum are 2; a comparison or an exponential is 1
    """

    bytes_moved: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The declaration of one operation.

    reference   defines the result; for a composed kernel, its first argument is the `Kernels` to compose
    cases       (dtype name, seed) -> inputs that cover its shapes, edges included; the most telling ones first
    tolerance   per dtype name
    cost        of a call on the inputs of a case; its docstring says it in words
    prepared    the reference takes weights and returns the function called per step
    composed    names of the finer kernels it is made of; empty for a fine kernel
    given_away  how many leading arguments of a call it may overwrite, and return
    updates     which arguments of a call, counted from 0, it changes in place, as much a result as what it returns
    """

    name: str
    reference: Callable[..., Any]
    cases: Callable[[str, int], Iterator[Case]]
    tolerance: Mapping[str, Tolerance]
    cost: Callable[[Case], Cost]
    prepared: bool = False
    composed: tuple[str, ...] = ()
    given_away: int = 0
    updates: tuple[int, ...] = ()
    summary: str = ""


@dataclass(frozen=True, kw_only=True)
class KernelRequest:
    """What a model will ask of a kernel, known when it is loaded.

    attention  what its layers will ask of attention, each kind once
    """

    dtype: str
    attention: tuple[AttentionSpec, ...] = ()


def _accepts_all(request: KernelRequest) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """A platform's version of a declared kernel.

    function   same signature and meaning as the reference
    rejects    the reason why it cannot serve a request, or None when it can
    """

    function: Callable[..., Any]
    rejects: Callable[[KernelRequest], str | None] = field(default=_accepts_all)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """One function per declared kernel, chosen once at load: what layers are built from.

    Shapes are those of the reference implementations in `core.reference`.
    """

    embedding: Callable[..., Any]
    linear: Callable[..., Any]
    rms_norm: Callable[..., Any]
    add_rms_norm: Callable[..., Any]
    layer_norm: Callable[..., Any]
    rotary: Callable[..., Any]
    activation: Callable[..., Any]
    silu_and_mul: Callable[..., Any]
    gated_mlp: Callable[..., Any]
    route: Callable[..., Any]
    experts: Callable[..., Any]
    moe: Callable[..., Any]
    causal_conv: Callable[..., Any]
    selective_scan: Callable[..., Any]
    decoder_layer: Callable[..., Any]
    argmax: Callable[..., Any]
    sample: Callable[..., Any]
