"""Who serves what, and what the ledger says about it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.contracts.attention import Attention, AttentionSpec
from core.contracts.communication import Communication, Group
from core.contracts.execution import Execution
from core.contracts.kernels import Implementation, KernelRequest
from core.contracts.memory import Memory
from core.contracts.platform import Capabilities, Device, Platform, Probe
from core.errors import ContractViolation, UnsupportedShape
from core.execution import dispatch
from core.ledger import Choice, Ledger, Rejection
from core.reference import KERNELS
from core.reference.attention import ReferenceAttention
from core.reference.communication import AloneCommunication
from core.reference.execution import EagerExecution
from core.reference.memory import HostMemory

DEVICE = Device(name="bench", torch_device="cpu")
SPEC = AttentionSpec(
    num_heads=4, num_kv_heads=2, head_dim=64, scale=0.125, sliding_window=None, dtype="float32", block_size=16
)


def silu_and_mul(x: Tensor) -> Tensor:
    return KERNELS["silu_and_mul"].reference(x)


def no_halves(request: KernelRequest) -> str | None:
    return "has no float16 units" if request.dtype == "float16" else None


class Bench(Platform):
    """A platform of whatever a test gives it."""

    contract = (2, 0)
    name = "bench"
    device_type = "cpu"

    def __init__(
        self,
        kernels: Mapping[str, Any] | None = None,
        attention: Any = None,
        others: Any = None,
        **capabilities: Any,
    ) -> None:
        self._kernels, self._attention, self._others = kernels or {}, attention, others
        self._capabilities = Capabilities(**capabilities)

    def probe(self) -> Probe:
        return Probe(available=True, reason="", devices=(DEVICE,))

    def capabilities(self, device: Device) -> Capabilities:
        return self._capabilities

    def kernels(self, device: Device) -> Mapping[str, Implementation]:
        return self._kernels

    def attention(self, spec: AttentionSpec, device: Device) -> Attention | None:
        if isinstance(self._attention, Exception):
            raise self._attention
        return self._attention

    def memory(self, device: Device) -> Memory | None:
        return self._others

    def execution(self, device: Device) -> Execution | None:
        return self._others

    def communication(self, group: Group, device: Device) -> Communication | None:
        return self._others


def line(ledger: Ledger, what: str) -> Choice:
    (choice,) = [choice for choice in ledger.choices if choice.what == what]
    return choice


def test_kernels_come_from_the_platform_where_it_has_them_and_from_the_reference_elsewhere() -> None:
    ledger = Ledger()
    bench = Bench({"silu_and_mul": Implementation(function=silu_and_mul)})

    kernels = dispatch.resolve_kernels(bench, DEVICE, "float32", ledger)

    assert kernels.silu_and_mul is silu_and_mul
    assert kernels.embedding is KERNELS["embedding"].reference
    assert line(ledger, "silu_and_mul") == Choice(what="silu_and_mul", provider="bench")
    reason = Rejection(provider="bench", reason="has no version of its own")
    assert line(ledger, "embedding") == Choice(what="embedding", provider="reference", rejected=(reason,))
    assert [choice.what for choice in ledger.choices] == list(KERNELS)


def test_a_version_that_rejects_the_dtype_is_not_taken_and_the_ledger_says_why() -> None:
    bench = Bench({"silu_and_mul": Implementation(function=silu_and_mul, rejects=no_halves)})
    half, single = Ledger(), Ledger()

    assert dispatch.resolve_kernels(bench, DEVICE, "float16", half).silu_and_mul is not silu_and_mul
    assert dispatch.resolve_kernels(bench, DEVICE, "float32", single).silu_and_mul is silu_and_mul
    assert line(half, "silu_and_mul").provider == "reference"
    assert line(half, "silu_and_mul").rejected == (
        Rejection(provider="bench", reason="has no float16 units"),
    )


def test_a_coarse_kernel_the_platform_lacks_is_composed_of_what_serves_the_finer_ones() -> None:
    ledger = Ledger()
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return silu_and_mul(x)

    kernels = dispatch.resolve_kernels(
        Bench({"silu_and_mul": Implementation(function=counted)}), DEVICE, "float32", ledger
    )
    kernels.gated_mlp(torch.zeros(8, 4), torch.zeros(4, 4))(torch.zeros(3, 4))

    assert calls == [3]
    assert line(ledger, "gated_mlp").provider == "composed"
    assert line(ledger, "gated_mlp").detail == "of linear (reference), silu_and_mul (bench)"


def test_a_coarse_kernel_the_platform_has_is_preferred() -> None:
    def gated_mlp(gate_up_weight: Tensor, down_weight: Tensor) -> Any:
        return lambda x: x

    ledger = Ledger()
    kernels = dispatch.resolve_kernels(
        Bench({"gated_mlp": Implementation(function=gated_mlp)}), DEVICE, "float32", ledger
    )

    assert kernels.gated_mlp is gated_mlp
    assert line(ledger, "gated_mlp") == Choice(what="gated_mlp", provider="bench")


def test_kernels_nobody_declared_are_refused_all_at_once_with_the_closest_names() -> None:
    offered = {"rms_nrm": Implementation(function=silu_and_mul), "warp": None, "linear": silu_and_mul}

    with pytest.raises(ContractViolation) as refusal:
        dispatch.resolve_kernels(Bench(offered), DEVICE, "float32", Ledger())

    assert "platform bench" in str(refusal.value)
    assert "rms_nrm is not a declared kernel; did you mean rms_norm?" in str(refusal.value)
    assert "warp is not a declared kernel; declared: embedding, linear" in str(refusal.value)
    assert "linear is a function; expected core.contracts.kernels.Implementation" in str(refusal.value)


def test_attention_comes_from_the_platform_and_the_ledger_describes_the_layer() -> None:
    own, ledger = ReferenceAttention(SPEC), Ledger()

    assert dispatch.resolve_attention(Bench(attention=own), DEVICE, SPEC, ledger) is own
    assert line(ledger, "attention").provider == "bench"
    assert line(ledger, "attention").detail == "4 heads of 64, 2 for keys and values, full"


@pytest.mark.parametrize(
    ("attention", "reason"),
    [(None, "has none of its own"), (UnsupportedShape("scale must be 1"), "scale must be 1")],
)
def test_attention_the_platform_does_not_serve_falls_back_with_its_reason(
    attention: Any, reason: str
) -> None:
    ledger, spec = Ledger(), replace(SPEC, sliding_window=128)

    resolved = dispatch.resolve_attention(Bench(attention=attention), DEVICE, spec, ledger)

    assert isinstance(resolved, ReferenceAttention)
    assert line(ledger, "attention").provider == "reference"
    assert line(ledger, "attention").detail.endswith("window 128")
    assert line(ledger, "attention").rejected == (Rejection(provider="bench", reason=reason),)


@pytest.mark.parametrize(
    ("capabilities", "change", "message"),
    [
        ({"head_dims": (80, 128)}, {}, "head_dim is 64; platform bench accepts 80, 128"),
        (
            {"features": frozenset[str]()},
            {"sliding_window": 9},
            "a sliding window of 9 tokens; platform bench",
        ),
        ({"block_sizes": (24, 12)}, {}, "block_size is 16; platform bench accepts 24, 12"),
    ],
)
def test_a_spec_outside_the_manifest_is_refused_before_anyone_is_asked(
    capabilities: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    bench = Bench(attention=ReferenceAttention(SPEC), **capabilities)

    with pytest.raises(UnsupportedShape, match=message):
        dispatch.resolve_attention(bench, DEVICE, replace(SPEC, **change), Ledger())


def test_a_platform_without_more_gets_host_memory_eager_execution_and_no_peers() -> None:
    ledger, bare = Ledger(), Bench()

    assert isinstance(dispatch.resolve_memory(bare, DEVICE, ledger), HostMemory)
    assert isinstance(dispatch.resolve_execution(bare, DEVICE, ledger), EagerExecution)
    assert isinstance(
        dispatch.resolve_communication(bare, Group(rank=0, size=1), DEVICE, ledger), AloneCommunication
    )
    assert [choice.what for choice in ledger.choices] == ["memory", "execution", "communication"]
    assert {choice.provider for choice in ledger.choices} == {"reference"}


def test_what_a_platform_brings_is_taken() -> None:
    ledger, own = Ledger(), HostMemory("cpu")

    assert dispatch.resolve_memory(Bench(others=own), DEVICE, ledger) is own
    assert line(ledger, "memory") == Choice(what="memory", provider="bench")


def test_a_factory_that_returns_something_else_breaks_the_contract() -> None:
    with pytest.raises(
        ContractViolation,
        match=r"memory\(\) returned a str: None or a subclass of core\.contracts\.memory\.Memory is exp",
    ):
        dispatch.resolve_memory(Bench(others="RAM"), DEVICE, Ledger())
    with pytest.raises(ContractViolation, match=r"attention\(\) returned a ABCMeta"):
        dispatch.resolve_attention(Bench(attention=ReferenceAttention), DEVICE, SPEC, Ledger())


@pytest.mark.parametrize("offered", [None, ["linear"], {"silu_and_mul"}])
def test_kernels_that_are_no_mapping_break_the_contract(offered: Any) -> None:
    bench = Bench()
    bench._kernels = offered
    with pytest.raises(ContractViolation, match=r"kernels\(\) returned a \w+: Implementations by name"):
        dispatch.resolve_kernels(bench, DEVICE, "float32", Ledger())


def test_a_kernel_that_cannot_say_whether_it_serves_is_left_out_with_its_reason() -> None:
    def asleep(request: KernelRequest) -> str | None:
        raise OSError("the driver is asleep")

    ledger, version = Ledger(), Implementation(function=silu_and_mul, rejects=asleep)
    dispatch.resolve_kernels(Bench({"silu_and_mul": version}), DEVICE, "float32", ledger)
    (rejection,) = line(ledger, "silu_and_mul").rejected
    assert "OSError: the driver is asleep" in rejection.reason
