"""What a call of each kernel moves and computes at least: by hand, and for whatever is declared."""

import pytest
import torch
from torch import Tensor

from core.conformance.bench import QUICK, Shapes, bench_cases
from core.conformance.kernels import Side, reference_trial
from core.conformance.ops_page import ops_page
from core.conformance.quantized import stored_weight
from core.contracts.attention import AttentionShape
from core.contracts.kernels import CachedSequences, Case, Cost, DecoderLayerWeights
from core.contracts.quantization import FORMATS
from core.execution.dispatch import signature_of
from core.reference import KERNELS
from core.reference.causal_conv import state_batch
from core.reference.costs import Sight, sight
from core.reference.inputs import Inputs

SHAPE = AttentionShape(num_heads=2, num_kv_heads=1, head_dim=4, scale=0.5)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def cost(kernel: str, *arguments: object, prepare: tuple[object, ...] = ()) -> Cost:
    return KERNELS[kernel].cost(Case(name="by hand", arguments=arguments, prepare=prepare))


# By hand


def test_an_embedding_reads_each_row_that_is_named_once_and_writes_one_per_token() -> None:
    ids = torch.tensor([3, 1, 3])

    assert cost("embedding", ids, zeros(5, 4)) == Cost(24 + 2 * 16 + 3 * 16, 0)


def test_a_linear_layer_reads_its_weight_bias_and_rows() -> None:
    weight, bias = zeros(2, 4), zeros(2)

    assert cost("linear", zeros(3, 4), prepare=(weight, bias)) == Cost(32 + 8 + 48 + 24, 2 * 3 * 2 * 4)
    assert cost("linear", zeros(3, 4), prepare=(weight, None)) == Cost(32 + 48 + 24, 2 * 3 * 2 * 4)


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantised_weight_costs_the_bytes_that_it_is_stored_in(name: str) -> None:
    inputs, format = Inputs("bfloat16", 0), FORMATS[name]
    weight = stored_weight(inputs, format, 8, 128, rms=1.0)
    rows = 128 * 2 + 8 * 2

    assert cost("linear", inputs.normal(1, 128), prepare=(weight, None)) == Cost(
        8 * format.bytes_per_row(128) + rows, 2 * 8 * 128
    )
    assert weight.data.nbytes < 8 * 128 * 2


def test_a_norm_reads_x_and_its_weight_and_writes_as_much_as_x() -> None:
    x, weight = zeros(2, 8, dtype=torch.bfloat16), zeros(8, dtype=torch.bfloat16)

    assert cost("rms_norm", x, weight, 1e-5) == Cost(32 + 16 + 32, 4 * 16)
    assert cost("add_rms_norm", x, x, weight, 1e-5) == Cost(64 + 16 + 64, 5 * 16)


def test_a_rotation_computes_on_the_rotated_part_alone() -> None:
    query, key, rotation = zeros(2, 4, 8), zeros(2, 2, 8), zeros(2, 3)

    assert cost("rotary", query, key, rotation, rotation) == Cost(2 * (256 + 128) + 48, 3 * 2 * 6 * 6)


def test_a_gated_activation_writes_half_of_what_it_reads() -> None:
    assert cost("silu_and_mul", zeros(2, 6)) == Cost(48 + 24, 5 * 2 * 3)


def test_a_gated_mlp_keeps_to_itself_what_lies_between_its_products() -> None:
    prepare = (zeros(6, 4), zeros(4, 3))

    moved, flops = 96 + 48 + 32 + 32, 2 * 2 * 6 * 4 + 5 * 2 * 3 + 2 * 2 * 4 * 3
    assert cost("gated_mlp", zeros(2, 4), prepare=prepare) == Cost(moved, flops)


def test_an_argmax_reads_the_logits_and_compares_each() -> None:
    assert cost("argmax", zeros(2, 10, dtype=torch.bfloat16)) == Cost(40 + 2 * (2 + 8), 20)


def test_a_greedy_row_is_sampled_with_fewer_flops_than_another() -> None:
    limits = (torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.int64), torch.ones(2), torch.zeros(2))
    uniform = torch.zeros(2, dtype=torch.float64)

    moved = 2 * 10 * 4 + 2 * (4 + 8 + 4 + 4 + 8) + 2 * 8
    assert cost("sample", zeros(2, 10), *limits, uniform) == Cost(moved, 10 + 4 * 10)


def layer_case(rows: tuple[int, ...] | None = None) -> Case:
    """One decode after two cached tokens, in float32, hidden size 4, intermediate size 3."""
    weights = DecoderLayerWeights(
        input_norm=zeros(4),
        qkv=zeros(16, 4),
        qkv_bias=None,
        query_norm=None,
        key_norm=None,
        output=zeros(4, 8),
        output_bias=None,
        mlp_norm=zeros(4),
        gate_up=zeros(6, 4),
        down=zeros(4, 3),
    )
    return Case(
        name="by hand",
        prepare=(weights, 1e-5),
        arguments=(zeros(1, 4), zeros(1, 4), zeros(1, 2), zeros(1, 2)),
        cached=CachedSequences(
            shape=SHAPE, sequences=((1, 3),), key=zeros(2, 1, 4), value=zeros(2, 1, 4), rows=rows
        ),
    )


def test_a_layer_reads_its_weights_and_what_is_cached_and_caches_a_key_and_a_value() -> None:
    weights, inputs, rotation = (4 + 16 * 4 + 4 * 8 + 4 + 6 * 4 + 4 * 3) * 4, 2 * 16, 2 * 8
    cached, written, outputs = 2 * 2 * 16, 2 * 16, 2 * 16
    norms, products = 2 * 5 * 4, 2 * (16 * 4 + 4 * 8 + 6 * 4 + 4 * 3)
    attention, rotated, gate = 4 * 2 * 4 * 3, 3 * 3 * 4, 5 * 3

    assert KERNELS["decoder_layer"].cost(layer_case()) == Cost(
        weights + inputs + rotation + cached + written + outputs,
        norms + products + attention + rotated + gate,
    )


def test_a_layer_of_which_no_row_is_asked_for_needs_only_what_makes_keys_and_values() -> None:
    weights, inputs, rotation, written = 4 * 4 + 8 * 4 * 4, 2 * 16, 2 * 8, 2 * 16
    norm, products, rotated = 5 * 4, 2 * 8 * 4, 3 * 4

    assert KERNELS["decoder_layer"].cost(layer_case(rows=())) == Cost(
        weights + inputs + rotation + written, norm + products + rotated
    )


@pytest.mark.parametrize(
    ("sequences", "window", "rows", "expected"),
    [
        (((1, 5), (4, 4)), None, None, Sight(rows=5, cached=4, pairs=5 + 1 + 2 + 3 + 4)),
        (((1, 5), (4, 4)), None, (4,), Sight(rows=1, cached=0, pairs=4)),
        (((3, 10),), 2, None, Sight(rows=3, cached=1, pairs=6)),
        (((3, 10),), 2, (2,), Sight(rows=1, cached=0, pairs=2)),
        (((3, 10),), 100, None, Sight(rows=3, cached=7, pairs=8 + 9 + 10)),
        (((3, 10),), None, (), Sight(rows=0, cached=0, pairs=0)),
    ],
)
def test_what_is_cached_is_read_where_a_row_that_is_asked_for_sees_it(
    sequences: tuple[tuple[int, int], ...], window: int | None, rows: tuple[int, ...] | None, expected: Sight
) -> None:
    shape = AttentionShape(num_heads=2, num_kv_heads=1, head_dim=4, scale=0.5, sliding_window=window)
    nothing = zeros(0, 1, 4)

    assert (
        sight(CachedSequences(shape=shape, sequences=sequences, key=nothing, value=nothing, rows=rows))
        == expected
    )


def test_a_convolution_reads_the_states_that_have_begun_and_writes_all() -> None:
    x, weight, states = zeros(4, 8), zeros(8, 3), zeros(9, 2, 8)
    batch = state_batch((1, 1, 2), (True, False, True))

    moved = 2 * 128 + 96 + (2 + 3) * 64
    assert cost("causal_conv", x, weight, None, states, batch) == Cost(moved, (2 * 3 + 4) * 32)


def test_a_recurrence_costs_five_flops_for_each_number_of_a_state_and_token() -> None:
    x, step, groups, states = zeros(3, 4, 2), zeros(3, 4), zeros(3, 2, 8), zeros(5, 4, 2, 8)
    parameters = zeros(4)
    batch = state_batch((1, 2), (True, False))
    arguments = (step, parameters, zeros(4, 8), groups, groups, parameters)

    read, kept = 96 + 48 + 2 * 192 + 16 + 128 + 16, (1 + 2) * 256
    flops = 5 * 3 * 64 + 2 * 3 * 32 + 4 * 12 + 3 * 24
    assert cost("selective_scan", x, *arguments, None, states, batch) == Cost(read + 96 + kept, flops)
    gated = cost("selective_scan", x, *arguments, x, states, batch)
    assert gated == Cost(read + 2 * 96 + kept, flops + 5 * 24)


# Of whatever is declared


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", KERNELS)
def test_every_declared_case_costs_at_least_the_bytes_of_its_results(name: str, dtype: str) -> None:
    kernel = KERNELS[name]
    for case in kernel.cases(dtype, 0):
        results = reference_trial(kernel, case, dtype, Side()).result()
        written, found = sum(part.nbytes for part in results), kernel.cost(case)

        assert found.bytes_moved >= written and found.flops >= 0, case.name
        assert type(found.bytes_moved) is type(found.flops) is int, case.name
        assert written == 0 or found.bytes_moved > written, case.name


@pytest.mark.parametrize("name", sorted(KERNELS.keys() - {"decoder_layer"}))  # which has no such case
def test_a_call_without_rows_moves_nothing(name: str) -> None:
    kernel = KERNELS[name]
    empty = [case for case in kernel.cases("float32", 0) if case.arguments[0].shape[0] == 0]

    assert empty
    for case in empty:
        assert kernel.cost(case) == Cost(0, 0)


@pytest.mark.parametrize("name", sorted(KERNELS.keys() - {"embedding"}))  # which reads what its ids name
def test_shapes_without_contents_cost_what_tensors_do(name: str) -> None:
    kernel = KERNELS[name]
    costs = [
        {case.name: kernel.cost(case) for case in bench_cases(name, QUICK, inputs)}
        for inputs in (Inputs("bfloat16", 0), Shapes("bfloat16", 0))
    ]

    assert costs[0] == costs[1]
    assert all(found.bytes_moved > 0 for found in costs[0].values())


def test_the_page_of_kernels_has_each_with_its_cost_in_words() -> None:
    page = ops_page()

    for kernel in KERNELS.values():
        assert f"\n## {kernel.name}\n" in page
        assert f"`{kernel.name}({', '.join(signature_of(kernel))})`" in page
        assert (kernel.reference.__doc__ or "missing").splitlines()[0] in page
        assert " ".join((kernel.cost.__doc__ or "missing").split()) in page
        assert kernel.summary in page
    assert page == ops_page()
