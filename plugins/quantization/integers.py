"""Small integers out of the int32 words that they are packed into, and weights out of integers."""

import torch
from torch import Tensor


def integers(packed: Tensor, bits: int) -> Tensor:
    """[n, m] int32 -> [n, m * 32 / bits] uint8: those of a word one after the other, lowest bits first.

    bits  4 or 8
    """
    stored = packed.contiguous().view(torch.uint8)
    return stored if bits == 8 else torch.stack((stored & 15, stored >> 4), dim=-1).flatten(1)


def scaled(values: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor | None = None) -> Tensor:
    """scale * (value - zero): [out, in] uint8 -> [out, in] float32.

    zeros, scales  [out, num_groups]
    groups         [in], int64: the group of each input; None: consecutive ones, all of a size
    """
    weight, zeros, scales = (each.to(torch.float32) for each in (values, zeros, scales))
    if groups is None:
        grouped = weight.view(*zeros.shape, -1)
        grouped -= zeros[:, :, None]
        grouped *= scales[:, :, None]
        return weight
    weight -= zeros[:, groups]
    weight *= scales[:, groups]
    return weight
