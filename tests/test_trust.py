"""Kernels of somebody else's are tried before anybody relies on them, once for each machine and version."""

import logging
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path

import pytest
import torch

from core.contracts.kernels import Implementation, KernelRequest
from core.contracts.platform import Device, Platform
from core.discovery import load_plugins
from core.execution.dispatch import resolve_kernels
from core.execution.trust import _tried, distrusted
from core.ledger import Ledger
from core.reference import KERNELS
from core.weights.cache import cache_dir

CHIP = """
    from core.contracts.kernels import Implementation, KernelRequest
    from core.contracts.platform import Capabilities, Device, Platform, Probe
    from core.reference import KERNELS

    called = []

    def silu_and_mul(x):
        called.append("silu_and_mul")
        {body}

    class Chip(Platform):
        contract = (2, 0)
        name = "chip"
        device_type = "cpu"

        def probe(self):
            return Probe(available=True, reason="always there", devices=(Device(name="chip", torch_device="cpu"),))

        def capabilities(self, device):
            return Capabilities()

        def kernels(self, device):
            return {{
                "silu_and_mul": Implementation(function=silu_and_mul),
                "embedding": Implementation(function=KERNELS["embedding"].reference),
            }}
"""
RIGHT = "return KERNELS['silu_and_mul'].reference(x)"
WRONG = {
    "not a number": ("return KERNELS['silu_and_mul'].reference(x) * float('nan')", "nan"),
    "an error": ("raise OSError('the driver is asleep')", "the driver is asleep"),
    "another shape": ("return x", "shape"),
}

Make = Callable[[str], Platform]
DEVICE = Device(name="chip", torch_device="cpu")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A platform in a package of its own, whose kernel has this body; made again, as if it were a new process."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "chip_of_theirs"
    package.mkdir()

    def make(body: str) -> Platform:
        sys.modules.pop(package.name, None)
        source = textwrap.dedent(CHIP).format(body=body)
        if not (file := package / "__init__.py").exists() or file.read_text() != source:
            file.write_text(source)
        invalidate_caches()
        return import_module(package.name).Chip()

    yield make
    sys.modules.pop(package.name, None)


def calls(platform: Platform) -> int:
    return len(sys.modules[type(platform).__module__].called)


def found(platform: Platform) -> dict[str, str]:
    return distrusted(platform, DEVICE, "float32", platform.kernels(DEVICE))


@pytest.mark.parametrize("wrong", WRONG)
def test_a_kernel_that_is_wrong_is_left_out_with_its_reason(
    make: Make, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    body, expected = WRONG[wrong]
    platform, ledger = make(body), Ledger()
    with caplog.at_level(logging.WARNING):
        kernels = resolve_kernels(platform, DEVICE, "float32", ledger, tried=True)
    lines = {choice.what: choice for choice in ledger.choices}
    assert (lines["silu_and_mul"].provider, lines["embedding"].provider) == ("reference", "chip")
    (rejection,) = lines["silu_and_mul"].rejected
    assert rejection.reason.startswith("is wrong: ")
    assert expected in rejection.reason.lower()
    assert rejection.reason in caplog.text  # in the same words
    x = torch.randn(2, 8)
    assert torch.isfinite(kernels.silu_and_mul(x)).all()


def test_one_that_is_right_is_used_and_tried_only_once(make: Make) -> None:
    first = make(RIGHT)
    assert found(first) == {}
    assert calls(first) > 0
    second = make(RIGHT)
    assert found(second) == {}
    assert calls(second) == 0


def test_what_was_found_wrong_is_remembered_too(make: Make) -> None:
    before = found(make(WRONG["an error"][0]))
    again = make(WRONG["an error"][0])
    assert found(again) == before != {}
    assert calls(again) == 0


def test_a_mended_kernel_is_tried_again(make: Make) -> None:
    assert found(make(WRONG["not a number"][0])) != {}
    mended = make(RIGHT)
    assert found(mended) == {}
    assert calls(mended) > 0


@pytest.mark.parametrize("content", ["", "[]", '{"silu_and_mul": '])
def test_a_cache_that_makes_no_sense_is_as_good_as_none(make: Make, content: str) -> None:
    assert found(make(RIGHT)) == {}
    (path,) = (cache_dir() / "trials").iterdir()
    path.write_text(content)
    again = make(RIGHT)
    assert found(again) == {}
    assert calls(again) > 0


def test_without_a_cache_it_is_tried_each_time(make: Make, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    for _ in range(2):
        platform = make(RIGHT)
        assert found(platform) == {}
        assert calls(platform) > 0


def test_a_case_that_it_rejects_is_not_held_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cases are tried of those that it serves, however many it refuses before."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path))
    refused: list[KernelRequest] = []

    def only_layers_of(head_dim: int) -> Callable[[KernelRequest], str | None]:
        def rejects(request: KernelRequest) -> str | None:
            if any(spec.head_dim == head_dim for spec in request.attention):
                return None
            refused.append(request)
            return f"only heads of {head_dim}"

        return rejects

    dims = {
        case.cached.shape.head_dim for case in KERNELS["decoder_layer"].cases("float32", 0) if case.cached
    }
    platform, device = load_plugins().select_platform("simulated")
    for head_dim in (max(dims), -1):
        version = Implementation(function=broken, rejects=only_layers_of(head_dim))
        wrong = dict(_tried(platform, device, "float32", {"decoder_layer": version}))
        assert bool(wrong) == (head_dim in dims)
    assert refused


def broken(*given: object) -> object:
    raise OSError("the driver is asleep")


def test_those_that_come_with_the_core_are_not_tried() -> None:
    platform, device = load_plugins().select_platform("cpu")
    assert distrusted(platform, device, "float32", {"silu_and_mul": Implementation(function=broken)}) == {}
