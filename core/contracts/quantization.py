"""Quantised weights: how they are stored, and the formats that exist.

A format is declared once, here. Checkpoints hold weights in it or the core makes them at load; kernels that can
multiply it as it is say so in `Capabilities.weight_formats`. What no platform takes is unpacked before a kernel
sees it. This module describes bytes and touches no tensor.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """How a row of a weight [out, in] is stored: groups one after the other, each its scale, then its values.

    bits     of a value q: 8 (signed) or 4 (unsigned, two to a byte)
    group    consecutive inputs that share a scale; None: the whole row
    minimum  the scale is followed by a minimum of the same type
    scale    torch name of the dtype of scale and minimum, little-endian

    Of a group's 4-bit values, byte j holds element j in its low half and element j + group / 2 in its high half.
    A weight's element is  scale * q  with 8 bits,  scale * (q - 8)  with 4,  scale * q + minimum  with a minimum.
    """

    name: str
    bits: int
    group: int | None
    minimum: bool = False
    scale: str = "float16"

    @property
    def header_bytes(self) -> int:
        """Bytes of a group's scale and minimum."""
        return (2 if self.minimum else 1) * (4 if self.scale == "float32" else 2)

    def group_of(self, inputs: int) -> int:
        """Inputs that share a scale, in a row of so many."""
        return self.group or inputs

    def fits(self, inputs: int) -> bool:
        """Whether groups fill a row of so many inputs."""
        return inputs > 0 and inputs % self.group_of(inputs) == 0

    def bytes_per_row(self, inputs: int) -> int:
        """Bytes of one row that groups fill."""
        group = self.group_of(inputs)
        return inputs // group * (self.header_bytes + group * self.bits // 8)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class QuantizedWeight:
    """A weight [out, in] in its stored form.

    data   [out, format.bytes_per_row(in)], uint8, contiguous, on the device; read-only, it may be a mapped file
    shape  (out, in)
    """

    format: WeightFormat
    data: "Tensor"
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        outputs, inputs = self.shape
        assert self.format.fits(inputs), f"{self.format.name} cannot hold rows of {inputs}"
        assert tuple(self.data.shape) == (outputs, self.format.bytes_per_row(inputs))
        assert self.data.is_contiguous()


Weight: TypeAlias = Union["Tensor", QuantizedWeight]
"""What `linear` and the kernels made of it take: a tensor [out, in] in the model's dtype, or a quantised one."""

# GGUF's blocks, byte for byte.
Q4_0 = WeightFormat(name="q4_0", bits=4, group=32)
Q4_1 = WeightFormat(name="q4_1", bits=4, group=32, minimum=True)
Q8_0 = WeightFormat(name="q8_0", bits=8, group=32)
# Made at load, symmetric around zero; q of int8 is never -128.
INT8 = WeightFormat(name="int8", bits=8, group=None, scale="float32")
INT4 = WeightFormat(name="int4", bits=4, group=32)
INT4_G64 = WeightFormat(name="int4-g64", bits=4, group=64)
INT4_G128 = WeightFormat(name="int4-g128", bits=4, group=128)

STORED = {known.name: known for known in (Q4_0, Q4_1, Q8_0)}
MADE = {known.name: known for known in (INT8, INT4, INT4_G64, INT4_G128)}
FORMATS = STORED | MADE
"""Every format by name: those that checkpoints hold, and those that the core makes of any weight."""
