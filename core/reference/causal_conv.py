"""The short convolution over time that a recurrent layer begins with. Source: Mamba, Gu and Dao 2023, section 3.4."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts.kernels import Case, Cost, Kernel
from core.contracts.state import StateBatch
from core.reference.costs import ACTIVATION_FLOPS, state_bytes, stored_bytes
from core.reference.inputs import Inputs, rounded


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, states: Tensor, batch: StateBatch) -> Tensor:
    """x [N, C], weight [C, K], bias [C], states [num_blocks, K - 1, C] -> like x.

    Of each channel: silu(bias + sum over k of weight[k] * x[t - (K - 1) + k]), computed in float32 and rounded once.
    What comes before a sequence's new tokens is its state: its last K - 1 inputs, oldest first, zeros where there were
    none. The state after them is written to its block of `states`. All have the model dtype. Rows of padding tokens
    may hold anything finite.
    """
    width = weight.shape[1]
    result = torch.zeros_like(x)
    for sequences, rows, count in batch.runs():
        new = x[rows].view(-1, count, x.shape[1])
        seen = torch.cat((batch.states_before(states, sequences), new), dim=1)  # [B, K - 1 + n, C]
        states[batch.write_blocks[sequences]] = seen[:, count:]
        total = torch.zeros(new.shape, device=x.device) if bias is None else bias.float()
        for k in range(width):
            total = total + weight[:, k].float() * seen[:, k : k + count].float()
        result[rows] = F.silu(total).to(x.dtype).view(-1, x.shape[1])
    return result


def state_batch(lens: tuple[int, ...], begun: tuple[bool, ...]) -> StateBatch:
    """Sequences of so many new tokens, in blocks 1 and up; those that have `begun` read another than they write, or
    the first of them the same.
    """
    count = len(lens)
    write = torch.arange(1, count + 1)
    other = torch.where(write > 1, write + count, write)
    return StateBatch(
        query_lens=lens,
        query_start=torch.tensor((0, *lens)).cumsum(0).to(torch.int32),
        read_blocks=torch.where(torch.tensor(begun, dtype=torch.bool), other, 0),
        write_blocks=write,
    )


RAGGED = (
    ("a decode", (1,), (True,)),
    ("a prompt that begins", (9,), (False,)),
    ("decodes", (1, 1, 1), (True, True, True)),
    ("a decode, a first token, and chunks", (1, 1, 2, 7, 40), (True, False, True, False, True)),
    ("no rows", (), ()),
)
"""(name, new tokens of each sequence, whether it has begun before) of steps that what keeps a state is tried on."""


def _cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for (name, lens, begun), channels, width in zip(
        RAGGED, (32, 48, 7, 96, 16), (4, 4, 2, 3, 4), strict=True
    ):
        # As layers make it: one half of a stacked projection.
        x = inputs.normal(sum(lens), 2 * channels)[:, :channels]
        bias = None if name == "decodes" else inputs.normal(channels, scale=0.5)
        states = inputs.normal(2 * len(lens) + 1, width - 1, channels)
        arguments = (x, inputs.weight(channels, width), bias, states, state_batch(lens, begun))
        yield Case(name=f"{name}, {channels} channels", arguments=arguments)


def _cost(case: Case) -> Cost:
    """x, the weights and the states of sequences that have begun are read, as much as x and every sequence's state are
    written; 2 flops a weight and 4 more for each element.
    """
    x, weight, bias, states, batch = case.arguments
    moved = 2 * stored_bytes(x) + state_bytes(states, batch)
    moved += stored_bytes(weight, bias) if x.numel() else 0
    return Cost(moved, (2 * weight.shape[1] + ACTIVATION_FLOPS) * x.numel())


CAUSAL_CONV = Kernel(
    name="causal_conv",
    reference=causal_conv,
    cases=_cases,
    tolerance=rounded(8),
    cost=_cost,
    updates=(3,),
    summary="a convolution of each channel over the tokens before, and silu of it",
)
