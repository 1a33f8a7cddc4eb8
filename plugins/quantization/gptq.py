"""GPTQ: weights in 4 or 8 bits, packed along their inputs, with a scale and a zero point for each group of inputs.

    X.qweight  [in * bits / 32, out]      int32
    X.qzeros   [groups, out * bits / 32]  int32
    X.scales   [groups, out]              a float dtype
    X.g_idx    [in]                       int32: the group of each input; with desc_act groups are not consecutive

A weight's element is  scale * (q - zero).  In the checkpoint_format "gptq" what is stored of a zero point is one less,
subtracted from each part of the word at once, so that it may borrow from its neighbour; "gptq_v2" stores it as it is.
Symmetric models have one zero point, the middle; programs disagree on which of the two formats they write it in, so
both are taken. Symmetric 4-bit weights in consecutive groups of 32, 64 or 128 are in the core's own int4 formats, but
for the order of their bytes.

Source: Frantar et al. 2023, and the documentation of the programs AutoGPTQ and GPTQModel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.contracts.packing import PackedWeight, Scheme, TensorHeader
from core.contracts.quantization import INT4, INT4_G64, INT4_G128, QuantizedWeight, WeightFormat
from core.errors import BadCheckpoint, ConfigError
from plugins.quantization.reading import FLOATS, biases, expect, group_size, layers, one_of, packed_along

if TYPE_CHECKING:
    from torch import Tensor

_FORMATS = {format.group: format for format in (INT4, INT4_G64, INT4_G128)}
_ONES = {4: 0x11111111, 8: 0x01010101}  # a one in each part of a word


def read(config: Mapping[str, Any]) -> Scheme:
    """quantization_config -> how to read its checkpoint. Raises ConfigError naming the key it cannot accept."""
    one_of(config, "pack_dtype", ("int32",), "int32")
    one_of(config, "is_marlin_format", (False,), False)
    overrides = config.get("dynamic") or {}
    if not isinstance(overrides, Mapping) or any(overrides.values()):
        raise ConfigError("dynamic gives some layers settings of their own, which cannot be read")
    return Gptq(
        bits=one_of(config, "bits", (4, 8)),
        group=group_size(config),
        symmetric=one_of(config, "sym", (True, False), True),
        reordered=one_of(config, "desc_act", (True, False), False),
        one_less=one_of(config, "checkpoint_format", ("gptq", "gptq_v2"), "gptq") == "gptq",
    )


@dataclass(frozen=True, kw_only=True)
class Gptq(Scheme):
    """bits, group, symmetric, reordered: as the config's bits, group_size, sym and desc_act.

    one_less  zero points are stored one less than they are
    """

    bits: int
    group: int | None
    symmetric: bool
    reordered: bool
    one_less: bool

    def weights(self, stored: Mapping[str, TensorHeader]) -> Mapping[str, PackedWeight]:
        return {f"{layer}.weight": self._weight(layer, stored) for layer in layers(stored)}

    def unpack(self, weight: PackedWeight, parts: "Mapping[str, Tensor]") -> "Tensor":
        from plugins.quantization.integers import integers, scaled

        values = integers(parts["qweight"].t(), self.bits)  # [out, in]
        scales = parts["scales"].t()  # [out, groups]
        return scaled(values, self._zeros(weight, parts), scales, self._groups(weight, parts))

    def blocks(self, weight: PackedWeight, parts: "Mapping[str, Tensor]") -> QuantizedWeight:
        import torch

        from plugins.quantization.integers import integers

        format, (outputs, inputs) = weight.format, weight.shape
        if format is None:
            return super().blocks(weight, parts)
        if self._groups(weight, parts) is not None:
            raise BadCheckpoint(
                f"{weight.parts['g_idx']} reorders the groups though desc_act is false; use quantization none"
            )
        self._zeros(weight, parts)
        values = integers(parts["qweight"].t(), self.bits).view(outputs, -1, format.group_of(inputs))
        low, high = values.chunk(2, dim=2)
        scales = parts["scales"].t().contiguous().unsqueeze(2).view(torch.uint8)  # [out, groups, 2]
        data = torch.cat((scales, low | high << 4), dim=2).view(outputs, -1)
        return QuantizedWeight(format=format, data=data, shape=weight.shape)

    def spare(self, stored: Mapping[str, TensorHeader]) -> frozenset[str]:
        return biases(stored)

    def _weight(self, layer: str, stored: Mapping[str, TensorHeader]) -> PackedWeight:
        inputs, outputs = packed_along(stored, f"{layer}.qweight", self.bits, dim=0)
        groups = -(-inputs // (self.group or inputs))
        words = outputs * self.bits // 32
        parts = {
            "qweight": f"{layer}.qweight",
            "qzeros": expect(stored, f"{layer}.qzeros", ("int32",), (groups, words)),
            "scales": expect(stored, f"{layer}.scales", FLOATS, (groups, outputs)),
        }
        if self.reordered or f"{layer}.g_idx" in stored:
            parts["g_idx"] = expect(stored, f"{layer}.g_idx", ("int32",), (inputs,))
        format = self._format(inputs, stored[f"{layer}.scales"].dtype)
        return PackedWeight(parts=parts, shape=(outputs, inputs), format=format)

    def _format(self, inputs: int, scale: str) -> WeightFormat | None:
        format = _FORMATS.get(self.group)
        exact = self.bits == 4 and self.symmetric and not self.reordered
        return format if exact and format and format.scale == scale and format.fits(inputs) else None

    def _zeros(self, weight: PackedWeight, parts: "Mapping[str, Tensor]") -> "Tensor":
        """[out, groups], uint8. Raises BadCheckpoint for a symmetric weight whose zero point is not in the middle."""
        import torch

        from plugins.quantization.integers import integers

        stored = parts["qzeros"]
        if not self.symmetric:
            return integers(stored + _ONES[self.bits] if self.one_less else stored, self.bits).t()
        middle = 1 << (self.bits - 1)
        found = integers(stored, self.bits).unique()
        if found.numel() and found.tolist() not in ([middle], [middle - 1]):
            raise BadCheckpoint(
                f"{weight.parts['qzeros']} has zero points beside {middle} though sym is true"
            )
        return torch.full((weight.shape[0], stored.shape[0]), middle, dtype=torch.uint8)

    def _groups(self, weight: PackedWeight, parts: "Mapping[str, Tensor]") -> "Tensor | None":
        """The group of each input: [in], int64; None where groups are consecutive and fill the rows."""
        import torch

        inputs, stored = weight.shape[1], parts.get("g_idx")
        size = self.group or inputs
        consecutive = torch.arange(inputs) // size
        # Some programs write zeros where groups are consecutive.
        if stored is None or not stored.any() or torch.equal(stored.to(torch.int64), consecutive):
            return consecutive if inputs % size else None
        (least, most), count = stored.aminmax(), parts["scales"].shape[0]
        if least < 0 or most >= count:
            raise BadCheckpoint(
                f"{weight.parts['g_idx']} names groups from {least} to {most}; there are {count}"
            )
        return stored.to(torch.int64)
