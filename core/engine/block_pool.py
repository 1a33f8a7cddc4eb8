"""Block accounting for the KV cache.

A block holds the keys and values of `block_size` consecutive tokens. This module decides which ids are free,
how many owners each has, and which may be found again by the hash of what they hold. It counts; it never
touches a tensor. Block 0 belongs to nobody.
"""

from collections import OrderedDict
from collections.abc import Iterable


class BlockPool:
    """The blocks of one cache group.

    A block without an owner stays findable by its hash until it is given to somebody else; blocks are
    given away oldest first, those nobody can find before those somebody might.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._owners = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict((block, None) for block in range(1, num_blocks))
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._discarded: list[int] = []

    @property
    def num_free(self) -> int:
        """Blocks without an owner, findable ones included."""
        return len(self._free)

    @property
    def usable(self) -> int:
        """Blocks that can have an owner."""
        return self.num_blocks - 1

    def owners(self, block: int) -> int:
        return self._owners[block]

    def allocate(self, count: int) -> list[int]:
        """Take blocks nobody owns; what they held is forgotten. The caller has checked `num_free`."""
        assert count <= len(self._free)
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            if self._forget(block):
                self._discarded.append(block)
            self._owners[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """Become one more owner of a block found by its hash or held by a sibling."""
        if self._owners[block] == 0:
            del self._free[block]
        self._owners[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Stop owning blocks, given in token order; later ones are given away first."""
        for block in reversed([b for b in blocks if b]):
            self._owners[block] -= 1
            assert self._owners[block] >= 0
            if self._owners[block] == 0:
                self._free[block] = None
                if block not in self._hash_of:
                    self._free.move_to_end(block, last=False)
                    self._discarded.append(block)

    def register(self, block: int, key: bytes) -> None:
        """Make a block findable. The first block of a key keeps it."""
        if key not in self._block_of and block not in self._hash_of:
            self._block_of[key] = block
            self._hash_of[block] = key

    def forget(self, blocks: Iterable[int]) -> None:
        """Make blocks unfindable, because what they hold is not what their hash says."""
        for block in blocks:
            if self._forget(block) and self._owners[block] == 0:
                self._free.move_to_end(block, last=False)
                self._discarded.append(block)

    def unregister(self, keys: Iterable[bytes]) -> None:
        """Make unfindable what holds these, whichever blocks they are."""
        self.forget([block for key in keys if (block := self.find(key)) is not None])

    def find(self, key: bytes) -> int | None:
        return self._block_of.get(key)

    def take_discarded(self) -> tuple[int, ...]:
        """Blocks whose contents died since the last call."""
        discarded, self._discarded = tuple(self._discarded), []
        return discarded

    def _forget(self, block: int) -> bool:
        key = self._hash_of.pop(block, None)
        if key is not None:
            del self._block_of[key]
        return key is not None
