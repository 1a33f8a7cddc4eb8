"""Packed products against float64, in every format, at every edge of tiles and panels.

Products with quantised weights round the activations to 8 bits. Their tolerance is what that can do at most: half a
step for each activation, times the weight it meets. Where activations are whole numbers up to 127, nothing is lost.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from core.contracts.quantization import FORMATS, INT8, Q8_0, QuantizedWeight, Weight, WeightFormat
from core.native.library import NativeLibrary
from core.native.linear import gated_mlp, linear, pack, rejects

ROWS = (0, 1, 2, 3, 5, 12, 13, 17, 64, 100)
SHAPES = ((1, 64), (33, 100), (64, 129), (33, 1), (95, 7), (32, 1024))
GROUPED_SHAPES = ((1, 128), (33, 256), (100, 384))
QUANTISED = [
    (format, shape)
    for format in FORMATS.values()
    for shape in (SHAPES if format.group is None else GROUPED_SHAPES)
]
DTYPES = (torch.bfloat16, torch.float32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_weight(format: WeightFormat, outputs: int, inputs: int, seed: int = 1) -> QuantizedWeight:
    """Any bytes as values, and scales that bring results to order 1."""
    generator = seeded(seed)
    shape = (outputs, format.bytes_per_row(inputs))
    data = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    groups = data.view(-1, format.header_bytes + format.group_of(inputs) * format.bits // 8)
    scale_type, count = getattr(torch, format.scale), 2 if format.minimum else 1
    header = (torch.rand(len(groups), count, generator=generator) - 0.3) * 2.0**-format.bits * inputs**-0.5
    groups[:, : format.header_bytes] = header.to(scale_type).view(torch.uint8)
    return QuantizedWeight(format=format, data=data, shape=(outputs, inputs))


def exact(weight: Weight) -> Tensor:
    """What the stored bytes mean, in float64."""
    if not isinstance(weight, QuantizedWeight):
        return weight.double()
    format = weight.format
    groups = weight.data.view(-1, format.header_bytes + format.group_of(weight.shape[1]) * format.bits // 8)
    header = groups[:, : format.header_bytes].contiguous().view(getattr(torch, format.scale)).double()
    stored = groups[:, format.header_bytes :]
    if format.bits == 8:
        values = stored.view(torch.int8).double()
    else:
        values = torch.cat([stored & 15, stored >> 4], dim=1).double() - (0 if format.minimum else 8)
    values = values * header[:, :1] + (header[:, 1:2] if format.minimum else 0.0)
    return values.view(weight.shape)


def lost(weight: Weight, x: Tensor) -> Tensor:
    """[N, out]: what rounding the activations to 8 bits can change at most."""
    if not isinstance(weight, QuantizedWeight):
        return torch.zeros(len(x), weight.shape[0], dtype=torch.float64)
    parts = x.double().abs().split(32 if weight.format.group else 128, dim=1)
    steps = [(part.amax(dim=1, keepdim=True) / 127).expand_as(part) for part in parts]
    return torch.cat(steps, dim=1) / 2 @ exact(weight).abs().T


def assert_right(actual: Tensor, expected: Tensor, room: Tensor, terms: Tensor) -> None:
    """Within `room`, a rounding to the dtype, and the roundings of a sum in float32 of such `terms`."""
    assert actual.shape == expected.shape
    unit = torch.finfo(actual.dtype).eps / 2
    tolerance = room * 1.001 + 2 * unit * expected.abs() + 2.0**-20 * terms + 1e-30
    worst = ((actual.double() - expected).abs() / tolerance).flatten()
    assert not len(worst) or float(worst.max()) <= 1.0
    assert not actual.isnan().any()


def check(library: NativeLibrary, weight: Weight, x: Tensor, bias: Tensor | None) -> None:
    expected = x.double() @ exact(weight).T + (0.0 if bias is None else bias.double())
    terms = x.double().abs() @ exact(weight).abs().T + (0.0 if bias is None else bias.double().abs())
    assert_right(linear(library, weight, bias)(x), expected, lost(weight, x), terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_multiplies_float_weights_of_any_shape(
    library: NativeLibrary, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    outputs, inputs = shape
    weight = (torch.randn(shape, generator=seeded(1)) * inputs**-0.5).to(dtype)
    bias = torch.randn(outputs, generator=seeded(2)).to(dtype)
    for rows in ROWS:
        x = torch.randn(rows, inputs, generator=seeded(rows)).to(dtype)
        check(library, weight, x, bias if rows % 2 else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("format", "shape"), QUANTISED, ids=lambda value: getattr(value, "name", str(value)))
def test_multiplies_quantised_weights_of_any_shape(
    library: NativeLibrary, format: WeightFormat, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = random_weight(format, *shape)
    bias = torch.randn(shape[0], generator=seeded(2)).to(dtype)
    for rows in ROWS:
        x = torch.randn(rows, shape[1], generator=seeded(rows)).to(dtype)
        check(library, weight, x, bias if rows % 2 else None)


@pytest.mark.parametrize("format", list(FORMATS.values()), ids=lambda format: format.name)
def test_whole_activations_lose_nothing(library: NativeLibrary, format: WeightFormat) -> None:
    """With 127 in each block the step is 1, so that every integer is met exactly: also at the extremes, where
    instructions that add pairs in 16 bits would saturate."""
    weight = random_weight(format, 70, 512)
    for rows in (1, 3, 13, 40):
        x = torch.randint(-127, 128, (rows, 512), generator=seeded(rows)).float()
        x[:, ::32] = 127.0
        x[:, 64:128] = 127.0
        x[:, 128:192] = -127.0
        expected, terms = x.double() @ exact(weight).T, x.double().abs() @ exact(weight).abs().T
        actual = linear(library, weight, None)(x)
        assert_right(actual, expected, torch.zeros_like(expected), terms)


@pytest.mark.parametrize("format", (INT8, Q8_0), ids=lambda format: format.name)
@pytest.mark.parametrize("value", (-128, 127))
def test_extreme_bytes_do_not_saturate(library: NativeLibrary, format: WeightFormat, value: int) -> None:
    weight = random_weight(format, 33, 64)
    groups = weight.data.view(-1, format.header_bytes + format.group_of(64))
    groups[:, format.header_bytes :] = torch.tensor(value).to(torch.int8).view(torch.uint8)
    for sign in (1.0, -1.0):
        x = torch.full((3, 64), 127.0 * sign)
        expected = x.double() @ exact(weight).T
        assert_right(linear(library, weight, None)(x), expected, torch.zeros_like(expected), expected.abs())


def test_an_outlier_costs_only_the_activations_beside_it(library: NativeLibrary) -> None:
    """int8 has a scale for 128 activations, so those farther away are multiplied as they would be without it."""
    weight = random_weight(INT8, 33, 300)
    weight.data[:, INT8.header_bytes + 290] = 0
    x = torch.randn(3, 300, generator=seeded(1))
    x[:, 256:] = 0.0
    apply = linear(library, weight, None)
    without = apply(x)
    x[:, 290] = 1e4
    assert torch.equal(apply(x), without)


def test_many_rows_of_long_ones_are_cut_into_blocks(library: NativeLibrary) -> None:
    weight = torch.randn(70, 8192, generator=seeded(1)).bfloat16() * 2.0**-6
    check(library, weight, torch.randn(333, 8192, generator=seeded(2)).bfloat16(), None)
    check(library, random_weight(INT8, 70, 8192), torch.randn(333, 8192, generator=seeded(2)), None)


def silu(x: Tensor) -> Tensor:
    return x / (1.0 + torch.exp(-x))


def mlp_weights(
    format: WeightFormat | None, dtype: torch.dtype, hidden: int, intermediate: int
) -> Iterator[Weight]:
    for seed, shape in enumerate(((2 * intermediate, hidden), (hidden, intermediate))):
        if format is None:
            yield (torch.randn(shape, generator=seeded(seed)) * shape[1] ** -0.5).to(dtype)
        else:
            yield random_weight(format, *shape, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", [None, *FORMATS.values()], ids=lambda f: f.name if f else "float")
def test_gated_mlp_agrees_with_its_parts(
    library: NativeLibrary, format: WeightFormat | None, dtype: torch.dtype
) -> None:
    """The parts are linear layers that are right by the tests above; what is left between are roundings."""
    hidden, intermediate = (100, 33) if format is None else (128, 384)
    gate_up, down = mlp_weights(format, dtype, hidden, intermediate)
    apply, first, second = (
        gated_mlp(library, gate_up, down),
        *(linear(library, w, None) for w in (gate_up, down)),
    )
    for rows in ROWS:
        x = torch.randn(rows, hidden, generator=seeded(rows)).to(dtype)
        gate, up = first(x).double().chunk(2, dim=1)
        expected = second((silu(gate) * up).to(dtype)).double()
        close = 0.02 if dtype == torch.bfloat16 or format is not None else 1e-5
        torch.testing.assert_close(apply(x).double(), expected, rtol=close, atol=close * _size(expected))


def _size(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def gated(library: NativeLibrary, gate: float, up: float, dtype: torch.dtype) -> Tensor:
    """silu(gate) * up through both layers, of 20 hidden units."""
    gate_up = torch.cat([torch.full((20, 1), gate), torch.full((20, 1), up)]).to(dtype)
    return gated_mlp(library, gate_up, torch.eye(20).to(dtype))(torch.ones(1, 1, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gate", (100.0, -100.0, 1e4, -1e4, 88.5, -88.5, 20.0, 0.0, -0.5, 3.0))
def test_silu_is_right_at_its_saturated_ends(library: NativeLibrary, gate: float, dtype: torch.dtype) -> None:
    rounded = float(torch.tensor(gate).to(dtype))
    expected = torch.full((1, 20), float(2.0 * rounded / (1.0 + torch.exp(torch.tensor(-rounded).double()))))
    room = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-20
    torch.testing.assert_close(
        gated(library, gate, 2.0, dtype).double(), expected.double(), rtol=room, atol=1e-30
    )


def all_weights(dtype: torch.dtype) -> Iterator[tuple[str, Weight]]:
    yield "float", torch.randn(70, 2048, generator=seeded(1)).to(dtype)
    yield "odd", torch.randn(70, 333, generator=seeded(1)).to(dtype)
    for format in FORMATS.values():
        yield format.name, random_weight(format, 70, 512)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_the_same_whatever_rows_are_beside_it(library: NativeLibrary, dtype: torch.dtype) -> None:
    for name, weight in all_weights(dtype):
        apply = linear(library, weight, None)
        x = torch.randn(300, weight.shape[1], generator=seeded(3)).to(dtype)
        together = apply(x)
        for rows in (1, 2, 3, 5, 11, 12, 13, 29, 100):
            assert torch.equal(apply(x[:rows]), together[:rows]), f"{name}, {rows} rows"
            assert torch.equal(apply(x[-rows:]), together[-rows:]), f"{name}, the last {rows} rows"


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), float("-inf")))
@pytest.mark.parametrize("position", (0, 40, 99))
def test_what_is_not_finite_can_be_seen_in_its_row_alone(
    library: NativeLibrary, bad: float, position: int
) -> None:
    for name, weight in all_weights(torch.bfloat16):
        x = torch.ones(5, weight.shape[1], dtype=torch.bfloat16)
        x[2, position] = bad
        finite = linear(library, weight, None)(x).isfinite().all(dim=1)
        assert finite.tolist() == [True, True, False, True, True], name


def test_rows_of_zeros_and_of_the_smallest_numbers_are_finite(library: NativeLibrary) -> None:
    for name, weight in all_weights(torch.float32):
        x = torch.zeros(3, weight.shape[1])
        x[1] = 1e-44
        x[2] = 1e-37
        y = linear(library, weight, None)(x)
        assert y.abs().max() < 1e-30, name


def test_a_weight_that_is_not_contiguous_is_packed_as_it_is_meant(library: NativeLibrary) -> None:
    check(library, torch.randn(64, 40, generator=seeded(1)).T, torch.randn(3, 64, generator=seeded(2)), None)


def test_rows_that_are_not_contiguous_are_multiplied_as_they_are_meant(library: NativeLibrary) -> None:
    check(library, torch.randn(40, 64, generator=seeded(1)), torch.randn(64, 3, generator=seeded(2)).T, None)


@pytest.mark.parametrize(
    ("weight", "named"),
    (
        (lambda: torch.zeros(4, 4, dtype=torch.float16), "not float16"),
        (lambda: random_weight(WeightFormat(name="odd", bits=4, group=16), 1, 16), "odd"),
    ),
)
def test_a_weight_that_cannot_be_packed_is_refused_by_name(
    library: NativeLibrary, weight: Callable[[], Weight], named: str
) -> None:
    reason = rejects(weight())
    assert reason is not None
    assert named in reason
    with pytest.raises(ValueError, match=named):
        pack(library, weight(), None)
