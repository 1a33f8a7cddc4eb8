"""Logits into tokens and log-probabilities: one vectorised pass over all rows of a step.

What a row gets depends on its own parameters, tokens and seed alone, never on its neighbours.
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.contracts.runner import ScheduledSequence, SequenceResult, TokenLogprobs

NOT_FINITE = "the model produced logits that are not finite for this request"

Rows = Sequence[ScheduledSequence]


class Sampler:
    """Applies a platform's `argmax` and `sample` kernels under each sequence's parameters."""

    def __init__(self, argmax: Callable[..., tuple[Tensor, Tensor]], sample: Callable[..., Tensor]) -> None:
        self._argmax = argmax
        self._sample = sample

    def __call__(self, logits: Tensor, rows: Rows, results: Sequence[SequenceResult]) -> None:
        """Append one token, and what was asked of its log-probabilities, to each result.

        logits  [num_rows, vocab_size]; row i belongs to rows[i] and results[i]. A row without a finite
                maximum gives its result an error and no token.
        """
        if not rows:
            return
        likeliest, greedy = self._argmax(logits)
        healthy = [math.isfinite(logit) for logit in listed(likeliest)]
        if all(row.params.greedy and _plain(row) for row in rows):
            token_ids: list[int] = listed(greedy)
            raw = logits
        else:
            raw = logits.float()
            token_ids = self._choose(raw.clone(), rows, healthy)
        for i, row in enumerate(rows):
            if not healthy[i]:
                results[i].error = NOT_FINITE
                continue
            results[i].token_ids.append(token_ids[i])
            if row.params.logprobs is not None:
                chosen = torch.tensor([token_ids[i]], device=logits.device)
                results[i].logprobs += top_logprobs(raw[i : i + 1], chosen, row.params.logprobs)

    def _choose(self, logits: Tensor, rows: Rows, healthy: Sequence[bool]) -> list[int]:
        _apply_bias(logits, rows)
        _apply_penalties(logits, rows)
        _forbid_stops(logits, rows)
        for i, good in enumerate(healthy):
            if not good:
                logits[i] = 0.0
        device, params = logits.device, [row.params for row in rows]
        chosen = self._sample(
            logits,
            torch.tensor([p.temperature for p in params], device=device, dtype=torch.float32),
            torch.tensor([p.top_k for p in params], device=device, dtype=torch.int64),
            torch.tensor([p.top_p for p in params], device=device, dtype=torch.float32),
            torch.tensor([p.min_p for p in params], device=device, dtype=torch.float32),
            torch.from_numpy(uniforms(rows)).to(device),  # pyright: ignore[reportUnknownMemberType]
        )
        return listed(chosen)


def top_logprobs(logits: Tensor, chosen: Tensor, count: int) -> list[TokenLogprobs]:
    """Log-probabilities of the chosen token and the `count` likeliest, per row.

    logits  [num_rows, vocab_size], before penalties and temperature
    chosen  [num_rows], int64
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    own = logprobs.gather(1, chosen[:, None])  # [R, 1]
    ranks = (logprobs > own).sum(dim=-1) + 1
    values, ids = logprobs.topk(count, dim=-1)
    columns = (listed(column) for column in (chosen, own[:, 0], ranks, ids, values))
    return [
        TokenLogprobs([token, *top], [logprob, *tops], [rank, *range(1, count + 1)])
        for token, logprob, rank, top, tops in zip(*columns, strict=True)
    ]


def listed(tensor: Tensor) -> list[Any]:
    """A tensor's elements as Python values, nested by its axes."""
    values: Any = tensor
    return values.tolist()


def uniforms(rows: Rows) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One number in [0, 1) per row, a pure function of the row's seed and how many tokens it has answered.

    Source: the finaliser of SplitMix64, Steele et al. 2014.
    """
    seeds = np.array([row.seed & (2**64 - 1) for row in rows], dtype=np.uint64)
    steps = np.array([len(row.token_ids) - row.num_prompt + 1 for row in rows], dtype=np.uint64)
    mixed = _mix(_mix(seeds) + steps * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _penalised(row: ScheduledSequence) -> bool:
    p = row.params
    return p.presence_penalty != 0.0 or p.frequency_penalty != 0.0 or p.repetition_penalty != 1.0


def _too_short(row: ScheduledSequence) -> bool:
    return len(row.token_ids) - row.num_prompt < row.params.min_tokens and bool(row.stop_ids)


def _plain(row: ScheduledSequence) -> bool:
    return not (row.params.logit_bias or _penalised(row) or _too_short(row))


def _apply_bias(logits: Tensor, rows: Rows) -> None:
    for i, row in enumerate(rows):
        if row.params.logit_bias:
            ids = torch.tensor(list(row.params.logit_bias), device=logits.device)
            values = torch.tensor(
                list(row.params.logit_bias.values()), device=logits.device, dtype=logits.dtype
            )
            logits[i].index_add_(0, ids, values)


def _forbid_stops(logits: Tensor, rows: Rows) -> None:
    pairs = [(i, token) for i, row in enumerate(rows) if _too_short(row) for token in row.stop_ids]
    if pairs:
        index = torch.tensor(pairs, device=logits.device)
        logits[index[:, 0], index[:, 1]] = -torch.inf


def _apply_penalties(logits: Tensor, rows: Rows) -> None:
    """Presence and frequency count the answer's tokens; repetition looks at the prompt's too."""
    chosen = [i for i, row in enumerate(rows) if _penalised(row)]
    if not chosen:
        return
    selected = [rows[i] for i in chosen]
    output = _counts([row.token_ids[row.num_prompt :] for row in selected], logits)
    seen = _counts([row.token_ids for row in selected], logits) > 0

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=logits.device, dtype=logits.dtype)[:, None]

    part = logits[chosen]  # [R', V]
    repetition = column([row.params.repetition_penalty for row in selected])
    repeated = torch.where(part > 0, part / repetition, part * repetition)
    part = torch.where(seen, repeated, part)
    part -= column([row.params.frequency_penalty for row in selected]) * output
    part -= column([row.params.presence_penalty for row in selected]) * (output > 0)
    logits[chosen] = part


def _counts(token_ids: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """How often each token occurs, [len(token_ids), vocab_size]."""
    counts = torch.zeros(len(token_ids), logits.shape[1], device=logits.device, dtype=logits.dtype)
    owners = [i for i, ids in enumerate(token_ids) for _ in ids]
    flat = list(chain.from_iterable(token_ids))
    index = (torch.tensor(owners, dtype=torch.int64), torch.tensor(flat, dtype=torch.int64))
    ones = torch.ones(len(flat), device=logits.device, dtype=logits.dtype)
    return counts.index_put_(tuple(i.to(logits.device) for i in index), ones, accumulate=True)
