"""Every kernel of every platform, on every declared case, against the reference; it against others."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.conformance import available_platforms
from core.conformance.compare import difference
from core.conformance.kernels import Side, check_kernel, check_kernels, platform_side
from core.contracts.kernels import Kernels, Tolerance
from core.discovery import load_plugins
from core.execution.dispatch import resolve_kernels
from core.ledger import Ledger
from core.reference import KERNELS, assemble

DTYPES = ("float32", "bfloat16", "float16")
PLATFORMS = available_platforms(load_plugins())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", PLATFORMS)
def test_a_platforms_kernel_computes_what_the_reference_does(name: str, kernel: str, dtype: str) -> None:
    platform, device = PLATFORMS[name]
    if dtype not in platform.capabilities(device).dtypes:
        pytest.skip(f"{name} has no {dtype}")
    served = getattr(resolve_kernels(platform, device, dtype, Ledger()), kernel)

    results = list(check_kernel(KERNELS[kernel], served, dtype, platform_side(platform, device)))

    assert results
    assert [str(result) for result in results if result.problem] == []


def test_the_toy_platforms_kernels_conform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "toy_platform"))
    from toy_platform import ToyPlatform

    toy = ToyPlatform()
    device = toy.probe().devices[0]

    for dtype in toy.capabilities(device).dtypes:
        assert [str(result) for result in check_kernels(toy, device, dtype) if result.problem] == []


def test_every_kernel_of_the_contract_is_declared_once() -> None:
    assert sorted(KERNELS) == sorted(field.name for field in dataclasses.fields(Kernels))
    assert all(name == kernel.name and kernel.summary for name, kernel in KERNELS.items())
    assert all(set(kernel.composed) < set(KERNELS) for kernel in KERNELS.values())


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_tried_without_rows_and_with_a_tolerance_for_every_dtype(kernel: str) -> None:
    cases = list(KERNELS[kernel].cases("float32", 0))

    # A step has at least one token: what attends is never called without rows.
    assert any(case.arguments[0].shape[0] == 0 or case.cached for case in cases)
    assert any(case.arguments[0].shape[0] == 1 for case in cases)
    assert len({case.name for case in cases}) == len(cases)
    assert set(KERNELS[kernel].tolerance) == set(DTYPES)


def test_rms_norm_is_the_one_of_transformers_llama() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(17, 576).to(dtype), torch.rand(576).to(dtype)
        theirs = LlamaRMSNorm(576, eps=1e-5).to(dtype)
        theirs.weight.data.copy_(weight)

        assert torch.equal(KERNELS["rms_norm"].reference(x, weight, 1e-5), theirs(x))


def test_add_rms_norm_returns_the_norm_and_the_sum() -> None:
    x, residual, weight = torch.randn(3, 64), torch.randn(3, 64), torch.rand(64)

    normed, total = KERNELS["add_rms_norm"].reference(x, residual, weight, 1e-6)

    assert torch.equal(total, x + residual)
    assert torch.equal(normed, KERNELS["rms_norm"].reference(x + residual, weight, 1e-6))


def test_rotary_is_the_one_of_transformers_llama() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    query, key, angles = torch.randn(7, 9, 64), torch.randn(7, 3, 64), torch.rand(7, 32) * 1000
    both = torch.cat((angles, angles), dim=-1)[None]

    ours = KERNELS["rotary"].reference(query, key, angles.cos(), angles.sin())
    theirs = apply_rotary_pos_emb(
        query.transpose(0, 1)[None], key.transpose(0, 1)[None], both.cos(), both.sin()
    )

    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other[0].transpose(0, 1), rtol=0, atol=1e-6)


def test_rotary_passes_on_what_lies_beyond_the_rotated_part() -> None:
    query, key, angles = torch.randn(2, 1, 10), torch.randn(2, 1, 10), torch.rand(2, 3)

    turned, _ = KERNELS["rotary"].reference(query, key, angles.cos(), angles.sin())

    assert torch.equal(turned[..., 6:], query[..., 6:])
    assert not torch.equal(turned[..., :6], query[..., :6])


def test_a_composed_kernel_uses_the_finer_ones_that_were_chosen() -> None:
    calls: list[str] = []

    def linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        calls.append("linear")
        return KERNELS["linear"].reference(weight, bias)

    x, gate_up, down = torch.randn(2, 8), torch.randn(12, 8), torch.randn(8, 6)
    composed = assemble({"linear": linear}).gated_mlp(gate_up, down)(x)

    assert calls == ["linear", "linear"]
    assert torch.equal(composed, assemble({}).gated_mlp(gate_up, down)(x))


def _scaled(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return KERNELS["rms_norm"].reference(x, weight, eps) * 1.0001


def _nan(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.full_like(x, torch.nan)


def _wide(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return KERNELS["rms_norm"].reference(x, weight, eps).double()


def _in_place(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.copy_(KERNELS["rms_norm"].reference(x, weight, eps))


def _no_epsilon(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return KERNELS["rms_norm"].reference(x, weight, 0.0)


def _raises(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    raise RuntimeError("out of registers")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (_scaled, "elements are off"),
        (_nan, "elements are off"),
        (_wide, "dtype torch.float64"),
        (_in_place, "wrote into its arguments"),
        (_no_epsilon, "nan"),
        (_raises, "raised RuntimeError: out of registers"),
    ],
)
def test_the_kit_finds_a_broken_kernel(broken: Callable[..., Any], problem: str) -> None:
    results = check_kernel(KERNELS["rms_norm"], broken, "float32", Side())

    assert any(problem in result.problem for result in results)


def test_nan_is_never_close_not_even_to_nan() -> None:
    loose = Tolerance(relative=1e9, absolute=1e9)

    assert difference(torch.tensor([torch.nan]), torch.tensor([1.0]), loose)
    assert difference(torch.tensor([torch.nan]), torch.tensor([torch.nan]), loose)
    assert not difference(torch.tensor([2.0]), torch.tensor([1.0]), loose)
