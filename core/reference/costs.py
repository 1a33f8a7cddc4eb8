"""What the costs of kernels are counted from: stored bytes, and what a step's tokens see of the cache.

A cost is a lower bound that nobody can beat: what a kernel need not read is not counted, and neither are results that
only its own parts see.
"""

from dataclasses import dataclass

from torch import Tensor

from core.contracts.kernels import CachedSequences
from core.contracts.quantization import QuantizedWeight, Weight
from core.contracts.state import StateBatch

NORM_FLOPS = 4
"""Per element: squared, added to the sum, scaled, multiplied by the weight."""

LAYER_NORM_FLOPS = 7
"""Per element: added to the sum, less the mean, squared, added to the sum, scaled, weighted, shifted."""

ACTIVATION_FLOPS = 4
"""Per element, at least, of what is no mere comparison: an exponential, an addition, a division, a product."""

ROTARY_FLOPS = 3
"""Per element that is rotated: two products and their sum."""

GATE_FLOPS = 5
"""Per element of silu(gate) * up: negation, exponential, addition, division, product."""


def stored_bytes(*parts: Weight | None) -> int:
    """Bytes of tensors; of quantised weights, those that they are stored in. None has none."""
    held = (part.data if isinstance(part, QuantizedWeight) else part for part in parts)
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def state_bytes(states: Tensor, batch: StateBatch) -> int:
    """What the sequences of a step read and write of their states, [num_blocks, ...]."""
    size = states[0].numel() * states.element_size()
    return size * (int(batch.read_blocks.count_nonzero()) + len(batch.query_lens))


def product_flops(rows: int, weight: Weight) -> int:
    """Of rows with a weight [out, in]. Sums begin with the bias, which therefore costs nothing."""
    return 2 * rows * weight.shape[0] * weight.shape[1]


@dataclass(frozen=True, slots=True)
class Sight:
    """What the rows of a step that are asked for see.

    rows    how many are asked for
    cached  tokens cached before this step that any of them sees, of all sequences together
    pairs   of such a row and a token that it sees, itself included
    """

    rows: int
    cached: int
    pairs: int


def sight(sequences: CachedSequences) -> Sight:
    """Counted row by row: windows, and rows that nobody asks for, make it less than everything."""
    window, first, cached, pairs = sequences.shape.sliding_window, 0, 0, 0
    total = sum(new for new, _ in sequences.sequences)
    wanted = set(range(total) if sequences.rows is None else sequences.rows)
    for new, length in sequences.sequences:
        context = length - new
        positions = [context + i for i in range(new) if first + i in wanted]
        oldest = [0 if window is None else max(0, position - window + 1) for position in positions]
        pairs += sum(position + 1 - start for position, start in zip(positions, oldest, strict=True))
        cached += max(0, context - oldest[0]) if oldest else 0
        first += new
    return Sight(len(wanted), cached, pairs)
