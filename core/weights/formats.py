"""Which format each weight is held in: what was asked for, what the checkpoint holds, what the device takes.

The loader follows it, and the budget counts with it before anything is loaded. Knows shapes and names and reads
no weight.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.contracts.quantization import INT8, MADE, WeightFormat
from core.weights.checkpoint import Checkpoint

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class WeightFormats:
    """The formats of one checkpoint's weights on one device.

    dtype         the model's
    quantization  as `Settings` has it: "none", "stored", or a format that the core makes
    accepted      names of the formats that the device takes
    """

    checkpoint: Checkpoint
    dtype: str
    quantization: str = "none"
    accepted: frozenset[str] = frozenset()

    def of(self, names: Sequence[str], *, transposed: bool = False) -> WeightFormat | None:
        """The format of these weights [out, in], stacked along their outputs; None: a tensor in the dtype.

        transposed  the checkpoint holds them as [in, out]
        """
        if self.quantization == "none":
            return None
        if self.quantization == "stored":
            found = {self.checkpoint.format(name) for name in names}
            common = found.pop() if len(found) == 1 else None
            return common if common is not None and common.name in self.accepted and not transposed else None
        *_, first, second = self.checkpoint.shape(names[0])
        return self.made(second, first) if transposed else self.made(first, second)

    def made(self, outputs: int, inputs: int) -> WeightFormat | None:
        """The format that the core makes of a tensor of this shape; None: it stays one."""
        if self.quantization in ("none", "stored"):
            return None
        return next((made for made in self._preferred(outputs) if made.fits(inputs)), None)

    def weight_bytes(self) -> int:
        """Bytes of all weights once they are held. Assumes that weights which are stacked share a format."""
        wanted = (name for name in self.checkpoint.names() if not self.checkpoint.is_optional(name))
        return sum(self._bytes(name) for name in wanted)

    def _preferred(self, outputs: int) -> list[WeightFormat]:
        """What was asked for, then what comes closest where its groups do not fill the rows: smaller groups, int8.

        The head decides between tokens that are nearly as likely as one another, so 4 bits stay away from it.
        """
        asked = MADE[self.quantization]
        smaller = [
            made for made in MADE.values() if made.bits == asked.bits and _group(made) <= _group(asked)
        ]
        smaller.sort(key=_group, reverse=True)
        preferred = [INT8] if outputs == self.checkpoint.config.get("vocab_size") else []
        return [made for made in [*preferred, *smaller, INT8] if made.name in self.accepted]

    def _bytes(self, name: str) -> int:
        shape = self.checkpoint.shape(name)
        as_tensor = _DTYPE_BYTES[self.dtype] * math.prod(shape)
        format = self.of([name]) if len(shape) in (2, 3) else None  # three: experts behind one another
        if format is None:
            return as_tensor
        quantized = math.prod(shape[:-1]) * format.bytes_per_row(shape[-1])
        config = self.checkpoint.config
        if name == "lm_head.weight" or shape[0] != config.get("vocab_size"):
            return quantized
        # A table that tokens are looked up in; a tied head is the same weight once more.
        return as_tensor + (quantized if config.get("tie_word_embeddings") else 0)


def _group(format: WeightFormat) -> int:
    return format.group or 0
