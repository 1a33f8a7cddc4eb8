"""Routing against the routers of transformers and by hand; experts, one by one and beside one another; their costs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from core.contracts.kernels import Case, Cost, MoeWeights, Routing
from core.contracts.quantization import INT8
from core.reference import KERNELS, assemble
from core.weights.quantize import quantize

REFERENCE = assemble({})
GENERATOR = torch.Generator().manual_seed(3)
SIGMOID = Routing(
    top_k=3, scoring="sigmoid", groups=4, top_groups=2, group_best=2, normalized=True, scale=2.5
)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def mixture(count: int = 4, hidden: int = 8, width: int = 6, **others: Any) -> MoeWeights:
    return MoeWeights(
        router=normal(count, hidden),
        bias=None,
        gate_up=tuple(normal(2 * width, hidden) for _ in range(count)),
        down=tuple(normal(hidden, width) for _ in range(count)),
        **others,
    )


def sorted_by_id(weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    ids, order = ids.sort(dim=-1)
    return weights.gather(-1, order), ids


def assert_same_choice(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    (weights, ids), (right, right_ids) = sorted_by_id(*found), sorted_by_id(*expected)
    assert torch.equal(ids, right_ids)
    torch.testing.assert_close(weights, right)


# Routing


@pytest.mark.parametrize(
    ("module", "router", "config", "routing"),
    [
        ("mixtral", "MixtralTopKRouter", {}, Routing(top_k=3, normalized=True)),
        ("qwen2_moe", "Qwen2MoeTopKRouter", {"norm_topk_prob": False}, Routing(top_k=3)),
        ("olmoe", "OlmoeTopKRouter", {"norm_topk_prob": True}, Routing(top_k=3, normalized=True)),
        ("granitemoe", "GraniteMoeTopKRouter", {}, Routing(top_k=3, normalized=True)),
        ("deepseek_v2", "DeepseekV2TopkRouter", {"topk_method": "greedy"}, Routing(top_k=3, scale=2.5)),
        (
            "deepseek_v2",
            "DeepseekV2TopkRouter",
            {"topk_method": "group_limited_greedy"},
            Routing(top_k=3, groups=4, top_groups=2, scale=2.5),
        ),
        ("deepseek_v3", "DeepseekV3TopkRouter", {"norm_topk_prob": True}, SIGMOID),
        ("glm4_moe", "Glm4MoeTopkRouter", {"norm_topk_prob": True}, SIGMOID),
    ],
)
def test_experts_are_chosen_as_by_the_router_of_transformers(
    module: str, router: str, config: dict[str, Any], routing: Routing
) -> None:
    from importlib import import_module
    from types import SimpleNamespace

    sizes = {
        **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 16),
        **{"num_experts_per_tok": 3, "hidden_size": 8, "n_group": 4, "topk_group": 2},
        "routed_scaling_factor": 2.5,
    }
    theirs = getattr(import_module(f"transformers.models.{module}.modeling_{module}"), router)(
        SimpleNamespace(**sizes, **config)
    )
    x, bias = normal(64, 8), None
    theirs.weight.data = normal(16, 8)
    if routing.scoring == "sigmoid":
        bias = theirs.e_score_correction_bias = normal(16)
    with torch.inference_mode():
        expected = theirs(x)[1:]
        found = REFERENCE.route(torch.nn.functional.linear(x, theirs.weight), bias, routing)
    assert_same_choice(found, (expected[0].float(), expected[1]))


def test_sparse_mixing_is_that_of_transformers_phi_moe() -> None:
    from transformers.models.phimoe.modeling_phimoe import sparsemixer

    logits = normal(256, 16)
    weights, ids = REFERENCE.route(logits, None, Routing(top_k=2, scoring="sparsemixer", margin=0.2))
    right, right_ids = sparsemixer(logits, jitter_eps=0.1, training=False)

    assert torch.equal(ids, right_ids)
    torch.testing.assert_close(weights, right)
    assert float((weights < 1).float().mean()) > 0.1, "the margin never leaves two experts in the softmax"


def test_a_bias_ranks_experts_and_does_not_weigh_them() -> None:
    logits, bias = torch.zeros(1, 4), torch.tensor([0.0, 1.0, 0.0, 2.0])
    weights, ids = REFERENCE.route(logits, bias, Routing(top_k=2, scoring="sigmoid"))

    assert ids.tolist() == [[3, 1]]
    assert weights.tolist() == [[0.5, 0.5]]


def test_no_expert_outside_of_the_best_groups_is_chosen() -> None:
    logits = torch.tensor([[9.0, -9.0, 5.0, 4.0, 1.0, 1.0]])
    by_best = Routing(top_k=2, groups=3, top_groups=1)
    by_two = Routing(top_k=2, scoring="sigmoid", groups=3, top_groups=1, group_best=2)

    assert REFERENCE.route(logits, None, by_best)[1].tolist() == [[0, 1]]
    assert REFERENCE.route(logits, None, by_two)[1].tolist() == [[2, 3]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("routing", [Routing(top_k=3), SIGMOID, Routing(top_k=2, scoring="sparsemixer")])
def test_logits_that_are_not_finite_name_experts_that_exist(routing: Routing, bad: float) -> None:
    for logits in (torch.full((1, 16), bad), normal(1, 16).index_fill(1, torch.tensor([5]), bad)):
        ids = REFERENCE.route(logits, None, routing)[1][0].tolist()

        assert all(0 <= e < 16 for e in ids)


# Experts


def test_a_token_is_the_weighted_sum_of_what_its_experts_make_of_it() -> None:
    weights, x = mixture(), normal(5, 8)
    counts, ids = normal(5, 2).softmax(-1), normal(5, 4).argsort(-1)[:, :2]
    found = REFERENCE.experts(weights.gate_up, weights.down)(x, counts, ids)
    mlps = [REFERENCE.gated_mlp(*pair) for pair in zip(weights.gate_up, weights.down, strict=True)]

    for token in range(5):
        row = x[token : token + 1]
        right = sum(counts[token, k] * mlps[ids[token, k]](row) for k in range(2))
        torch.testing.assert_close(found[token : token + 1], right)


def test_a_token_that_is_no_number_leaves_its_neighbours_as_they_are() -> None:
    apply, x = REFERENCE.moe(mixture(), Routing(top_k=2)), normal(6, 8)
    right = apply(x)
    x[2] = torch.nan
    found = apply(x)
    others = [0, 1, 3, 4, 5]

    assert found[2].isnan().all()
    torch.testing.assert_close(found[others], right[others])


def test_every_token_goes_through_the_shared_mlp_by_its_gate() -> None:
    shared = {"shared_gate_up": normal(10, 8), "shared_down": normal(8, 5)}
    plain, gate, x = mixture(**shared), normal(1, 8), normal(3, 8)
    gated = MoeWeights(**{**vars(plain), "shared_gate": gate})
    without = MoeWeights(**{**vars(plain), "shared_gate_up": None, "shared_down": None})
    routed, routing = REFERENCE.moe(without, Routing(top_k=2))(x), Routing(top_k=2)
    each = REFERENCE.gated_mlp(*shared.values())(x)

    torch.testing.assert_close(REFERENCE.moe(plain, routing)(x), routed + each)
    torch.testing.assert_close(REFERENCE.moe(gated, routing)(x), routed + each * (x @ gate.T).sigmoid())


# Costs, by hand


def test_a_router_is_read_and_its_choice_written() -> None:
    case = Case(name="", arguments=(torch.zeros(2, 8), torch.zeros(8), Routing(top_k=3)))

    assert KERNELS["route"].cost(case) == Cost(64 + 32 + 2 * 3 * (4 + 8), 3 * 16)


def test_experts_cost_the_weights_of_those_that_a_token_goes_to() -> None:
    weights, ids = mixture(), torch.tensor([[0, 2], [2, 0], [2, 3]])
    case = Case(
        name="",
        prepare=(weights.gate_up, weights.down),
        arguments=(torch.zeros(3, 8), torch.zeros(3, 2), ids),
    )
    moved = 3 * (12 * 8 + 8 * 6) * 4 + 2 * 3 * 8 * 4 + 3 * 2 * (4 + 8)

    assert KERNELS["experts"].cost(case) == Cost(moved, 6 * (2 * (12 * 8 + 8 * 6) + 5 * 6 + 2 * 8))


def test_a_mixture_costs_at_least_the_experts_of_one_token() -> None:
    weights = mixture(shared_gate_up=normal(10, 8), shared_down=normal(8, 5))
    case = Case(name="", prepare=(weights, Routing(top_k=2)), arguments=(torch.zeros(3, 8),))
    moved = (4 * 8 + 2 * (12 * 8 + 8 * 6) + 10 * 8 + 8 * 5 + 2 * 3 * 8) * 4
    expert = 2 * (12 * 8 + 8 * 6) + 5 * 6 + 2 * 8
    flops = 3 * (2 * 4 * 8 + 2 * expert + 2 * (10 * 8 + 8 * 5) + 5 * 5 + 2 * 8)

    assert KERNELS["moe"].cost(case) == Cost(moved, flops)


def test_quantised_experts_cost_the_bytes_that_they_are_stored_in() -> None:
    weights = mixture(hidden=32, width=32)
    gate_up, down = (
        tuple(quantize(part, INT8) for part in parts) for parts in (weights.gate_up, weights.down)
    )
    arguments = (torch.zeros(1, 32), torch.zeros(1, 1), torch.tensor([[3]]))
    case = Case(name="", prepare=(gate_up, down), arguments=arguments)

    assert KERNELS["experts"].cost(case).bytes_moved == 96 * (4 + 32) + 2 * 32 * 4 + 4 + 8
