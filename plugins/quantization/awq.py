"""AWQ: weights in 4 bits, packed along their outputs, with a scale and a zero point for each group of inputs.

    X.qweight  [in, out / 8]      int32
    X.qzeros   [groups, out / 8]  int32
    X.scales   [groups, out]      a float dtype

A weight's element is  scale * (q - zero).  The eight numbers of a word are those of eight consecutive outputs, from the
lowest bits up in the order 0, 2, 4, 6, 1, 3, 5, 7. This is the version "gemm"; the others have tensors of other shapes.
A zero point of its own for each group fits none of the core's formats exactly, so weights are unpacked.

Source: Lin et al. 2023, and the documentation of the program AutoAWQ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.contracts.packing import PackedWeight, Scheme, TensorHeader
from core.errors import BadCheckpoint
from plugins.quantization.reading import FLOATS, biases, expect, group_size, layers, one_of, packed_along

if TYPE_CHECKING:
    from torch import Tensor

BITS = 4
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where in a word each of eight outputs lies


def read(config: Mapping[str, Any]) -> Scheme:
    """quantization_config -> how to read its checkpoint. Raises ConfigError naming the key it cannot accept."""
    one_of(config, "bits", (BITS,))
    one_of(config, "version", ("gemm", "GEMM"), "gemm")
    one_of(config, "zero_point", (True,), True)
    return Awq(group=group_size(config))


@dataclass(frozen=True, kw_only=True)
class Awq(Scheme):
    """group: inputs that share a scale; None: all of a row."""

    group: int | None

    def weights(self, stored: Mapping[str, TensorHeader]) -> Mapping[str, PackedWeight]:
        return {f"{layer}.weight": self._weight(layer, stored) for layer in layers(stored)}

    def unpack(self, weight: PackedWeight, parts: "Mapping[str, Tensor]") -> "Tensor":
        from plugins.quantization.integers import scaled

        values, zeros = (_in_order(parts[role]).t() for role in ("qweight", "qzeros"))
        return scaled(values, zeros, parts["scales"].t())

    def spare(self, stored: Mapping[str, TensorHeader]) -> frozenset[str]:
        return biases(stored)

    def _weight(self, layer: str, stored: Mapping[str, TensorHeader]) -> PackedWeight:
        inputs, outputs = packed_along(stored, f"{layer}.qweight", BITS, dim=1)
        group = self.group or inputs
        if inputs % group:
            raise BadCheckpoint(f"{layer}.qweight has {inputs} inputs, which groups of {group} do not fill")
        parts = {
            "qweight": f"{layer}.qweight",
            "qzeros": expect(stored, f"{layer}.qzeros", ("int32",), (inputs // group, outputs // 8)),
            "scales": expect(stored, f"{layer}.scales", FLOATS, (inputs // group, outputs)),
        }
        return PackedWeight(parts=parts, shape=(outputs, inputs))


def _in_order(packed: "Tensor") -> "Tensor":
    """[n, out / 8] int32 -> [n, out] uint8, outputs in their order."""
    from plugins.quantization.integers import integers

    words = integers(packed, BITS).view(len(packed), -1, len(_PLACES))
    return words[:, :, _PLACES].flatten(1)
