"""Quantization plugins: how they are found, and that one that is wrong ends in one error that names it.

The method of these tests, "rows8", stores X.weight_q in int8 [out, in] and X.weight_scale in float32 [out].
"""

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.contracts.packing import PackedWeight, Quantization, Scheme, TensorHeader
from core.contracts.quantization import INT4, INT8, QuantizedWeight, WeightFormat
from core.discovery import Plugins, collect, load_plugins
from core.errors import BadCheckpoint, ConfigError, ContractViolation, ModelError
from core.hookspecs import GROUP
from core.weights.checkpoint import Checkpoint, open_checkpoint
from core.weights.dequantize import dequantized
from core.weights.loader import CheckpointWeights

NAME = "layers.0.proj.weight"
OUTPUTS, INPUTS = 6, 32
STORED = {
    "layers.0.proj.weight_q": torch.arange(OUTPUTS * INPUTS).sub(96).to(torch.int8).view(OUTPUTS, INPUTS),
    "layers.0.proj.weight_scale": torch.linspace(0.5, 1.5, OUTPUTS),
    "layers.0.norm.weight": torch.linspace(-1, 1, INPUTS),
}
HELD = STORED["layers.0.proj.weight_q"].float() * STORED["layers.0.proj.weight_scale"][:, None]
PARTS = {"q": "layers.0.proj.weight_q", "scale": "layers.0.proj.weight_scale"}


class Rows8(Scheme):
    """As it should be."""

    def weights(self, stored: Mapping[str, TensorHeader]) -> Mapping[str, PackedWeight]:
        assert stored[PARTS["q"]] == TensorHeader(dtype="int8", shape=(OUTPUTS, INPUTS))
        return {NAME: PackedWeight(parts=PARTS, shape=(OUTPUTS, INPUTS), format=INT8)}

    def unpack(self, weight: PackedWeight, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return parts["q"].float() * parts["scale"][:, None]

    def blocks(self, weight: PackedWeight, parts: Mapping[str, torch.Tensor]) -> QuantizedWeight:
        scales = parts["scale"][:, None].contiguous().view(torch.uint8)
        data = torch.cat((scales, parts["q"].view(torch.uint8)), dim=1)
        return QuantizedWeight(format=INT8, data=data, shape=weight.shape)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_config(tmp_path, {"quant_method": "rows8"})
    save_file(STORED, tmp_path / "model.safetensors")
    return tmp_path


def write_config(folder: Path, quantization: Any) -> None:
    config = {"architectures": ["TinyForCausalLM"], "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))


def opened(folder: Path, scheme: Callable[[], Any] = Rows8, **others: Quantization) -> Checkpoint:
    rows8 = Quantization(name="rows8", read=lambda config: scheme())
    return open_checkpoint(folder, {}, {"rows8": rows8, **others})


class TestACheckpoint:
    def test_has_the_weights_that_its_tensors_make_and_the_tensors_that_make_none(self, folder: Path) -> None:
        checkpoint = opened(folder)
        assert checkpoint.names() == {NAME, "layers.0.norm.weight"}
        assert checkpoint.shape(NAME) == (OUTPUTS, INPUTS)
        assert checkpoint.quant_method == "rows8"
        assert torch.equal(checkpoint.read(NAME), HELD)
        assert torch.equal(checkpoint.read_float(NAME), HELD)
        assert torch.equal(checkpoint.read(NAME, torch.bfloat16), HELD.bfloat16())
        assert torch.equal(checkpoint.read("layers.0.norm.weight"), STORED["layers.0.norm.weight"])

    def test_gives_blocks_of_what_has_a_format_and_of_nothing_else(self, folder: Path) -> None:
        checkpoint = opened(folder)
        assert (checkpoint.format(NAME), checkpoint.format("layers.0.norm.weight")) == (INT8, None)
        assert torch.equal(dequantized(checkpoint.blocks(NAME), torch.float32), HELD)
        with pytest.raises(BadCheckpoint, match=r"norm\.weight is not stored in a declared format"):
            checkpoint.blocks("layers.0.norm.weight")

    def test_lays_out_rows_one_after_the_other_whatever_a_plugin_returns(self, folder: Path) -> None:
        class Turned(Rows8):
            def unpack(self, weight: PackedWeight, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
                return super().unpack(weight, parts).t().contiguous().t()

        found = opened(folder, Turned).read(NAME)
        assert found.is_contiguous() and torch.equal(found, HELD)

    def test_is_taken_by_the_loader_and_nothing_is_left_over(self, folder: Path) -> None:
        weights = CheckpointWeights(opened(folder), "float32", "cpu", "stored", frozenset({"int8"}))
        weights.take("layers.0.norm.weight", INPUTS)
        taken = weights.take_linear([NAME], [OUTPUTS], INPUTS)
        assert isinstance(taken, QuantizedWeight) and taken.format == INT8
        weights.finish()
        assert weights.summary() == "1 in float32, 1 as int8"

    def test_has_left_over_what_no_weight_and_no_layer_needs(self, folder: Path) -> None:
        save_file(STORED | {"layers.0.proj.order": torch.zeros(3)}, folder / "model.safetensors")
        weights = CheckpointWeights(opened(folder), "float32", "cpu")
        weights.take("layers.0.norm.weight", INPUTS)
        weights.take(NAME, OUTPUTS, INPUTS)
        with pytest.raises(BadCheckpoint, match=r"1 left over: layers\.0\.proj\.order$"):
            weights.finish()

    @pytest.mark.parametrize(("value", "optional"), [(0.0, True), (0.5, False), (float("nan"), False)])
    def test_may_have_tensors_to_spare_while_they_are_zero(
        self, folder: Path, value: float, optional: bool
    ) -> None:
        class Sparing(Rows8):
            def spare(self, stored: Mapping[str, TensorHeader]) -> frozenset[str]:
                return frozenset({"layers.0.proj.bias", "layers.9.proj.bias"})

        bias = torch.tensor([0.0, value])
        save_file(STORED | {"layers.0.proj.bias": bias}, folder / "model.safetensors")
        assert opened(folder, Sparing).is_optional("layers.0.proj.bias") is optional
        assert not opened(folder).is_optional("layers.0.proj.bias")


class TestTheMethod:
    def test_one_that_no_plugin_reads_is_told_the_closest_and_all_there_are(self, folder: Path) -> None:
        write_config(folder, {"quant_method": "Rows-8"})
        awq = Quantization(name="awq", read=lambda config: Rows8())
        with pytest.raises(
            ModelError,
            match=r"quantised \(Rows-8\), which no plugin reads; closest: rows8; read: awq, rows8\. Use",
        ):
            opened(folder, awq=awq)
        with pytest.raises(
            ModelError, match=r"which no plugin reads; read: none\. Use the unquantised model"
        ):
            open_checkpoint(folder, {})

    @pytest.mark.parametrize("given", ["gptq", ["gptq"], {"bits": 4}, {"quant_method": 4}])
    def test_a_config_that_names_none_is_damaged(self, folder: Path, given: Any) -> None:
        write_config(folder, given)
        with pytest.raises(BadCheckpoint, match=r'quantization_config .*; expected "quant_method" in it'):
            opened(folder)

    def test_what_a_plugin_cannot_accept_is_the_models_fault_and_named(self, folder: Path) -> None:
        def refuse() -> Any:
            raise ConfigError("bits is 3; 8 is accepted")

        with pytest.raises(
            ModelError, match=r"quantization_config of config\.json: bits is 3; 8 is accepted"
        ):
            opened(folder, refuse)

    def test_a_plugin_is_asked_for_its_own_method_with_the_whole_config(self, folder: Path) -> None:
        seen: list[Any] = []

        def read(config: Mapping[str, Any]) -> Scheme:
            seen.append(config)
            return Rows8()

        write_config(folder, {"quant_method": "rows8", "bits": 8})
        open_checkpoint(folder, {}, {"rows8": Quantization(name="rows8", read=read)})
        assert seen == [{"quant_method": "rows8", "bits": 8}]


def raising(error: Exception) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any) -> Any:
        raise error

    return method


def returning(value: Any) -> Callable[..., Any]:
    return lambda self, *arguments: value


def saying(parts: Any = PARTS, shape: Any = (OUTPUTS, INPUTS), format: Any = None, name: Any = NAME) -> Any:
    return returning({name: PackedWeight(parts=parts, shape=shape, format=format)})


def zeros(outputs: int, inputs: int, format: WeightFormat = INT8) -> QuantizedWeight:
    data = torch.zeros(outputs, format.bytes_per_row(inputs), dtype=torch.uint8)
    return QuantizedWeight(format=format, data=data, shape=(outputs, inputs))


OPENING: Mapping[str, tuple[str, Callable[..., Any], str]] = {
    "raises": ("weights", raising(KeyError("scale")), r"weights\(\) raised KeyError: 'scale'"),
    "nothing": ("weights", returning(None), r"weights\(\) raised TypeError"),
    "no weight": (
        "weights",
        returning({NAME: PARTS}),
        r"weights\(\) says of 'layers.* a PackedWeight are expected",
    ),
    "no name": ("weights", saying(name=3), r"weights\(\) says of 3 PackedWeight\("),
    "unknown part": ("weights", saying(parts={"q": "elsewhere"}), r"that its parts are \{'q': 'elsewhere'\}"),
    "no part": (
        "weights",
        saying(parts={}),
        r"that its parts are \{\}; names of stored tensors are expected",
    ),
    "no shape": ("weights", saying(shape=None), r"that its shape is None; \(out, in\) is expected"),
    "three sizes": ("weights", saying(shape=(1, 2, 3)), r"that its shape is \(1, 2, 3\)"),
    "empty": ("weights", saying(shape=(0, 32)), r"that its shape is \(0, 32\)"),
    "clash": (
        "weights",
        saying(name="layers.0.norm.weight"),
        r"it is packed, and a tensor of this name is stored",
    ),
    "made-up format": (
        "weights",
        saying(format=WeightFormat(name="int3", bits=4, group=32)),
        r"rows of 32 are in WeightFormat\(name='int3'",
    ),
    "format that does not fit": (
        "weights",
        saying(shape=(OUTPUTS, 33), format=INT4),
        r"that rows of 33 are in .*'int4'.*; a declared format that fits them is expected",
    ),
    "spare": ("spare", raising(RuntimeError("no")), r"spare\(\) raised RuntimeError: no"),
}
READING: Mapping[str, tuple[str, Callable[..., Any], str]] = {
    "raises": ("unpack", raising(RuntimeError("no")), rf"unpack\(\) of {NAME} raised RuntimeError: no"),
    "not a tensor": (
        "unpack",
        returning([1.0]),
        rf"unpack\(\) of {NAME} returned a list; a tensor \[6, 32\]",
    ),
    "turned": (
        "unpack",
        returning(torch.zeros(32, 6)),
        r"returned \[32, 6\] in float32 on cpu; a tensor \[6, 32\]",
    ),
    "half": ("unpack", returning(torch.zeros(6, 32).half()), r"\[6, 32\] in float16 on cpu; .* in float32"),
    "elsewhere": (
        "unpack",
        returning(torch.zeros(6, 32, device="meta")),
        r"on meta; .*on cpu is expected",
    ),
}
BLOCKS: Mapping[str, tuple[str, Callable[..., Any], str]] = {
    "raises": ("blocks", raising(ValueError("no")), rf"blocks\(\) of {NAME} raised ValueError: no"),
    "a tensor": (
        "blocks",
        returning(torch.zeros(6, 32)),
        r"returned a Tensor; \[6, 32\] in int8 is expected",
    ),
    "another shape": ("blocks", returning(zeros(6, 31)), r"returned \[6, 31\] in int8; \[6, 32\] in int8"),
    "another format": (
        "blocks",
        returning(zeros(6, 32, INT4)),
        r"returned \[6, 32\] in int4; \[6, 32\] in int8",
    ),
}


def broken(method: str, member: Callable[..., Any]) -> type[Scheme]:
    """Rows8 with one method replaced, under the parameters that the contract has."""
    if method in ("weights", "spare"):
        return type("Broken", (Rows8,), {method: lambda self, stored: member(self, stored)})
    return type("Broken", (Rows8,), {method: lambda self, weight, parts: member(self, weight, parts)})


class TestAWrongPlugin:
    @pytest.mark.parametrize("case", OPENING)
    def test_that_describes_no_weights_is_named_when_the_model_is_opened(
        self, folder: Path, case: str
    ) -> None:
        method, member, said = OPENING[case]
        with pytest.raises(ContractViolation, match=rf"the plugin for quant_method rows8: .*{said}"):
            opened(folder, broken(method, member))

    @pytest.mark.parametrize("case", READING)
    def test_that_makes_no_tensor_is_named_with_the_weight(self, folder: Path, case: str) -> None:
        method, member, said = READING[case]
        checkpoint = opened(folder, broken(method, member))
        with pytest.raises(ContractViolation, match=rf"the plugin for quant_method rows8: .*{said}"):
            checkpoint.read(NAME, torch.bfloat16)

    @pytest.mark.parametrize("case", BLOCKS)
    def test_that_makes_no_blocks_too(self, folder: Path, case: str) -> None:
        method, member, said = BLOCKS[case]
        checkpoint = opened(folder, broken(method, member))
        with pytest.raises(ContractViolation, match=rf"the plugin for quant_method rows8: .*{said}"):
            checkpoint.blocks(NAME)

    def test_that_promises_blocks_and_has_none_is_named_by_its_class(self, folder: Path) -> None:
        checkpoint = opened(folder, broken("blocks", Scheme.blocks))
        with pytest.raises(ContractViolation, match="Broken gives no weight in a declared format"):
            checkpoint.blocks(NAME)

    @pytest.mark.parametrize("call", ["weights", "unpack", "blocks"])
    def test_what_it_says_of_damaged_tensors_is_the_checkpoints_fault(self, folder: Path, call: str) -> None:
        damage = raising(BadCheckpoint("layers.0.proj.weight_scale is empty"))
        with pytest.raises(
            BadCheckpoint, match=r", quantised by rows8: layers\.0\.proj\.weight_scale is empty"
        ):
            checkpoint = opened(folder, broken(call, damage))
            checkpoint.read(NAME)
            checkpoint.blocks(NAME)

    @pytest.mark.parametrize(
        ("scheme", "said"),
        [
            (lambda: None, r"read\(\) returned a NoneType; a Scheme is expected"),
            (lambda: 1 / 0, r"read\(\) raised ZeroDivisionError"),
            (
                type("Odd", (Rows8,), {"unpak": lambda self: None}),
                r"read\(\) returned a Odd: unpak\(\) is not part of the contract, did you mean unpack\?",
            ),
            (
                type("Old", (Rows8,), {"unpack": lambda self, weight: None}),
                r"read\(\) returned a Old: unpack\(weight\) should be unpack\(weight, parts\)",
            ),
        ],
    )
    def test_that_reads_a_config_into_no_scheme_is_told_what_is_wrong(
        self, folder: Path, scheme: Callable[[], Any], said: str
    ) -> None:
        with pytest.raises(ContractViolation, match=rf"the plugin for quant_method rows8: {said}"):
            opened(folder, scheme)


GOOD = """
    from core import hookimpl
    from core.contracts.packing import Quantization

    def read(config):
        raise NotImplementedError

    @hookimpl
    def core_quantizations():
        return [{declared}]
"""
DECLARED = 'Quantization(name="rows8", read=read, contract=(1, 0))'


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Plugins]]:
    """load(name=declaration, ...): what the plugins of these names bring."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(**declared: str) -> Plugins:
        for name, text in declared.items():
            source = textwrap.dedent(GOOD).replace("{declared}", text)
            (tmp_path / f"rows8_{name}.py").write_text(source)
        return collect(EntryPoint(name, f"rows8_{name}", GROUP) for name in declared)

    yield load
    for module in [name for name in sys.modules if name.startswith("rows8_")]:
        del sys.modules[module]


class TestBeingFound:
    def test_ours_come_through_the_same_door(self) -> None:
        assert {"gptq", "awq"} <= load_plugins().quantizations.keys()

    def test_a_plugin_brings_one(self, load: Callable[..., Plugins]) -> None:
        plugins = load(one=DECLARED)
        assert plugins.failures == ()
        assert [*plugins.quantizations] == ["rows8"]

    @pytest.mark.parametrize(
        ("declared", "said"),
        [
            ("read", r"is not a core\.contracts\.packing\.Quantization"),
            (
                DECLARED.replace("(1, 0)", "(7, 0)"),
                r"written for quantization contract 7\.0; this core takes 1\.0",
            ),
            (
                DECLARED.replace("(1, 0)", "None"),
                r"contract is not set; this core keeps quantization contract 1\.0",
            ),
            (DECLARED.replace('"rows8"', "8"), r"its name is 8; a text is expected"),
            ('Quantization(name="rows8")', r"TypeError: .*missing 1 required keyword-only argument: 'read'"),
        ],
    )
    def test_one_that_is_wrong_is_left_out_with_its_reason(
        self, load: Callable[..., Plugins], declared: str, said: str
    ) -> None:
        plugins = load(one=declared)
        (failure,) = plugins.failures
        assert failure.plugin == "one" and plugins.quantizations == {}
        assert failure.reason.startswith("its quantization: ")
        assert re.search(said, failure.reason)

    def test_a_method_belongs_to_the_plugin_that_came_first(self, load: Callable[..., Plugins]) -> None:
        plugins = load(one=DECLARED, two=DECLARED)
        (failure,) = plugins.failures
        assert (failure.plugin, failure.reason) == (
            "two",
            "its quantization: 'rows8' is already taken by one",
        )
        assert plugins.quantizations["rows8"].read.__module__ == "rows8_one"
