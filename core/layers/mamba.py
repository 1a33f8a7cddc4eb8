"""Mamba's mixer of tokens: a short convolution, and a recurrence whose parameters are made of what it gives.

Source: Mamba, Gu and Dao 2023, section 3; the norms are those of Jamba, Lieber et al. 2024, section 6.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.contracts.model import LayerShape, Parts, StateShape, StepInputs, Weights
from core.layers.settings import MixerSettings, NormSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from core.layers.rotary import Rotation


@dataclass(frozen=True, kw_only=True)
class MambaSettings(MixerSettings):
    """A mixer with a state [channels, state_size].

    name        of its module; weights are NAME.in_proj, NAME.conv1d, NAME.x_proj, NAME.dt_proj, NAME.out_proj,
                NAME.A_log and NAME.D
    width       of the convolution, in tokens
    rank        of what time steps are made of
    conv_bias   whether the convolution has one
    bias        whether projections that read or write the stream have one
    log_decay   whether A_log is a logarithm, else it is A
    step_norm   of what time steps are made of, and alike input_norm of b and output_norm of c
    """

    rotary: None = None
    name: str
    channels: int
    state_size: int
    width: int
    rank: int
    conv_bias: bool = True
    bias: bool = False
    log_decay: bool = True
    step_norm: NormSettings | None = None
    input_norm: NormSettings | None = None
    output_norm: NormSettings | None = None

    @property
    def shape(self) -> StateShape:
        """What a layer keeps of each sequence."""
        return StateShape(
            convolution=(self.width - 1, self.channels), state=(self.channels, 1, self.state_size)
        )

    def make(
        self, weights: Weights, parts: Parts, index: int, hidden: int, shape: LayerShape
    ) -> "MambaMixer":
        """Takes its weights; returns a function (x [N, H], inputs, rotation, rows) -> what it adds, [R, H]."""
        return MambaMixer(weights, parts, index, hidden, self)


class MambaMixer:
    """x [N, H] -> what it adds to the stream, [R, H], of the rows that are asked for."""

    def __init__(
        self, weights: Weights, parts: Parts, index: int, hidden: int, settings: MambaSettings
    ) -> None:
        from core.layers.norm import make_norm

        kernels, name, channels = parts.kernels, settings.name, settings.channels
        self._index, self._kernels = index, kernels

        def linear(
            of: str, outputs: int, inputs: int, *, biased: bool = False
        ) -> "Callable[[Tensor], Tensor]":
            bias = weights.take(f"{name}.{of}.bias", outputs) if biased else None
            return kernels.linear(weights.take_linear([f"{name}.{of}.weight"], [outputs], inputs), bias)

        self._sizes = (settings.rank, settings.state_size, settings.state_size)
        self._enter = linear("in_proj", 2 * channels, hidden, biased=settings.bias)
        self._leave = linear("out_proj", hidden, channels, biased=settings.bias)
        self._select = linear("x_proj", sum(self._sizes), channels)
        self._step = linear("dt_proj", channels, settings.rank)
        self._norms = [
            make_norm(weights, kernels, norm)
            for norm in (settings.step_norm, settings.input_norm, settings.output_norm)
        ]
        self._conv = weights.take(f"{name}.conv1d.weight", channels, 1, settings.width)[:, 0]
        self._conv_bias = weights.take(f"{name}.conv1d.bias", channels) if settings.conv_bias else None
        self._step_bias = weights.take(f"{name}.dt_proj.bias", channels, dtype="float32")
        decay = weights.take(f"{name}.A_log", channels, settings.state_size, dtype="float32")
        self._a = -decay.exp() if settings.log_decay else decay
        self._d = weights.take(f"{name}.D", channels, dtype="float32")

    def __call__(
        self, x: "Tensor", inputs: StepInputs, rotation: "Rotation | None", rows: "Tensor | None"
    ) -> "Tensor":
        cache, batch = inputs.caches[self._index], inputs.plans[self._index]
        mixed, gate = self._enter(x).chunk(2, dim=-1)  # [N, I] each
        mixed = self._kernels.causal_conv(mixed, self._conv, self._conv_bias, cache.keys, batch)
        made = self._select(mixed).split_with_sizes(self._sizes, dim=-1)
        step, b, c = (norm(part) for norm, part in zip(self._norms, made, strict=True))
        scanned = self._kernels.selective_scan(
            mixed[..., None],
            self._step(step),
            self._step_bias,
            self._a,
            b[:, None],
            c[:, None],
            self._d,
            gate[..., None],
            cache.values,
            batch,
        )[..., 0]
        return self._leave(scanned if rows is None else scanned[rows])
