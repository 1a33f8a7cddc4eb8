"""The conformance kit's cases with quantised weights: what a kernel may round, and that wrong ones are found."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from quantized_platform import EveryFormatPlatform, Int8Platform
from torch import Tensor

from core.conformance import Result
from core.conformance.kernels import Side, check_kernel, check_kernels
from core.contracts.kernels import Implementation
from core.contracts.platform import Capabilities, Device
from core.contracts.quantization import FORMATS, QuantizedWeight, Weight
from core.reference import KERNELS, assemble
from core.weights.dequantize import dequantized

Apply = Callable[[Tensor], Tensor]
REFERENCE = assemble({})
WEIGHTY = ("linear", "gated_mlp", "experts", "moe", "decoder_layer")


def tried(linear: Callable[[Weight, Tensor | None], Apply], kernel: str, *formats: str) -> list[Result]:
    """The kit's results for a kernel made of this linear layer, with weights in these formats alone."""
    side = Side(capabilities=Capabilities(weight_formats=frozenset(formats)))
    function = getattr(assemble({"linear": linear}), kernel)
    results = check_kernel(KERNELS[kernel], function, "float32", side)
    return [result for result in results if " as " in result.case]


def problems(results: list[Result]) -> list[str]:
    return [str(result) for result in results if result.problem]


# What is right


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_tried_in_every_format_that_the_manifest_declares(dtype: str) -> None:
    platform = EveryFormatPlatform()
    results = list(check_kernels(platform, platform.probe().devices[0], dtype))

    assert problems(results) == []
    for kernel in WEIGHTY:
        cases = {result.case for result in results if result.subject == kernel}
        for name in FORMATS:
            assert any(f" as {name}" in case for case in cases), f"{kernel} with {name}"
    assert len({(result.subject, result.case) for result in results}) == len(results)


def test_formats_that_are_not_declared_are_not_tried() -> None:
    platform = Int8Platform()
    results = list(check_kernels(platform, platform.probe().devices[0], "float32"))

    quantized = [result.case for result in results if result.subject in WEIGHTY and " as " in result.case]
    assert quantized and all(" as int8" in case for case in quantized)


def test_a_line_says_which_kernel_failed_on_which_shape_in_which_format() -> None:
    (first, *_) = problems(tried(lambda weight, bias: lambda x: x, "linear", "q4_1"))

    assert first.startswith("linear, 0x128->64 as q4_1, float32: shape [0, 128], expected [0, 64]")


@pytest.mark.parametrize("kernel", WEIGHTY)
@pytest.mark.parametrize("together", [32, 128, 4096])
def test_activations_may_be_rounded_to_8_bits_with_any_number_of_them_to_a_scale(
    kernel: str, together: int
) -> None:
    def linear(weight: Weight, bias: Tensor | None) -> Apply:
        exact = REFERENCE.linear(weight, bias)

        def apply(x: Tensor) -> Tensor:
            parts: list[Tensor] = []
            for part in x.split(together, dim=1) if x.numel() else (x,):
                step = part.abs().amax(dim=1, keepdim=True) / 127 if x.numel() else 1.0
                parts.append((part / step).round() * step)
            return exact(torch.cat(parts, dim=1))

        return apply if isinstance(weight, QuantizedWeight) else exact

    assert problems(tried(linear, kernel, *FORMATS)) == []


# What is wrong


def groups_of(weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
    """Headers and values of a copy, group by group: change them, and what they are views of changes."""
    copy = weight.data.clone()
    groups = copy.view(-1, weight.format.bytes_per_row(weight.format.group_of(weight.shape[1])))
    return groups[:, : weight.format.header_bytes], groups[:, weight.format.header_bytes :]


def rebuilt(weight: QuantizedWeight, header: Tensor, values: Tensor) -> QuantizedWeight:
    data = torch.cat((header, values), dim=1).view(weight.data.shape)
    return replace(weight, data=data)


def numbers(weight: QuantizedWeight, header: Tensor) -> Tensor:
    return header.contiguous().view(getattr(torch, weight.format.scale))


def neighbours_alternate(weight: QuantizedWeight) -> QuantizedWeight:
    """Takes byte j for the elements 2 j and 2 j + 1."""
    header, values = groups_of(weight)
    elements = torch.stack((values & 15, values >> 4), dim=2).flatten(1)
    low, high = elements.chunk(2, dim=1)
    return rebuilt(weight, header, low | high << 4)


def halves_swapped(weight: QuantizedWeight) -> QuantizedWeight:
    header, values = groups_of(weight)
    return rebuilt(weight, header, values << 4 | values >> 4)


def next_groups_scale(weight: QuantizedWeight) -> QuantizedWeight:
    header, values = groups_of(weight)
    return rebuilt(weight, header.roll(1, dims=0), values)


def one_scale_for_a_row(weight: QuantizedWeight) -> QuantizedWeight:
    header, values = groups_of(weight)
    rows = header.view(weight.shape[0], -1, header.shape[1])
    return rebuilt(weight, rows[:, :1].expand_as(rows).reshape(header.shape), values)


def no_minimum(weight: QuantizedWeight) -> QuantizedWeight:
    header, values = groups_of(weight)
    both = numbers(weight, header)
    both[:, 1] = -8 * both[:, 0]
    return rebuilt(weight, both.view(torch.uint8), values)


def scale_without_its_sign(weight: QuantizedWeight) -> QuantizedWeight:
    header, values = groups_of(weight)
    return rebuilt(weight, numbers(weight, header).abs().view(torch.uint8), values)


def slightly_larger(weight: QuantizedWeight) -> QuantizedWeight:
    """As if 128 stood where 127 does."""
    header, values = groups_of(weight)
    return rebuilt(weight, (numbers(weight, header) * (128 / 127)).view(torch.uint8), values)


def small_scales_flushed(weight: QuantizedWeight) -> QuantizedWeight:
    header, values = groups_of(weight)
    scale = numbers(weight, header)
    return rebuilt(weight, scale.masked_fill(scale.abs() < 2.0**-14, 0).view(torch.uint8), values)


def no_negative_bytes(weight: QuantizedWeight) -> QuantizedWeight:
    header, values = groups_of(weight)
    return rebuilt(weight, header, values.view(torch.int8).abs().view(torch.uint8))


MISREADINGS = {
    neighbours_alternate: ("q4_0", "q4_1", "int4", "int4-g64", "int4-g128"),
    halves_swapped: ("q4_0", "q4_1", "int4", "int4-g64", "int4-g128"),
    next_groups_scale: tuple(FORMATS),
    one_scale_for_a_row: tuple(name for name, known in FORMATS.items() if known.group),
    no_minimum: ("q4_1",),
    scale_without_its_sign: ("q4_0", "int4", "int4-g64", "int4-g128"),
    slightly_larger: ("int8", "q8_0", "q4_0", "int4-g128"),
    small_scales_flushed: ("q8_0",),
    no_negative_bytes: ("int8", "q8_0"),
}


@pytest.mark.parametrize(
    ("misread", "name"),
    [(misread, name) for misread, names in MISREADINGS.items() for name in names],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_a_kernel_that_misreads_a_format_is_found(
    misread: Callable[[QuantizedWeight], QuantizedWeight], name: str
) -> None:
    def linear(weight: Weight, bias: Tensor | None) -> Apply:
        return REFERENCE.linear(misread(weight) if isinstance(weight, QuantizedWeight) else weight, bias)

    found = problems(tried(linear, "linear", name))

    assert any(f" as {name}" in problem and "elements are off" in problem for problem in found)


@pytest.mark.parametrize("kernel", [kernel for kernel in WEIGHTY if kernel != "linear"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_composed_kernel_with_a_linear_layer_that_is_wrong_is_found(kernel: str, name: str) -> None:
    def linear(weight: Weight, bias: Tensor | None) -> Apply:
        wrong = isinstance(weight, QuantizedWeight)
        return REFERENCE.linear(next_groups_scale(weight) if wrong else weight, bias)

    assert "elements are off" in "".join(problems(tried(linear, kernel, name)))


def test_a_kernel_that_takes_tensors_alone_is_found() -> None:
    def linear(weight: Any, bias: Tensor | None) -> Apply:
        return REFERENCE.linear(weight.contiguous(), bias)

    results = tried(linear, "linear", "int8")

    assert results and all("raised AttributeError" in result.problem for result in results)


@pytest.mark.parametrize("kernel", WEIGHTY)
def test_a_kernel_that_reorders_stored_bytes_where_they_lie_is_found(kernel: str) -> None:
    def linear(weight: Weight, bias: Tensor | None) -> Apply:
        if not isinstance(weight, QuantizedWeight):
            return REFERENCE.linear(weight, bias)
        unpacked = dequantized(weight, torch.float32)
        weight.data.copy_(weight.data.flip(0))
        return REFERENCE.linear(unpacked, bias)

    assert "wrote into a quantised weight" in "".join(problems(tried(linear, kernel, "q8_0")))


class Misreading(EveryFormatPlatform):
    """Takes q4_1 for q4_0, as a kernel might that knows one of them."""

    name, formats = "misreading", frozenset({"q4_0", "q4_1"})

    def kernels(self, device: Device) -> Mapping[str, Implementation]:
        def linear(weight: Weight, bias: Tensor | None) -> Apply:
            if isinstance(weight, QuantizedWeight) and weight.format.minimum:
                weight = no_minimum(weight)
            return REFERENCE.linear(weight, bias)

        return {"linear": Implementation(function=linear)}


def test_a_platform_that_declares_a_format_and_misreads_it_is_found() -> None:
    platform = Misreading()
    found = [r for r in check_kernels(platform, platform.probe().devices[0], "bfloat16") if r.problem]

    assert {result.subject for result in found} == set(WEIGHTY)
    assert all(" as q4_1" in result.case for result in found)


class Inventive(EveryFormatPlatform):
    name, formats = "inventive", frozenset({"int8", "int3"})


def test_a_format_that_does_not_exist_is_no_capability() -> None:
    platform = Inventive()
    found = problems([*check_kernels(platform, platform.probe().devices[0], "float32")])

    assert found == [
        f"weight format, int3, float32: is not a declared format; declared: {', '.join(FORMATS)}"
    ]
