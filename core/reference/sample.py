"""Sampling: logits and one random number per row into a token.

By inverting the cumulative distribution, not by Gumbel noise: one number per row decides, and a perturbed
logit seldom changes the token. A row's token depends on that row's own arguments alone: unlimited rows are
inverted in vocabulary order, limited ones (top-k, top-p, min-p) in order of descending probability, ties by
lower id. Every limit keeps a prefix of the descending order, so a few hundred candidates nearly always do.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts.kernels import Case, Cost, Kernel
from core.reference.costs import stored_bytes
from core.reference.inputs import EXACT
from core.reference.sample_cases import cases

_CHUNK = 256  # probabilities are summed in chunks, so that the long cumulative sum runs over chunks only
_AT_ONCE = 2**19  # elements of the logits that are worked on together, so that they stay in a cache
_TIERS = (256, 4096)  # candidates tried before a row's whole vocabulary is sorted


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
) -> Tensor:
    """One token per row, [N] int64, never one of probability zero.

    logits       [N, V] float32; a row has no NaN, no +inf, and at least one finite element
    temperature  [N]; 0 takes the first maximum
    top_k        [N] int64; the k likeliest, 0: all
    min_p        [N]; those at least min_p times as likely as the likeliest, 0: all
    top_p        [N], above 0; of what those two leave, the likeliest until their share reaches top_p, 1: all
    uniform      [N] float64 in [0, 1)
    """
    greedy = temperature == 0
    if bool(greedy.all()):
        return logits.argmax(dim=-1)
    limited = ((top_k > 0) & (top_k < logits.shape[1])) | (top_p < 1) | (min_p > 0)
    tokens = torch.empty_like(top_k)
    at_once = max(1, _AT_ONCE // logits.shape[1])
    for wanted, choose in (
        (greedy, _greedy),
        (~greedy & ~limited, _unlimited),
        (~greedy & limited, _limited),
    ):
        found = wanted.nonzero()[:, 0]
        for first in range(0, len(found), at_once):
            rows = found[first : first + at_once]
            limits = _Limits(temperature[rows], top_k[rows], top_p[rows], min_p[rows], uniform[rows])
            tokens[rows] = choose(logits.index_select(0, rows), limits)
    return tokens


def _cost(case: Case) -> Cost:
    """The logits and the limits are read, each row's token is written; V flops a greedy row, 4 * V any other."""
    logits, temperature, *_ = case.arguments
    rows, vocabulary = logits.shape
    greedy = int((temperature == 0).sum())
    # Of a logit that may be drawn: compared with the largest, shifted, exponentiated, added to the sum.
    flops = vocabulary * (greedy + 4 * (rows - greedy))
    return Cost(stored_bytes(*case.arguments) + rows * torch.int64.itemsize, flops)


SAMPLE = Kernel(
    name="sample",
    reference=sample,
    cases=cases,
    tolerance=EXACT,
    cost=_cost,
    summary="logits and one random number per row into tokens, under temperature, top-k, top-p and min-p",
)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What some rows ask for, [R] each."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    def of(self, rows: Tensor) -> "_Limits":
        return _Limits(
            self.temperature[rows], self.top_k[rows], self.top_p[rows], self.min_p[rows], self.uniform[rows]
        )


def _probabilities(logits: Tensor, temperature: Tensor) -> Tensor:
    # Shifted first: a tiny temperature must not overflow the maximum.
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    scale = temperature.float().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.softmax(shifted.div_(scale[:, None]), dim=-1)


def _chunks(probabilities: Tensor) -> Tensor:
    """[R, V] -> [R, V / _CHUNK, _CHUNK], padded with zeros."""
    missing = -probabilities.shape[1] % _CHUNK
    padded = F.pad(probabilities, (0, missing)) if missing else probabilities
    return padded.view(padded.shape[0], -1, _CHUNK)


def _invert(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """mass [R, M] float64, uniform [R] -> (element in which that share of the mass falls, where within it).

    The element has mass: target lies strictly below the total, and equals the sum before it or exceeds it.
    """
    upper = mass.cumsum(dim=-1)
    total = upper[:, -1:]
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(upper, target, right=True).clamp_(max=mass.shape[1] - 1)
    own = mass.gather(1, index)
    within = (target - (upper.gather(1, index) - own)) / own
    return index[:, 0], within[:, 0].clamp_(0.0, 1.0)


def _greedy(logits: Tensor, limits: _Limits) -> Tensor:
    return logits.argmax(dim=-1)


def _unlimited(logits: Tensor, limits: _Limits) -> Tensor:
    chunks = _chunks(_probabilities(logits, limits.temperature))
    chunk, within = _invert(chunks.sum(dim=-1).double(), limits.uniform)
    rows = torch.arange(len(chunk), device=chunk.device)
    element, _ = _invert(chunks[rows, chunk].double(), within)
    return (chunk * _CHUNK + element).clamp_(max=logits.shape[1] - 1)


def _limited(logits: Tensor, limits: _Limits) -> Tensor:
    vocabulary = logits.shape[1]
    probabilities = _probabilities(logits, limits.temperature)
    tokens = torch.empty_like(limits.top_k)
    rows = torch.arange(len(tokens), device=tokens.device)
    for count in (*(tier for tier in _TIERS if tier < vocabulary), vocabulary):
        chosen, certain = _among(probabilities[rows], count, limits.of(rows))
        tokens[rows[certain]] = chosen[certain]
        rows = rows[~certain]
        if rows.numel() == 0:
            break
    return tokens


def _among(probabilities: Tensor, count: int, limits: _Limits) -> tuple[Tensor, Tensor]:
    """Sample among the `count` likeliest: (tokens [R], whether all kept ones are surely among them)."""
    values, ids, known = _descending(probabilities, count)
    ranks = torch.arange(count, device=ids.device)
    last = torch.where(limits.top_k > 0, limits.top_k, probabilities.shape[1])
    eligible = (ranks < last[:, None]) & (values >= limits.min_p[:, None] * values[:, :1]) & (values > 0)
    mass = torch.where(eligible, values.double(), 0.0)
    ended = eligible.sum(dim=-1) <= known  # no token beyond the candidates passes top-k and min-p
    everything = _chunks(probabilities).sum(dim=-1).double().sum(dim=-1)
    total = torch.where(ended, mass.sum(dim=-1), everything)
    share = torch.where(limits.top_p < 1, limits.top_p.double() * total, torch.inf)
    before = mass.cumsum(dim=-1) - mass
    kept = eligible & (before < share[:, None])
    by_top_p = (limits.top_k == 0) & (limits.min_p == 0) & (kept.sum(dim=-1) <= known)
    index, _ = _invert(torch.where(kept, mass, 0.0), limits.uniform)
    return ids.gather(1, index[:, None])[:, 0], ended | by_top_p


def _descending(probabilities: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` likeliest: (values [R, count], ids [R, count], how many of a row are surely first [R]).

    Where the last candidate ties with tokens left out, which of them came in is arbitrary: not known.
    """
    if count == probabilities.shape[1]:
        values, ids = probabilities.sort(dim=-1, descending=True, stable=True)
        return values, ids, torch.full((len(ids),), count, device=ids.device)
    values, ids = probabilities.topk(count, dim=-1)
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    known = (values > values[:, -1:]).sum(dim=-1)
    return values, ids.gather(1, order), known
