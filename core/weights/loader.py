"""The weights that a model builds itself from, one at a time, converted and moved on the way.

Everything wrong is collected and told at once: a checkpoint that lacks twenty weights costs one error.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
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
        self._as_tensor = _in(self._dtype)

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this weight."""
        return self._checkpoint.has(name)

    def leave(self, prefix: str) -> None:
        """Have no use for the weights whose names begin so, should there be any."""
        self._taken.update(name for name in self._names if name.startswith(prefix))

    def take(self, name: str, *shape: int, dtype: str | None = None) -> Tensor:
        """The weight of this name, on the device, in the model's dtype unless another is named.

        One that is missing or misshaped is noted for `finish`, and stands in as undefined memory.
        """
        wanted = self._dtype if dtype is None else getattr(torch, dtype)
        if not self._find(name, shape, _without_ones(shape)):
            return torch.empty(shape, dtype=wanted, device=self._device)
        tensor = self._read(name, wanted)
        return tensor if tensor.shape == shape else tensor.view(shape)

    def take_linear(
        self,
        names: Sequence[str],
        outputs: Sequence[int],
        inputs: int,
        *,
        rows: Sequence[int] | None = None,
        transposed: bool = False,
        part: tuple[int, int] | None = None,
    ) -> Weight:
        """The weights of these names, [outputs[i], inputs] each, stacked along their outputs, on the device.

        rows        of the stack that are wanted, in this order; None: all, as they are
        transposed  the checkpoint holds them as [inputs, outputs[i]]
        part        (number, count): it holds so many behind one another under each name, and this one is wanted

        A tensor in the model's dtype, or quantised: as the checkpoint stores them when all are stored alike and
        the device takes that, or in the format that was asked for. Missing ones are noted as in `take`.
        """
        shapes = [(inputs, count) if transposed else (count, inputs) for count in outputs]
        found = [self._find(name, *_stored(shape, part)) for name, shape in zip(names, shapes, strict=True)]
        if not all(found):
            size = sum(outputs) if rows is None else len(rows)
            return torch.empty(size, inputs, dtype=self._dtype, device=self._device)
        format = self._formats.of(names, transposed=transposed)
        if format is None:
            tensors = [self._linear(name, transposed, part) for name in names]
            weight = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            return weight.contiguous() if rows is None else weight[list(rows)]
        self._counts[f"as {format.name}"] += len(names)
        quantized = stacked([self._quantized(name, format, transposed, part) for name in names])
        data = quantized.data if rows is None else quantized.data[list(rows)]
        return QuantizedWeight(format=format, data=data.to(self._device), shape=(len(data), inputs))

    def take_all(self, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Every weight that anybody may want, by its name: on the CPU, as it is stored, mapped from its file.

        expected  shapes, for a checkpoint that is made up; others may hold what is expected under other names

        For a model whose weights somebody else puts together. It then calls `account`.
        """
        for name, shape in expected.items():
            self._checkpoint.find(name, shape)
        names = self._checkpoint.names()
        wanted = sorted(name for name in names if not self._checkpoint.is_optional(name))
        self._taken.update(wanted)
        return {name: self._checkpoint.read(name) for name in wanted}

    def as_linear(self, weight: Tensor) -> Weight:
        """A weight [out, in] in the model's dtype, in the form in which the user wants those of linear layers held."""
        outputs, inputs = weight.shape
        format = self._formats.made(outputs, inputs)
        self._counts[self._as_tensor if format is None else f"as {format.name}"] += 1
        if format is None:
            return weight
        made = quantize(weight.cpu(), format)
        return QuantizedWeight(format=format, data=made.data.to(self._device), shape=made.shape)

    def finish(self) -> None:
        """Raises BadCheckpoint with everything missing, misshaped and left over, if anything is."""
        left = self._names - self._taken
        left_over = sorted(name for name in left if not self._checkpoint.is_optional(name))
        self.account(missing=self._missing, misshaped=self._misshaped, left_over=left_over)

    def account(self, *, missing: Sequence[str], misshaped: Sequence[str], left_over: Sequence[str]) -> None:
        """What came of `take_all`. Raises the BadCheckpoint that lists it, if there is anything to list."""
        problems = [
            *_listing("missing", missing),
            *_listing("misshaped", misshaped),
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

    def _find(self, name: str, *shapes: tuple[int, ...]) -> bool:
        """Whether this weight is there in one of these shapes; if not, that is noted."""
        found = self._checkpoint.find(name, shapes[0])
        if found is None:
            self._missing += (
                [name] if name not in self._missing else []
            )  # experts are taken from it one by one
            return False
        self._taken.add(name)
        if found not in shapes:
            problem = f"{name} is {list(found)}, expected {list(shapes[0])}"
            self._misshaped += [problem] if problem not in self._misshaped else []
        return found in shapes

    def _read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor; the same one while whoever took it first still holds it, as with a tied head."""
        held = self._tensors.get(name)
        if held is not None and held.dtype == dtype:
            return held
        self._counts[_in(dtype)] += 1
        tensor = self._checkpoint.read(name, dtype).to(self._device)
        self._tensors[name] = tensor
        return tensor

    def _linear(self, name: str, transposed: bool, part: tuple[int, int] | None) -> Tensor:
        """[out, in] in the model's dtype, on the device, maybe a view."""
        if part is None:
            tensor = self._read(name, self._dtype)
            return tensor.t() if transposed else tensor
        self._counts[self._as_tensor] += 1
        return self._float(name, transposed, part).to(self._device, self._dtype)

    def _quantized(
        self, name: str, format: WeightFormat, transposed: bool, part: tuple[int, int] | None
    ) -> QuantizedWeight:
        if part is None and self._checkpoint.format(name) == format:
            return self._checkpoint.blocks(name)
        return quantize(self._float(name, transposed, part), format)

    def _float(self, name: str, transposed: bool, part: tuple[int, int] | None) -> Tensor:
        """[out, in] as it is stored."""
        tensor = self._checkpoint.read_float(name)
        if part is not None:
            number, count = part
            tensor = tensor.reshape(count, -1, tensor.shape[-1])[number]
        return tensor.t() if transposed else tensor


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as GGUF has it, whose converter leaves out dimensions of one."""
    return tuple(size for size in shape if size != 1)


def _stored(shape: tuple[int, int], part: tuple[int, int] | None) -> list[tuple[int, ...]]:
    """The shapes in which a checkpoint may hold a weight, or so many of them."""
    if part is None:
        return [shape]
    rows, width = shape
    return [(part[1], rows, width), (part[1] * rows, width)]


def _in(dtype: torch.dtype) -> str:
    return f"in {str(dtype).removeprefix('torch.')}"


def _listing(kind: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return [f"  {len(items)} {kind}: {', '.join(items[:_LISTED])}{more}"]
