"""Mixtures of experts: which experts a token goes to, those experts, and both with the MLP that every token shares."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.contracts.kernels import Case, Cost, Kernel, Kernels, MoeWeights, Routing
from core.contracts.quantization import Weight
from core.reference.costs import GATE_FLOPS, product_flops, stored_bytes
from core.reference.inputs import Inputs, rounded

_LEAST = 1e-20  # of a sum that weights are divided by: sigmoids may all be 0


def route(logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
    """logits [N, E], bias [E] or None, float32 -> (weights [N, K] float32, expert ids [N, K] int64), best first.

    A token's experts differ from one another. Ids are in [0, E), whatever the logits are.
    """
    if routing.scoring == "sparsemixer":
        assert bias is None and routing.groups == 1
        weights, ids = _sparsemixer(logits, routing)
    else:
        scores = logits.sigmoid() if routing.scoring == "sigmoid" else logits.softmax(dim=-1)
        ranked = scores if bias is None else scores + bias
        ids = _within_groups(ranked, routing).topk(routing.top_k, dim=-1).indices
        weights = scores.gather(-1, ids)
    if routing.normalized:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + _LEAST)
    return weights * routing.scale, ids


def _within_groups(ranked: Tensor, routing: Routing) -> Tensor:
    """[N, E], below all others outside of the best groups."""
    if routing.top_groups == routing.groups:
        return ranked
    rows, count = ranked.shape
    grouped = ranked.view(rows, routing.groups, count // routing.groups)
    rank = grouped.topk(routing.group_best, dim=-1).values.sum(dim=-1)
    chosen = rank.topk(routing.top_groups, dim=-1).indices
    outside = torch.ones_like(rank, dtype=torch.bool).scatter(-1, chosen, False)
    return grouped.masked_fill(outside[..., None], -torch.inf).view(ranked.shape)


def _sparsemixer(logits: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    left, weights, ids = logits, list[Tensor](), list[Tensor]()
    for _ in range(routing.top_k):
        best, chosen = left.max(dim=-1, keepdim=True)
        far = (best - logits) / logits.abs().clamp(min=best) > routing.margin
        weights.append(left.masked_fill(far, -torch.inf).softmax(dim=-1).gather(-1, chosen))
        ids.append(chosen)
        left = left.scatter(-1, chosen, -torch.inf)
    return torch.cat(weights, dim=-1), torch.cat(ids, dim=-1)


def experts(
    kernels: Kernels, gate_up: Sequence[Weight], down: Sequence[Weight]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Of each expert, gate_up [2 * I, H] (gate first) and down [H, I] -> a function (x, weights, ids) -> [N, H].

    x        [N, H]
    weights  [N, K], float32: how much each expert of a token counts
    ids      [N, K], int64: those experts, in [0, E), of a token all different

    A token's results are summed in float32, in its own order, and rounded once: who stands beside it is no matter.
    """
    mlps = [kernels.gated_mlp(*expert) for expert in zip(gate_up, down, strict=True)]

    def apply(x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        pairs: Any = ids.flatten()
        order = pairs.argsort(stable=True)  # of a token and its expert, expert after expert
        given, start, made = x[order // ids.shape[1]], 0, list[Tensor]()
        counts: Counter[int] = Counter(pairs.tolist())
        for expert in sorted(counts):
            made.append(mlps[expert](given[start : start + counts[expert]]))
            start += counts[expert]
        results = torch.cat(made)[order.argsort()] if made else given
        each = results.view(*ids.shape, x.shape[1]).float()  # [N, K, H]
        return (each * weights[..., None]).sum(dim=1).to(x.dtype)

    return apply


def moe(kernels: Kernels, weights: MoeWeights, routing: Routing) -> Callable[[Tensor], Tensor]:
    """A mixture of experts -> a function x [N, H] -> [N, H].

    weights  shapes are those of `MoeWeights`, in core/contracts/kernels.py

    The router's logits are products in float32, whatever the dtype of x: rounding them would choose other experts.
    """
    apply = kernels.experts(weights.gate_up, weights.down)
    shared = None
    if weights.shared_gate_up is not None:
        shared = kernels.gated_mlp(weights.shared_gate_up, weights.shared_down)

    def mixed(x: Tensor) -> Tensor:
        wide = x.float()
        routed = apply(x, *kernels.route(F.linear(wide, weights.router), weights.bias, routing))
        if shared is None:
            return routed
        if weights.shared_gate is None:
            return routed + shared(x)
        return routed + (shared(x) * F.linear(wide, weights.shared_gate).sigmoid()).to(x.dtype)

    return mixed


_ROUTINGS = {
    "softmax": Routing(top_k=2),
    "softmax, normalised": Routing(top_k=3, normalized=True),
    "softmax, groups by their best": Routing(top_k=3, groups=4, top_groups=2, scale=4.0),
    "sigmoid, groups by their two best": Routing(
        top_k=3, scoring="sigmoid", groups=4, top_groups=2, group_best=2, normalized=True, scale=2.5
    ),
    "sparsemixer": Routing(top_k=2, scoring="sparsemixer", margin=0.3),
}


def _route_cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs("float32", seed)
    for name, routing in _ROUTINGS.items():
        yield Case(name=f"{name}, 3 of 16", arguments=(inputs.normal(3, 16), None, routing))
    grouped = _ROUTINGS["sigmoid, groups by their two best"]
    bias = inputs.normal(256)
    yield Case(name="sigmoid, biased, 17 of 256", arguments=(inputs.normal(17, 256), bias, grouped))
    plain = Routing(top_k=2, scoring="sigmoid")
    yield Case(name="sigmoid, biased, 1 of 16", arguments=(inputs.normal(1, 16), bias[:16], plain))
    yield Case(name="all of 4", arguments=(inputs.normal(2, 4), None, Routing(top_k=4)))
    yield Case(name="large", arguments=(inputs.normal(3, 16, scale=8.0), None, Routing(top_k=2)))
    yield Case(name="no rows", arguments=(inputs.normal(0, 16), None, grouped))


def _weights(inputs: Inputs, count: int, hidden: int, intermediate: int, shared: int = 0) -> MoeWeights:
    return MoeWeights(
        router=inputs.weight(count, hidden).float(),
        bias=None,
        gate_up=tuple(inputs.weight(2 * intermediate, hidden) for _ in range(count)),
        down=tuple(inputs.weight(hidden, intermediate) for _ in range(count)),
        shared_gate_up=inputs.weight(2 * shared, hidden) if shared else None,
        shared_down=inputs.weight(hidden, shared) if shared else None,
    )


def _experts_cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for rows, count, top_k, hidden, intermediate in (
        (3, 8, 2, 100, 33),
        (1, 8, 2, 64, 96),
        (0, 8, 2, 64, 96),
        (17, 16, 4, 96, 64),
        (5, 4, 4, 64, 32),
        (9, 4, 1, 64, 32),
    ):
        weights = _weights(inputs, count, hidden, intermediate)
        yield Case(
            name=f"{rows}x{hidden}x{intermediate}, {top_k} of {count}",
            prepare=(weights.gate_up, weights.down),
            arguments=(
                inputs.normal(rows, hidden),
                inputs.normal(rows, top_k).float().softmax(dim=-1),
                inputs.normal(rows, count).float().argsort(dim=-1)[:, :top_k],
            ),
        )
    weights = _weights(inputs, 8, 64, 32)
    one = torch.full((5, 1), 3)
    arguments = (inputs.normal(5, 64), torch.ones(5, 1), one)
    yield Case(name="all tokens to one", prepare=(weights.gate_up, weights.down), arguments=arguments)


def _moe_cases(dtype: str, seed: int) -> Iterator[Case]:
    inputs = Inputs(dtype, seed)
    for name, routing in _ROUTINGS.items():
        prepare = (_weights(inputs, 16, 64, 32), routing)
        yield Case(name=f"3, {name}", prepare=prepare, arguments=(inputs.normal(3, 64),))
    plain, shared = _ROUTINGS["softmax, normalised"], _weights(inputs, 8, 100, 33, shared=40)
    biased = replace(shared, bias=inputs.normal(8).float())
    gated = replace(shared, shared_gate=inputs.weight(1, 100).float())
    yield Case(name="1, a shared MLP", prepare=(shared, plain), arguments=(inputs.normal(1, 100),))
    yield Case(name="17, a shared MLP", prepare=(shared, plain), arguments=(inputs.normal(17, 100),))
    yield Case(name="9, a gated shared MLP", prepare=(gated, plain), arguments=(inputs.normal(9, 100),))
    yield Case(name="9, biased", prepare=(biased, plain), arguments=(inputs.normal(9, 100),))
    yield Case(name="no rows", prepare=(gated, plain), arguments=(inputs.normal(0, 100),))


def _route_cost(case: Case) -> Cost:
    """The logits and the bias are read, K weights and ids a row are written; 3 flops a logit."""
    logits, bias, routing = case.arguments
    rows = len(logits)
    chosen = rows * routing.top_k * (torch.float32.itemsize + torch.int64.itemsize)
    read = stored_bytes(logits, bias) if rows else 0
    return Cost(read + chosen, 3 * logits.numel())


def _experts_cost(case: Case) -> Cost:
    """The weights of experts that a token goes to, as they are stored, x, weights and ids are read, [N, H] is written;
    of each pair of a token and an expert 6 * H * I + 5 * I + 2 * H flops.
    """
    (gate_up, down), (x, weights, ids) = case.prepare, case.arguments
    used = set(ids.flatten().tolist())
    read = stored_bytes(*(part[i] for part in (gate_up, down) for i in used), x, weights, ids)
    return Cost(read + stored_bytes(x), _expert_flops(ids.numel(), gate_up[0], down[0]))


def _moe_cost(case: Case) -> Cost:
    """The router, K of E experts and the shared MLP, as they are stored, and x are read, [N, H] is written: all tokens
    may go to the same experts. Flops are those of the router, of K experts a token, and of the shared MLP.
    """
    (weights, routing), (x,) = case.prepare, case.arguments
    rows, k, count = len(x), routing.top_k, len(weights.down)
    if not rows:
        return Cost(0, 0)
    shared = (weights.shared_gate_up, weights.shared_down)
    routed = stored_bytes(*weights.gate_up, *weights.down) * k // count
    read = stored_bytes(weights.router, weights.bias, weights.shared_gate, *shared) + routed
    flops = product_flops(rows, weights.router) + _expert_flops(rows * k, weights.gate_up[0], weights.down[0])
    if weights.shared_gate is not None:
        flops += product_flops(rows, weights.shared_gate)
    if weights.shared_down is not None:
        flops += _expert_flops(rows, *shared)
    return Cost(read + 2 * stored_bytes(x), flops)


def _expert_flops(pairs: int, gate_up: Weight, down: Weight) -> int:
    """Of so many tokens through one gated MLP each, whose results are weighed and added up."""
    hidden, intermediate = down.shape
    between = pairs * (GATE_FLOPS * intermediate + 2 * hidden)
    return product_flops(pairs, gate_up) + product_flops(pairs, down) + between


ROUTE = Kernel(
    name="route",
    reference=route,
    cases=_route_cases,
    tolerance=rounded(0),
    cost=_route_cost,
    summary="the experts of each token, and how much each counts",
)
EXPERTS = Kernel(
    name="experts",
    reference=experts,
    cases=_experts_cases,
    tolerance=rounded(16),
    cost=_experts_cost,
    prepared=True,
    composed=("gated_mlp",),
    summary="each token through its experts, weighed and added up",
)
MOE = Kernel(
    name="moe",
    reference=moe,
    cases=_moe_cases,
    tolerance=rounded(24),
    cost=_moe_cost,
    prepared=True,
    composed=("route", "experts", "gated_mlp"),
    summary="a mixture of experts: the router, its experts, and the MLP that every token shares",
)
