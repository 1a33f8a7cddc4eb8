"""How a quantisation method packs weights into the tensors of a checkpoint: what a quantization plugin brings.

A model that was quantised before it was published has other tensors than its architecture asks for: packed numbers,
scales, zero points. `quantization_config` in its config.json names the method. A plugin that reads the method says
which weights the tensors make, and makes them. Nothing here is about computing with them: what is in one of the
formats of `quantization.py` goes to kernels as it is, everything else becomes a tensor.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.contracts.quantization import QuantizedWeight, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader:
    """What a checkpoint says of a tensor before it is read. dtype: its torch name."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """A weight, and the tensors that it is packed into.

    parts   role, a name of the scheme's own -> name of the stored tensor
    shape   (out, in)
    format  the declared format that `Scheme.blocks` gives it in, number for number; None: it has only `Scheme.unpack`
    """

    parts: Mapping[str, str]
    shape: tuple[int, int]
    format: WeightFormat | None = None


class Scheme(ABC):
    """One checkpoint's way of packing, as its quantization_config describes it.

    Files are not to be believed: every method raises BadCheckpoint, in words, for tensors that do not fit together.
    """

    @abstractmethod
    def weights(self, stored: Mapping[str, TensorHeader]) -> Mapping[str, PackedWeight]:
        """The weights that are packed, by the names an architecture asks for. Reads none.

        stored  every tensor of the checkpoint; those that are no part of any weight are read as they are
        """

    @abstractmethod
    def unpack(self, weight: PackedWeight, parts: "Mapping[str, Tensor]") -> "Tensor":
        """A weight as a tensor [out, in] in float32, on the CPU. The caller owns it.

        parts  by role, as they are stored, on the CPU; read-only, they may be a mapped file
        """

    def blocks(self, weight: PackedWeight, parts: "Mapping[str, Tensor]") -> QuantizedWeight:
        """A weight that has a `format`, in it: its elements are those that `unpack` gives."""
        raise NotImplementedError(f"{type(self).__name__} gives no weight in a declared format")

    def spare(self, stored: Mapping[str, TensorHeader]) -> frozenset[str]:
        """Tensors that nobody has to take while all of their elements are zero.

        Some programs write a bias for every layer, whether or not the model has one.
        """
        return frozenset()


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """One `quant_method` that checkpoints are quantised by. Imports nothing heavy until a weight is read.

    read      quantization_config -> Scheme; raises ConfigError naming the key it cannot accept
    contract  (major, minor) of the quantization contract that it was written for
    """

    name: str
    read: Callable[[Mapping[str, Any]], Scheme]
    contract: tuple[int, int] = (1, 0)
