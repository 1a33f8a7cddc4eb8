"""Checkpoints whose weights a plugin unpacks: safetensors, quantised by a method that config.json names.

To everybody else they look like any other: names, shapes and weights are those that the architecture asks for. What the
plugin says is checked before it is believed, and every error names its method.
"""

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from core.contracts.packing import PackedWeight, Quantization, Scheme, TensorHeader
from core.contracts.quantization import FORMATS, QuantizedWeight, WeightFormat
from core.contracts.validation import object_problems
from core.errors import BadCheckpoint, ConfigError, ContractViolation, ModelError
from core.examination import reason_of
from core.weights.checkpoint import Checkpoint
from core.weights.safetensors import SafetensorsCheckpoint

if TYPE_CHECKING:
    import torch


class PackedCheckpoint(Checkpoint):
    """A folder in Hugging Face's layout, seen through a quantization plugin.

    Raises ModelError for a quantization_config that the plugin refuses, BadCheckpoint for tensors that do not fit it,
    ContractViolation for a plugin that breaks its contract; so do `read` and `blocks`.
    """

    def __init__(self, stored: SafetensorsCheckpoint, quantization: Quantization) -> None:
        self.path, self.config = stored.path, stored.config
        self.generation_config = stored.generation_config
        self.quant_method = quantization.name
        self._stored = stored
        self._scheme = self._read_config(quantization)
        self._packed, self._spare = self._contents()
        parts = {part for weight in self._packed.values() for part in weight.parts.values()}
        self._names = (stored.names() - parts) | self._packed.keys()

    def names(self) -> frozenset[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._packed[name].shape if name in self._packed else self._stored.shape(name)

    def read(self, name: str, dtype: "torch.dtype | None" = None) -> "torch.Tensor":
        if name not in self._packed:
            return self._stored.read(name, dtype)
        import torch

        weight = self._packed[name]
        parts = self._parts(weight)
        with self._asking(f"unpack() of {name}"):
            tensor: Any = self._scheme.unpack(weight, parts)
        where = next(iter(parts.values())).device
        wanted = f"a tensor {list(weight.shape)} in float32 on {where} is expected"
        if not isinstance(tensor, torch.Tensor):
            raise self._violation(f"unpack() of {name} returned a {type(tensor).__name__}; {wanted}")
        if (tuple(tensor.shape), tensor.dtype, tensor.device) != (weight.shape, torch.float32, where):
            found = f"{list(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
            raise self._violation(f"unpack() of {name} returned {found}; {wanted}")
        return tensor.to(dtype or torch.float32).contiguous()

    def read_float(self, name: str) -> "torch.Tensor":
        return self.read(name) if name in self._packed else self._stored.read_float(name)

    def format(self, name: str) -> WeightFormat | None:
        return self._packed[name].format if name in self._packed else None

    def blocks(self, name: str) -> QuantizedWeight:
        format = self.format(name)
        if format is None:
            return super().blocks(name)
        weight = self._packed[name]
        with self._asking(f"blocks() of {name}"):
            given: Any = self._scheme.blocks(weight, self._parts(weight))
        if not isinstance(given, QuantizedWeight) or (given.format, given.shape) != (format, weight.shape):
            found = f"a {type(given).__name__}"
            if isinstance(given, QuantizedWeight):
                found = f"{list(given.shape)} in {given.format.name}"
            wanted = f"{list(weight.shape)} in {format.name}"
            raise self._violation(f"blocks() of {name} returned {found}; {wanted} is expected")
        return given

    def packing(self) -> str:
        formats = (weight.format for weight in self._packed.values())
        counts = Counter("in no declared format" if each is None else f"as {each.name}" for each in formats)
        listed = [f"{count} {held}" for held, count in counts.most_common()]
        return ", ".join([f"{len(self._packed)} weights", *listed])

    def is_optional(self, name: str) -> bool:
        return super().is_optional(name) or (name in self._spare and not self._stored.read(name).any())

    def _read_config(self, quantization: Quantization) -> Scheme:
        try:
            with self._asking("read()", ConfigError):
                scheme: Any = quantization.read(self.config["quantization_config"])
        except ConfigError as error:
            raise ModelError(f"{self.path}: quantization_config of config.json: {error}") from error
        if not isinstance(scheme, Scheme):
            raise self._violation(f"read() returned a {type(scheme).__name__}; a Scheme is expected")
        if problems := object_problems(scheme, Scheme, quantization.contract):
            raise self._violation(f"read() returned a {type(scheme).__name__}: {'; '.join(problems)}")
        return scheme

    def _contents(self) -> tuple[dict[str, PackedWeight], frozenset[str]]:
        """The weights that are packed, and the tensors that nobody has to take while they are zero."""
        stored = self._stored
        headers = {
            name: TensorHeader(dtype=stored.dtype(name), shape=stored.shape(name)) for name in stored.names()
        }
        with self._asking("weights()"):
            packed = dict[Any, Any](self._scheme.weights(headers))
        for name, weight in packed.items():
            if problem := _problem(name, weight, headers):
                raise self._violation(f"weights() says of {name!r:.100} {problem}")
        with self._asking("spare()"):
            return packed, frozenset(self._scheme.spare(headers)) & headers.keys()

    def _parts(self, weight: PackedWeight) -> "dict[str, torch.Tensor]":
        return {role: self._stored.read(name) for role, name in weight.parts.items()}

    @contextmanager
    def _asking(self, call: str, *passed: type[Exception]) -> Generator[None]:
        """What a plugin raises becomes one error that names its method. passed: what is left as it is"""
        try:
            yield
        except passed:
            raise
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{self.path}, quantised by {self.quant_method}: {error}") from error
        except Exception as error:  # a plugin's code: it may raise anything
            raise self._violation(f"{call} raised {reason_of(error)}") from error

    def _violation(self, what: str) -> ContractViolation:
        return ContractViolation(f"{self.path}: the plugin for quant_method {self.quant_method}: {what}")


def _problem(name: Any, weight: Any, stored: Mapping[str, TensorHeader]) -> str | None:
    """What cannot be in what a plugin says of a weight."""
    if not isinstance(name, str) or not isinstance(weight, PackedWeight):
        return f"{weight!r:.200}; a name and a PackedWeight are expected"
    shape: Any = weight.shape
    match shape:
        case (int(outputs), int(inputs)) if outputs > 0 and inputs > 0:
            pass
        case _:
            return f"that its shape is {shape!r}; (out, in) is expected"
    unknown = [part for part in weight.parts.values() if part not in stored]
    if unknown or not weight.parts:
        return f"that its parts are {dict(weight.parts)!r:.200}; names of stored tensors are expected"
    if name in stored and name not in weight.parts.values():
        return "that it is packed, and a tensor of this name is stored, too"
    format = weight.format
    if format is not None and (FORMATS.get(format.name) != format or not format.fits(inputs)):
        return f"that rows of {inputs} are in {format!r:.200}; a declared format that fits them is expected"
    return None
