"""When two tensors are close enough."""

import torch
from torch import Tensor

from core.contracts.kernels import Tolerance


def difference(actual: Tensor, expected: Tensor, tolerance: Tolerance) -> str:
    """What is wrong with `actual`, or "" when it is within tolerance everywhere. NaN never is.

    expected  of any dtype and device; shape, and dtype unless it is float64, must be those of `actual`
    """
    if actual.shape != expected.shape:
        return f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    if expected.dtype not in (torch.float64, actual.dtype):
        return f"dtype {actual.dtype}, expected {expected.dtype}"
    wide, right = actual.cpu().double(), expected.cpu().double()
    error = (wide - right).abs()
    wrong = ~(error <= tolerance.absolute + tolerance.relative * right.abs())
    if not bool(wrong.any()):
        return ""
    worst = int(error[wrong].nan_to_num(torch.inf).argmax())
    where = [int(i) for i in wrong.nonzero()[worst]]
    return (
        f"{int(wrong.sum())} of {wrong.numel()} elements are off, the worst at {where}: "
        f"{float(wide[wrong][worst]):.6g}, expected {float(right[wrong][worst]):.6g} within "
        f"{tolerance.absolute:.2g} + {tolerance.relative:.2g} relative"
    )
