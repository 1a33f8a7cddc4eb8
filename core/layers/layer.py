"""One layer of a decoder: the kernel that runs all of it, where it is one that this kernel computes; else its parts."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from core.contracts.attention import AttentionShape
from core.contracts.kernels import DecoderLayerWeights
from core.contracts.model import LayerShape, Parts, StepInputs, Weights
from core.layers.attention import AttentionMixer, take_qkv
from core.layers.mlp import make_mlp, take_up
from core.layers.norm import Entry, make_norm, take_norm
from core.layers.rotary import Rotation
from core.layers.settings import (
    AttentionSettings,
    FeedForwardSettings,
    LayerSettings,
    MlpSettings,
    NormSettings,
)

Layer: TypeAlias = Callable[
    [Tensor, Tensor | None, StepInputs, Rotation | None, Tensor | None], tuple[Tensor, Tensor | None]
]
"""(x, residual, inputs, rotation, rows) -> (x, residual).

x [N, H] is what the layer before added to the stream, residual [N, H] the stream without it; None: x is the stream.
`rows` [R] are the tokens that somebody goes on with, None for all: the last layer need not finish the others.
"""
Mixer: TypeAlias = Callable[[Tensor, StepInputs, Rotation | None, Tensor | None], Tensor]
"""(x [N, H], inputs, rotation, rows) -> what it adds to the stream, [R, H]."""


def make_layer(
    weights: Weights, parts: Parts, index: int, shape: LayerShape, settings: LayerSettings
) -> Layer:
    """Layer `index` with its weights taken."""
    if is_whole(settings) and isinstance(shape, AttentionShape):
        return _whole(weights, parts, index, shape, settings)
    return ComposedLayer(weights, parts, index, shape, settings)


def is_whole(settings: LayerSettings) -> bool:
    """Whether the kernel `decoder_layer` computes such layers."""
    mixer, norms = settings.mixer, [settings.input_norm, settings.mlp_norm]
    if not (
        isinstance(mixer, AttentionSettings) and _attends_plainly(mixer) and _is_gated_silu(settings.mlp)
    ):
        return False
    norms += [norm for norm in (mixer.query_norm, mixer.key_norm) if norm is not None]
    outputs = (settings.mixer_output_norm, settings.mlp_output_norm)
    sequential = not (settings.parallel or settings.after) and settings.residual_scale == 1.0
    return sequential and outputs == (None, None) and _are_alike(norms)


def _attends_plainly(mixer: AttentionSettings) -> bool:
    if mixer.rotary is None or mixer.clip is not None or mixer.transposed:
        return False
    if mixer.query_norm is None or mixer.key_norm is None:
        return mixer.query_norm is mixer.key_norm
    return mixer.query_norm.over_a_head and mixer.key_norm.over_a_head and not mixer.rotary.interleaved


def _is_gated_silu(mlp: MlpSettings | FeedForwardSettings | None) -> bool:
    if not isinstance(mlp, MlpSettings):
        return False
    return mlp.gated and mlp.activation == "silu" and not (mlp.bias or mlp.transposed)


def _are_alike(norms: list[NormSettings | None]) -> bool:
    """Whether all are root-mean-square norms with a weight and one eps."""
    eps = {norm.eps for norm in norms if norm is not None and norm.kind == "rms" and norm.weight}
    return len(eps) == 1 and all(norm is not None and norm.kind == "rms" and norm.weight for norm in norms)


def _whole(
    weights: Weights, parts: Parts, index: int, shape: AttentionShape, settings: LayerSettings
) -> Layer:
    assert settings.input_norm is not None
    taken = _take(weights, shape, settings)
    apply = parts.kernels.decoder_layer(parts.attention[index], taken, settings.input_norm.eps)

    def layer(
        x: Tensor,
        residual: Tensor | None,
        inputs: StepInputs,
        rotation: Rotation | None,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        assert rotation is not None
        return apply(x, residual, *rotation, inputs.caches[index], inputs.plans[index], rows)

    return layer


def _take(weights: Weights, shape: AttentionShape, settings: LayerSettings) -> DecoderLayerWeights:
    mixer, mlp, hidden = settings.mixer, settings.mlp, settings.hidden_size
    assert isinstance(mixer, AttentionSettings) and isinstance(mlp, MlpSettings)

    def norm(of: NormSettings | None) -> Tensor | None:
        return None if of is None else take_norm(weights, of)

    qkv, qkv_bias = take_qkv(weights, hidden, shape, mixer)
    input_norm, mlp_norm = norm(settings.input_norm), norm(settings.mlp_norm)
    assert input_norm is not None and mlp_norm is not None
    return DecoderLayerWeights(
        input_norm=input_norm,
        qkv=qkv,
        qkv_bias=qkv_bias,
        query_norm=norm(mixer.query_norm),
        key_norm=norm(mixer.key_norm),
        output=weights.take_linear([f"{mixer.output}.weight"], [hidden], shape.num_heads * shape.head_dim),
        output_bias=weights.take(f"{mixer.output}.bias", hidden) if mixer.output_bias else None,
        mlp_norm=mlp_norm,
        gate_up=take_up(weights, hidden, mlp),
        down=weights.take_linear([f"{mlp.down}.weight"], [hidden], mlp.intermediate_size),
    )


class ComposedLayer:
    """A layer made of the finer kernels."""

    def __init__(
        self, weights: Weights, parts: Parts, index: int, shape: LayerShape, settings: LayerSettings
    ) -> None:
        kernels = parts.kernels
        self._parallel, self._after, self._scale = settings.parallel, settings.after, settings.residual_scale
        self._enter = Entry(weights, kernels, settings.input_norm)
        self._mixer = _mixer(weights, parts, index, shape, settings)
        self._mixed = make_norm(weights, kernels, settings.mixer_output_norm)
        self._enter_mlp = None if settings.mlp_norm is None else Entry(weights, kernels, settings.mlp_norm)
        self._mlp = _feed_forward(weights, parts, settings)
        self._fed = make_norm(weights, kernels, settings.mlp_output_norm)

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        inputs: StepInputs,
        rotation: Rotation | None,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        if self._after:
            return self._norms_after(x, inputs, rotation, rows)
        normed, stream = self._enter(x, residual)
        mixed = self._scaled(self._mixed(self._mixer(normed, inputs, rotation, rows)))
        if rows is not None:
            normed, stream = normed[rows], stream[rows]
        if self._mlp is None:
            return mixed, stream
        if self._parallel:
            if self._enter_mlp is not None:
                normed, stream = self._enter_mlp(stream, None)
            return mixed + self._scaled(self._fed(self._mlp(normed))), stream
        if self._enter_mlp is None:
            normed = stream = mixed + stream
        else:
            normed, stream = self._enter_mlp(mixed, stream)
        return self._scaled(self._fed(self._mlp(normed))), stream

    def _norms_after(
        self, x: Tensor, inputs: StepInputs, rotation: Rotation | None, rows: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        assert self._mlp is not None and self._enter_mlp is not None
        mixed = self._mixer(x, inputs, rotation, rows)
        stream, _ = self._enter(mixed, x if rows is None else x[rows])
        stream, _ = self._enter_mlp(self._mlp(stream), stream)
        return stream, None

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self._scale == 1.0 else x * self._scale


def _mixer(weights: Weights, parts: Parts, index: int, shape: LayerShape, settings: LayerSettings) -> Mixer:
    if isinstance(settings.mixer, AttentionSettings):
        assert isinstance(shape, AttentionShape)
        return AttentionMixer(weights, parts, index, settings.hidden_size, shape, settings.mixer)
    return settings.mixer.make(weights, parts, index, settings.hidden_size, shape)


def _feed_forward(
    weights: Weights, parts: Parts, settings: LayerSettings
) -> Callable[[Tensor], Tensor] | None:
    if settings.mlp is None:
        return None
    if isinstance(settings.mlp, MlpSettings):
        return make_mlp(weights, parts, settings.hidden_size, settings.mlp)
    return settings.mlp.make(weights, parts, settings.hidden_size)
