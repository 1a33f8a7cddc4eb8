"""Three kernels that work on the device's memory at once; the core's reference serves the rest, through torch."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts.kernels import Implementation
from openreg_platform.tensor import DeviceTensor, on_host


def implementations() -> Mapping[str, Implementation]:
    return {
        "linear": Implementation(function=linear),
        "rms_norm": Implementation(function=rms_norm),
        "silu_and_mul": Implementation(function=silu_and_mul),
    }


def linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Keeps the weight as it is."""
    kept, added = on_host(weight), None if bias is None else on_host(bias)
    return lambda x: DeviceTensor(F.linear(on_host(x), kept, added))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Rounds once, where the reference rounds twice."""
    wide = on_host(x).float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return DeviceTensor((wide * scale * on_host(weight).float()).to(x.dtype))


def silu_and_mul(x: Tensor) -> Tensor:
    gate, up = on_host(x).chunk(2, dim=-1)
    return DeviceTensor(F.silu(gate) * up)
