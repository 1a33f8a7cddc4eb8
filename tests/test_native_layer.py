"""A decoder layer in one native call, against the composition of the reference's kernels."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from core import reference
from core.conformance.compare import difference
from core.conformance.kernels import Side, check_kernel
from core.conformance.paging import cached
from core.contracts.attention import Attention, AttentionShape, AttentionSpec
from core.contracts.kernels import CachedSequences, DecoderLayerWeights, KernelRequest
from core.contracts.quantization import FORMATS, WeightFormat
from core.native import kernels, layer
from core.native.attention import NativeAttention
from core.native.library import NativeLibrary
from core.reference.attention import ReferenceAttention
from core.reference.decoder_layer import DECODER_LAYER
from core.reference.inputs import Inputs, rounded
from core.weights.quantize import quantize

DTYPES = ("float32", "bfloat16")
SHAPE = AttentionShape(num_heads=6, num_kv_heads=2, head_dim=32, scale=32**-0.5)
HIDDEN, INTERMEDIATE, EPS = 128, 256, 1e-5
RAGGED = ((1, 5), (1, 300), (1, 1), (9, 40), (21, 21))

pytestmark = pytest.mark.usefixtures("two_threads")


def weights_of(dtype: str, *, extras: bool = False) -> DecoderLayerWeights:
    inputs, query, kv = Inputs(dtype, 1), SHAPE.num_heads * 32, 2 * SHAPE.num_kv_heads * 32
    return DecoderLayerWeights(
        input_norm=inputs.near_one(HIDDEN),
        qkv=inputs.weight(query + kv, HIDDEN),
        qkv_bias=inputs.normal(query + kv, scale=0.5) if extras else None,
        query_norm=inputs.near_one(32) if extras else None,
        key_norm=inputs.near_one(32) if extras else None,
        output=inputs.weight(HIDDEN, query),
        output_bias=inputs.normal(HIDDEN, scale=0.5) if extras else None,
        mlp_norm=inputs.near_one(HIDDEN),
        gate_up=inputs.weight(2 * INTERMEDIATE, HIDDEN),
        down=inputs.weight(HIDDEN, INTERMEDIATE),
    )


def run(
    function: Any,
    attention: Attention,
    weights: DecoderLayerWeights,
    sequences: tuple[tuple[int, int], ...],
    *,
    layers: int = 2,
    token_multiple: int = 1,
    wanted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Two layers of equal weights, each on a cache of its own: the first makes the stream, the second goes on.

    `wanted` are the rows that the last is asked for.
    """
    dtype, before = attention.spec.dtype, sum(length - new for new, length in sequences)
    inputs = Inputs(dtype, 2)
    held = CachedSequences(
        shape=SHAPE,
        sequences=sequences,
        key=inputs.normal(before, SHAPE.num_kv_heads, SHAPE.head_dim),
        value=inputs.normal(before, SHAPE.num_kv_heads, SHAPE.head_dim),
    )
    rows = -(-sum(new for new, _ in sequences) // token_multiple) * token_multiple
    angles = inputs.integers(4096, rows, 1) * 10000.0 ** -torch.linspace(0, 1, 16)
    cos, sin = angles.cos().to(inputs.dtype), angles.sin().to(inputs.dtype)
    x, residual, plan = inputs.normal(rows, HIDDEN), None, None
    apply = function(attention, weights, EPS)
    for i in range(layers):
        cache, batch = cached(attention, held, token_multiple=token_multiple, torch_device="cpu")
        plan = plan or attention.plan(batch)
        x, residual = apply(x, residual, cos, sin, cache, plan, wanted if i == layers - 1 else None)
    assert residual is not None
    return x, residual


def native_run(library: NativeLibrary, weights: DecoderLayerWeights, sequences: Any, **more: Any) -> Any:
    dtype = str(weights.input_norm.dtype).removeprefix("torch.")
    attention = NativeAttention(AttentionSpec(**vars(SHAPE), dtype=dtype, block_size=16), library)
    return run(lambda *given: layer.decoder_layer(library, *given), attention, weights, sequences, **more)


def reference_run(weights: DecoderLayerWeights, sequences: Any, **more: Any) -> Any:
    dtype = str(weights.input_norm.dtype).removeprefix("torch.")
    attention = ReferenceAttention(AttentionSpec(**vars(SHAPE), dtype=dtype, block_size=16))
    return run(reference.assemble({}).decoder_layer, attention, weights, sequences, **more)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_declared_case_gives_what_the_reference_does(
    library: NativeLibrary, dtype: str, threads: int
) -> None:
    torch.set_num_threads(threads)
    results = check_kernel(
        DECODER_LAYER,
        lambda *given: layer.decoder_layer(library, *given),
        dtype,
        Side(attention=lambda spec: NativeAttention(spec, library)),
    )
    assert [str(result) for result in results if result.problem] == []


@pytest.mark.parametrize("sequences", [((1, 1),), ((1, 700),), ((1, 7), (1, 8)), ((2, 2),), RAGGED])
@pytest.mark.parametrize("extras", [False, True])
def test_layers_in_a_row_agree_in_float32(library: NativeLibrary, extras: bool, sequences: Any) -> None:
    weights = weights_of("float32", extras=extras)
    for ours, theirs in zip(
        native_run(library, weights, sequences), reference_run(weights, sequences), strict=True
    ):
        assert difference(ours, theirs, rounded(64)["float32"]) == ""


def test_layers_in_a_row_stay_as_close_in_bfloat16_as_rounding_allows(library: NativeLibrary) -> None:
    weights = weights_of("bfloat16", extras=True)
    for ours, theirs in zip(
        native_run(library, weights, RAGGED), reference_run(weights, RAGGED), strict=True
    ):
        assert difference(ours, theirs, rounded(64)["bfloat16"]) == ""


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_thread_gives_exactly_what_two_do(library: NativeLibrary, dtype: str) -> None:
    weights = weights_of(dtype, extras=True)
    for sequences in (((1, 700),), RAGGED):
        two = native_run(library, weights, sequences)
        torch.set_num_threads(1)
        one = native_run(library, weights, sequences)
        torch.set_num_threads(2)
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("rows", [(0, 1, 2, 11, 32), (32, 5), (11,), (), tuple(range(33))])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_asked_for_are_exactly_those_of_the_whole(
    library: NativeLibrary, dtype: str, layers: int, rows: tuple[int, ...]
) -> None:
    weights, wanted = weights_of(dtype, extras=True), torch.tensor(rows, dtype=torch.int64)
    whole = native_run(library, weights, RAGGED, layers=layers)
    asked = native_run(library, weights, RAGGED, layers=layers, wanted=wanted)
    for part, all_rows in zip(asked, whole, strict=True):
        assert torch.equal(part, all_rows[wanted])


def test_padding_rows_are_finite_and_leave_the_others_alone(library: NativeLibrary) -> None:
    weights = weights_of("float32")
    padded, plain = (
        native_run(library, weights, RAGGED, token_multiple=16),
        native_run(library, weights, RAGGED),
    )
    rows = len(plain[0])
    assert len(padded[0]) > rows
    assert bool(padded[0].isfinite().all())
    fresh = reference_run(weights, RAGGED, token_multiple=16)
    assert difference(padded[0][:rows], fresh[0][:rows], rounded(64)["float32"]) == ""


def quantised(weights: DecoderLayerWeights, format: WeightFormat) -> DecoderLayerWeights:
    names = ("qkv", "output", "gate_up", "down")
    return replace(weights, **{name: quantize(getattr(weights, name).float(), format) for name in names})


@pytest.mark.parametrize("name", ["int8", "int4", "int4-g64"])
@pytest.mark.parametrize("sequences", [((1, 40),), RAGGED])
def test_quantised_weights_are_multiplied_as_they_are(
    library: NativeLibrary, name: str, sequences: Any
) -> None:
    weights = quantised(weights_of("bfloat16", extras=True), FORMATS[name])
    ours, theirs = native_run(library, weights, sequences), reference_run(weights, sequences)
    for mine, exact in zip(ours, theirs, strict=True):
        error = (mine.float() - exact.float()).norm() / exact.float().norm()
        assert float(error) < 0.03, "activations are rounded to 8 bits"


def test_another_attention_is_refused(library: NativeLibrary) -> None:
    attention = ReferenceAttention(AttentionSpec(**vars(SHAPE), dtype="float32", block_size=16))
    with pytest.raises(TypeError, match="not a ReferenceAttention"):
        layer.decoder_layer(library, attention, weights_of("float32"), EPS)


def test_a_model_with_a_layer_that_cannot_be_served_is_rejected_with_the_reason(
    library: NativeLibrary,
) -> None:
    odd = AttentionSpec(num_heads=2, num_kv_heads=1, head_dim=72, scale=1.0, dtype="float32", block_size=16)
    assert kernels.implementations(library).keys() == {*kernels.NAMES}
    offered = kernels.implementations(library)["decoder_layer"]
    assert "head_dim is 72" in str(offered.rejects(KernelRequest(dtype="float32", attention=(odd,))))
    assert "not float16" in str(offered.rejects(KernelRequest(dtype="float16")))
    assert offered.rejects(KernelRequest(dtype="bfloat16")) is None
