"""The weights that a model builds itself from, one at a time, converted and moved on the way.

Everything wrong is collected and told at once: a checkpoint that lacks twenty weights costs one error.
"""

from collections import Counter
from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from core.contracts.quantization import QuantizedWeight, Weight, WeightFormat
from core.errors import BadCheckpoint
from core.weights.checkpoint import Checkpoint
from core.weights.formats import WeightFormats
from core.weights.quantize import quantize, stacked

_LISTED = 20


class CheckpointWeights:
    """Implements `core.contracts.model.Weights` for a checkpoint. Holds no weight itself.

    dtype         the model's, by torch name
    torch_device  where the weights go
    quantization  as `Settings` has it: "none", "stored", or a format that the core makes
    accepted      names of the formats of weights that the device takes
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str,
        torch_device: str,
        quantization: str = "none",
        accepted: frozenset[str] = frozenset(),
    ) -> None:
        self._checkpoint = checkpoint
        self._formats = WeightFormats(
            checkpoint=checkpoint, dtype=dtype, quantization=quantization, accepted=accepted
        )
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._device = torch.device(torch_device)
        self._names = checkpoint.names()
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._misshaped: list[str] = []
        self._tensors: WeakValueDictionary[str, Tensor] = WeakValueDictionary()
        self._counts: Counter[str] = Counter()

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this weight."""
        return name in self._names

    def take(self, name: str, *shape: int, dtype: str | None = None) -> Tensor:
        """The weight of this name, on the device, in the model's dtype unless another is named.

        One that is missing or misshaped is noted for `finish`, and stands in as undefined memory.
        """
        wanted = self._dtype if dtype is None else getattr(torch, dtype)
        if not self._find(name, shape):
            return torch.empty(shape, dtype=wanted, device=self._device)
        return self._read(name, wanted)

    def take_linear(self, names: Sequence[str], outputs: Sequence[int], inputs: int) -> Weight:
        """The weights of these names, [outputs[i], inputs] each, stacked along their outputs, on the device.

        A tensor in the model's dtype, or quantised: as the checkpoint stores them when all are stored alike and
        the device takes that, or in the format that was asked for. Missing ones are noted as in `take`.
        """
        shapes = [(count, inputs) for count in outputs]
        found = [self._find(name, shape) for name, shape in zip(names, shapes, strict=True)]
        if not all(found):
            return torch.empty(sum(outputs), inputs, dtype=self._dtype, device=self._device)
        format = self._formats.of(names)
        if format is None:
            tensors = [self._read(name, self._dtype) for name in names]
            return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        self._counts[f"as {format.name}"] += len(names)
        weight = stacked([self._quantized(name, format) for name in names])
        data = weight.data.to(self._device)
        return QuantizedWeight(format=format, data=data, shape=weight.shape)

    def finish(self) -> None:
        """Raises BadCheckpoint with everything missing, misshaped and left over, if anything is."""
        left = self._names - self._taken
        left_over = sorted(name for name in left if not self._checkpoint.is_optional(name))
        problems = [
            *_listing("missing", self._missing),
            *_listing("misshaped", self._misshaped),
            *_listing("left over", left_over),
        ]
        if problems:
            raise BadCheckpoint(
                "\n".join(
                    [f"{self._checkpoint.path} does not hold the weights its config describes:", *problems]
                )
            )

    def summary(self) -> str:
        """How many weights were taken in which format or dtype: "210 as q4_1, 61 in bfloat16"."""
        return ", ".join(f"{count} {held}" for held, count in self._counts.most_common())

    def _find(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether this weight is there as it should be; if not, that is noted."""
        if name not in self._names:
            self._missing.append(name)
            return False
        self._taken.add(name)
        found = self._checkpoint.shape(name)
        if found != shape:
            self._misshaped.append(f"{name} is {list(found)}, expected {list(shape)}")
        return found == shape

    def _read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor; the same one while whoever took it first still holds it, as with a tied head."""
        held = self._tensors.get(name)
        if held is not None and held.dtype == dtype:
            return held
        self._counts[f"in {str(dtype).removeprefix('torch.')}"] += 1
        tensor = self._checkpoint.read(name, dtype).to(self._device)
        self._tensors[name] = tensor
        return tensor

    def _quantized(self, name: str, format: WeightFormat) -> QuantizedWeight:
        if self._checkpoint.format(name) == format:
            return self._checkpoint.blocks(name)
        return quantize(self._checkpoint.read_float(name), format)


def _listing(kind: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return [f"  {len(items)} {kind}: {', '.join(items[:_LISTED])}{more}"]
