"""The level "ops": supported, not supported and wrong are three things, and nothing of a platform ends the level."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from core.conformance import Options, Result
from core.conformance.ops import check
from core.contracts.attention import Attention
from core.contracts.kernels import DecoderLayerWeights, Implementation, KernelRequest
from core.contracts.platform import Capabilities, Device, Platform, Probe, SchedulingLimits
from core.contracts.versions import VERSIONS
from core.reference import KERNELS, assemble

DEVICE = Device(name="it", torch_device="cpu")


class Plain(Platform):
    """The reference, but for the kernels and the manifest that a test gives it."""

    contract, name, device_type, priority = VERSIONS["platform"], "plain", "cpu", -20

    def __init__(self, kernels: Mapping[str, Any] | None = None, **manifest: Any) -> None:
        self._kernels, self._manifest = kernels or {}, {"dtypes": ("float32", "bfloat16")} | manifest

    def probe(self) -> Probe:
        return Probe(available=True, reason="always there", devices=(DEVICE,))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(**self._manifest)

    def kernels(self, device: Device) -> Mapping[str, Implementation]:
        return self._kernels


def results(platform: Platform, **options: Any) -> list[Result]:
    return list(check(platform, DEVICE, Options(**{"quick": True} | options)))


def of(status: str, found: list[Result]) -> list[Result]:
    return [result for result in found if result.status == status]


def test_what_a_platform_leaves_to_the_reference_passes() -> None:
    found = results(Plain())

    assert of("passed", found) == found
    assert {result.subject for result in found} == set(KERNELS)
    assert {result.level for result in found} == {"ops"}
    assert len({(result.subject, result.case, result.dtype) for result in found}) == len(found)


def test_quick_takes_the_preferred_dtype_and_otherwise_all_that_are_declared() -> None:
    assert {result.dtype for result in results(Plain())} == {"float32"}
    assert {result.dtype for result in results(Plain(), quick=False)} == {"float32", "bfloat16"}
    assert {result.dtype for result in results(Plain(), dtypes=("bfloat16",))} == {"bfloat16"}


def test_a_version_that_rejects_a_dtype_is_not_supported_and_what_serves_instead_is_tried() -> None:
    def rejects(request: KernelRequest) -> str | None:
        return "has no float32 units" if request.dtype == "float32" else None

    def never(x: Tensor) -> Tensor:
        raise AssertionError("it was rejected")

    offered = {"silu_and_mul": Implementation(function=never, rejects=rejects)}
    found = [result for result in results(Plain(offered)) if result.subject == "silu_and_mul"]

    assert [result.unsupported for result in of("not supported", found)] == ["has no float32 units"]
    assert of("wrong", found) == []
    assert len(of("passed", found)) == len(list(KERNELS["silu_and_mul"].cases("float32", 0)))


def test_a_layer_that_knows_no_windows_is_tried_without_them_and_the_composition_behind_them() -> None:
    def rejects(request: KernelRequest) -> str | None:
        return "knows no windows" if any(spec.sliding_window for spec in request.attention) else None

    calls: list[int | None] = []

    def layer(attention: Attention, weights: DecoderLayerWeights, eps: float) -> Callable[..., Any]:
        calls.append(attention.spec.sliding_window)
        return assemble({}).decoder_layer(attention, weights, eps)

    offered = {"decoder_layer": Implementation(function=layer, rejects=rejects)}
    found = [result for result in results(Plain(offered)) if result.subject == "decoder_layer"]

    (refused,) = of("not supported", found)
    assert (refused.unsupported, "window" in refused.case) == ("knows no windows", True)
    assert (
        len(of("passed", found)) == len(found) - 1 == len(list(KERNELS["decoder_layer"].cases("float32", 0)))
    )
    assert calls and set(calls) == {None}


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"head_dims": (64,)}, "head_dim is 16"),
        ({"features": frozenset()}, "sliding window of 8"),
        ({"scheduling": SchedulingLimits(max_num_seqs=2)}, "3 sequences"),
        (
            {"scheduling": SchedulingLimits(separate_steps=True), "weight_formats": frozenset({"int8"})},
            "decodes beside prompts",
        ),
    ],
)
def test_a_layer_outside_the_manifest_is_not_supported(manifest: dict[str, Any], reason: str) -> None:
    found = results(Plain(**manifest))

    assert of("wrong", found) == []
    assert {result.subject for result in of("not supported", found)} == {"decoder_layer"}
    assert any(reason in result.unsupported for result in found)
    assert any(result.subject == "decoder_layer" for result in of("passed", found))


def test_a_version_that_is_wrong_is_wrong_in_its_cases_alone() -> None:
    def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
        largest, token_ids = KERNELS["argmax"].reference(logits)
        return largest, token_ids.clamp(max=40)

    found = results(Plain({"argmax": Implementation(function=argmax)}))

    assert {result.subject for result in of("wrong", found)} == {"argmax"}
    assert all("elements are off" in result.problem for result in of("wrong", found))
    assert any(result.subject == "argmax" for result in of("passed", found))


@pytest.mark.parametrize(
    ("offered", "problem"),
    [
        ({"rmsnorm": Implementation(function=torch.relu)}, "did you mean rms_norm?"),
        ({"rms_norm": torch.relu}, "expected core.contracts.kernels.Implementation"),
    ],
)
def test_an_offer_that_breaks_the_contract_is_one_problem(offered: dict[str, Any], problem: str) -> None:
    (found,) = results(Plain(offered))

    assert (found.status, found.subject) == ("wrong", "kernels")
    assert problem in found.problem


def test_a_platform_that_raises_when_it_is_asked_for_kernels_is_wrong_and_ends_nothing() -> None:
    class Raising(Plain):
        def kernels(self, device: Device) -> Mapping[str, Implementation]:
            raise OSError("no firmware")

    (found,) = results(Raising())

    assert found.problem == "raised OSError: no firmware"


def test_a_version_whose_rejection_raises_is_wrong() -> None:
    def rejects(request: KernelRequest) -> str | None:
        return "windows" if request.attention[0].sliding_window else None

    offered = {
        "decoder_layer": Implementation(function=lambda attention, weights, eps: None, rejects=rejects)
    }
    (found,) = results(Plain(offered))

    assert found.problem.startswith("raised IndexError")
