"""Layers that keep a state of each sequence: what one step asks of them, as a ragged batch.

Tokens of all sequences of a step lie flattened behind each other, as for attention. A state is kept in a block like
keys and values are, one in each block: that of the sequence after the newest of the block's tokens that ended a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBatch:
    """What one step asks of the layers of a recurrent cache group.

    query_lens    per sequence, how many new tokens; decodes first
    query_start   [num_seqs + 1], int32, on the device: offsets into the flattened tokens; what follows them is padding
    read_blocks   [num_seqs], int64, on the device: where the state before its new tokens is; 0: it has none yet, and
                  begins with zeros
    write_blocks  [num_seqs], int64, on the device: where the state after them goes, which may be the same block

    Sequences may read the same block; one that is written belongs to its sequence alone.
    """

    query_lens: tuple[int, ...]
    query_start: "Tensor"
    read_blocks: "Tensor"
    write_blocks: "Tensor"

    def runs(self) -> Iterator[tuple[slice, slice, int]]:
        """Neighbours with equally many new tokens: (their sequences, their rows, tokens of each)."""
        first = row = 0
        for count, same in groupby(self.query_lens):
            last = first + len(list(same))
            end = row + (last - first) * count
            yield slice(first, last), slice(row, end), count
            first, row = last, end

    def states_before(self, states: "Tensor", sequences: slice) -> "Tensor":
        """What these sequences begin with, [num_seqs, ...], out of states [num_blocks, ...]."""
        blocks = self.read_blocks[sequences]
        return states[blocks].masked_fill((blocks == 0).view(-1, *[1] * (states.dim() - 1)), 0)
