"""The recurrence of a state space whose parameters depend on the input.

Source: Mamba, Gu and Dao 2023, algorithm 2; with heads, Mamba-2, Dao and Gu 2024, section 6.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts.kernels import Case, Cost, Kernel
from core.contracts.state import StateBatch
from core.reference.causal_conv import RAGGED, state_batch
from core.reference.costs import GATE_FLOPS, state_bytes, stored_bytes
from core.reference.inputs import Inputs, rounded

_AT_ONCE = 2**20
"""Numbers of the states after each token that are held at a time."""


def selective_scan(
    x: Tensor,
    step: Tensor,
    step_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    gate: Tensor | None,
    states: Tensor,
    batch: StateBatch,
) -> Tensor:
    """x [N, H, P], step [N, H], b and c [N, G, S], gate like x; step_bias and d [H], a [H, S] or [H, 1]; states
    [num_blocks, H, P, S] -> like x.

    Token after token, with dt = softplus(step + step_bias), the state s [H, P, S] of a sequence becomes

        s = exp(dt * a) * s + dt * x * b       where H / G heads that are neighbours share a row of b and of c

    and its result is the sum of s * c over S, and d * x; of what has a gate, times silu(gate). Mamba has one number in
    each of its heads, and one group. x, step, b, c and gate have the model dtype, all else is float32, and so is what
    is computed, which is rounded once. The state after a sequence's new tokens is written to its block of `states`.
    Rows of padding tokens may hold anything finite.
    """
    result = torch.zeros_like(x)
    wide = F.softplus(step.float() + step_bias)
    for sequences, rows, count in batch.runs():
        state = batch.states_before(states, sequences)  # [B, H, P, S]
        most = max(1, _AT_ONCE // state.numel())
        parts = [part[rows].view(len(state), count, *part.shape[1:]) for part in (x, wide, b, c)]
        done: list[Tensor] = []
        for first in range(0, count, most):
            x_, step_, b_, c_ = (part[:, first : first + most].float() for part in parts)
            after = _states_after(state, x_, step_, a, b_)
            state = after[:, -1]
            grouped = after.view(*b_.shape[:3], -1, b_.shape[3])  # [B, n, G, H / G * P, S]
            done.append((grouped @ c_[..., None]).view(x_.shape) + d[:, None] * x_)
        states[batch.write_blocks[sequences]] = state
        total = torch.cat(done, dim=1).flatten(0, 1)
        result[rows] = (total if gate is None else total * F.silu(gate[rows].float())).to(x.dtype)
    return result


def _states_after(state: Tensor, x: Tensor, step: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The state after each of these tokens, [B, n, H, P, S]."""
    decay = torch.exp(step[..., None] * a)[:, :, :, None]  # [B, n, H, 1, S or 1]
    fed = (step[..., None] * x).view(*b.shape[:3], -1, 1) * b[..., None, :]
    after = fed.view(*x.shape, b.shape[3])
    for t in range(after.shape[1]):
        state = after[:, t].addcmul_(decay[:, t], state)
    return after


def _cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    shapes = ((32, 1, 1, 16), (48, 1, 1, 16), (4, 8, 2, 16), (6, 5, 3, 7), (8, 1, 1, 4))  # H, P, G, S
    for (name, lens, begun), (heads, dim, groups, size) in zip(RAGGED, shapes, strict=True):
        rows, per_head = sum(lens), dim > 1
        stacked = inputs.normal(rows, 2 * heads * dim)
        x, gate = (half.view(rows, heads, dim) for half in stacked.tensor_split(2, dim=1))
        b, c = (inputs.normal(rows, groups, size, scale=size**-0.5) for _ in range(2))
        states = Inputs("float32", seed + 1).normal(2 * len(lens) + 1, heads, dim, size)
        yield Case(
            name=f"{name}, {heads} heads of {dim} by {size}" + (", no gate" if per_head else ""),
            arguments=(
                x,
                inputs.normal(rows, heads),
                inputs.normal(heads).float(),
                -inputs.normal(heads, 1 if per_head else size).float().exp(),
                b,
                c,
                inputs.near_one(heads).float(),
                None if per_head else gate,
                states,
                state_batch(lens, begun),
            ),
        )


def _cost(case: Case) -> Cost:
    """x, step, b, c, the gate, the parameters and the states of sequences that have begun are read, as much as x and
    every sequence's state are written. For each number of the state and token 5 flops, for each of its decay 2, for
    each time step 4, for each number of x 3, and with a gate 5 more.
    """
    x, step, step_bias, a, b, c, d, gate, states, batch = case.arguments
    moved = stored_bytes(x, x, step, b, c, gate) + state_bytes(states, batch)
    moved += stored_bytes(step_bias, a, d) if x.numel() else 0
    flops = (5 * b.shape[2] + 3 + (0 if gate is None else GATE_FLOPS)) * x.numel()
    return Cost(moved, flops + 4 * step.numel() + 2 * len(x) * a.numel())


SELECTIVE_SCAN = Kernel(
    name="selective_scan",
    reference=selective_scan,
    cases=_cases,
    tolerance=rounded(16),
    cost=_cost,
    updates=(8,),
    summary="a recurrence over tokens whose decay and input depend on each",
)
