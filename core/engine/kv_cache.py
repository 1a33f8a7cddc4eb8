"""Block tables: which blocks hold the tokens of which sequence, per cache group.

Prefixes are found through a chain of SHA-256 hashes over (parent, tokens), rooted in a random number of this
process and the request's salt, so that nobody outside can forge or probe one. It counts; it never touches a tensor.
"""

import hashlib
import os
from array import array
from collections.abc import Sequence as Items

from core.contracts.runner import CacheGroup
from core.engine.block_pool import BlockPool
from core.engine.request import Sequence


def blocks_needed(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def first_needed(group: CacheGroup, num_computed: int, block_size: int) -> int:
    """Index of the first block that tokens from `num_computed` on still look at."""
    if group.window is None:
        return 0
    return max(0, num_computed - group.window + 1) // block_size


class KVCache:
    """The block tables of all sequences, in every cache group alike."""

    def __init__(
        self, groups: Items[CacheGroup], num_blocks: Items[int], block_size: int, prefix_caching: bool
    ) -> None:
        self.groups = tuple(groups)
        self.pools = tuple(BlockPool(count) for count in num_blocks)
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.recurrent = any(group.recurrent for group in self.groups)
        self._root = os.urandom(32)
        self._copies: tuple[list[tuple[int, int]], ...] = tuple([] for _ in self.groups)

    @property
    def usage(self) -> float:
        """Share of blocks that have an owner, in the fullest group."""
        return max(1 - pool.num_free / pool.usable for pool in self.pools)

    def match_prefix(self, sequence: Sequence) -> int:
        """Give a waiting sequence the cached blocks of its longest known prefix; returns its tokens.

        The last token is never taken from the cache: its logits are the first thing we sample from.
        """
        if not self.prefix_caching:
            return 0
        self._hash(sequence)
        length = (len(sequence.token_ids) - 1) // self.block_size
        shorter = min(self._longest(g, sequence.hashes, length) for g in range(len(self.groups)))
        while shorter < length:
            length = shorter
            shorter = min(self._longest(g, sequence.hashes, length) for g in range(len(self.groups)))
        self._adopt(sequence, length)
        sequence.num_computed = length * self.block_size
        sequence.registered = length
        return sequence.num_computed

    def extend(self, sequence: Sequence, num_tokens: int) -> bool:
        """Own blocks for the first `num_tokens` tokens. False, with nothing changed, when too few are free.

        Blocks that are full by then become findable at once: whoever shares them in the same step reads
        after they are written. A recurrent group owns the last of them alone, for the state that the step ends in.
        """
        total = blocks_needed(num_tokens, self.block_size)
        missing = [max(0, total - len(table)) for table in sequence.blocks]
        passed = [
            max(0, count - 1) if g.recurrent else 0 for count, g in zip(missing, self.groups, strict=True)
        ]
        wanted = [count - skipped for count, skipped in zip(missing, passed, strict=True)]
        if any(count > pool.num_free for count, pool in zip(wanted, self.pools, strict=True)):
            return False
        for g, pool in enumerate(self.pools):
            sequence.blocks[g].extend([*[0] * passed[g], *pool.allocate(wanted[g])])
        self._register(sequence, num_tokens // self.block_size)
        return True

    def chunk(self, sequence: Sequence, most: int) -> int:
        """How many of a sequence's pending tokens to compute next, `most` at most.

        A state can be found again where a step ended at the end of a block: prompts are computed up to such places,
        and last of all to the latest from which another sequence that begins alike could go on.
        """
        end = sequence.num_computed + min(sequence.num_pending, most)
        if self.recurrent and self.prefix_caching:
            aligned = min(end, len(sequence.token_ids) - 1) // self.block_size * self.block_size
            end = aligned if aligned > sequence.num_computed else end
        return end - sequence.num_computed

    def fork(self, parent: Sequence, child: Sequence) -> bool:
        """Share the parent's computed prompt with a child, all but its last token, which the child computes.

        A partly filled block is copied. False, with nothing changed, when the parent no longer holds
        the prompt, has not computed it again yet, or no block is free for the copy; and of a state, which is past
        that token and cannot go back.
        """
        if self.recurrent:
            return False
        num_tokens = child.num_prompt - 1
        full, partial = divmod(num_tokens, self.block_size)
        count = full + (1 if partial else 0)
        if parent.num_computed < num_tokens:
            return False
        for group, pool, table in zip(self.groups, self.pools, parent.blocks, strict=True):
            first = first_needed(group, num_tokens, self.block_size)
            if (partial and pool.num_free < 1) or len(table) < count or not all(table[first:count]):
                return False
        for g, (pool, table) in enumerate(zip(self.pools, parent.blocks, strict=True)):
            first = first_needed(self.groups[g], num_tokens, self.block_size)
            mine = child.blocks[g]
            mine.extend([0] * min(first, full))
            for block in table[first:full]:
                pool.share(block)
                mine.append(block)
            if partial:
                copy = pool.allocate(1)[0]
                self._copies[g].append((table[full], copy))
                mine.append(copy)
        child.num_computed = num_tokens
        child.registered = full
        return True

    def advance(self, sequence: Sequence, num_tokens: int) -> None:
        """This many more tokens are computed: what a window has left behind is released, and the state that the step
        ended in becomes findable, if it did so at the end of a block. Of the answer only the newest state stays so.
        """
        before = sequence.num_computed
        sequence.num_computed += num_tokens
        for group, pool, table in zip(self.groups, self.pools, sequence.blocks, strict=True):
            if group.window is None:
                continue
            first, end = (first_needed(group, n, self.block_size) for n in (before, sequence.num_computed))
            if group.recurrent:
                self._register_state(sequence, pool, table)
            pool.release(table[first:end])
            table[first:end] = array("i", [0] * (end - first))

    def release(self, sequence: Sequence, *, trusted: bool = True) -> None:
        """Own nothing any more. What was not computed becomes unfindable; all of it, whoever holds it now, if it is
        not `trusted`.
        """
        keep = sequence.num_computed // self.block_size
        for pool, table in zip(self.pools, sequence.blocks, strict=True):
            if trusted:
                pool.forget(table[keep:])
            else:
                pool.unregister(sequence.hashes)
            pool.release(table)
            del table[:]
        sequence.num_computed = sequence.registered = 0

    def take_discarded(self) -> tuple[tuple[int, ...], ...]:
        """Per group, blocks whose contents died since the last call."""
        return tuple(pool.take_discarded() for pool in self.pools)

    def take_copies(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Per group, block copies that forks asked for since the last call."""
        copies = tuple(tuple(pairs) for pairs in self._copies)
        for pairs in self._copies:
            pairs.clear()
        return copies

    def _longest(self, g: int, hashes: list[bytes], limit: int) -> int:
        """Longest prefix, in blocks up to `limit`, of which the group still has every block it would read."""
        group, pool = self.groups[g], self.pools[g]
        if group.window is None:
            return next((i for i in range(limit) if pool.find(hashes[i]) is None), limit)
        length, found = limit, 0
        for i in range(limit - 1, -1, -1):
            if length - found <= first_needed(group, length * self.block_size, self.block_size):
                break
            if pool.find(hashes[i]) is None:
                length, found = i, 0
            else:
                found += 1
        return length

    def _adopt(self, sequence: Sequence, length: int) -> None:
        for group, pool, table in zip(self.groups, self.pools, sequence.blocks, strict=True):
            first = first_needed(group, length * self.block_size, self.block_size)
            table.extend([0] * first)
            for key in sequence.hashes[first:length]:
                block = pool.find(key)
                assert block is not None
                pool.share(block)
                table.append(block)

    def _hash(self, sequence: Sequence) -> None:
        """Extend the sequence's chain of hashes over all its full blocks."""
        hashes, size = sequence.hashes, self.block_size
        parent = (
            hashes[-1]
            if hashes
            else hashlib.sha256(self._root + sequence.request.cache_salt.encode()).digest()
        )
        for start in range(len(hashes) * size, len(sequence.token_ids) - size + 1, size):
            tokens = array("q", sequence.token_ids[start : start + size]).tobytes()
            parent = hashlib.sha256(parent + tokens).digest()
            hashes.append(parent)

    def _register(self, sequence: Sequence, num_full: int) -> None:
        if not self.prefix_caching or num_full <= sequence.registered:
            return
        self._hash(sequence)
        for group, pool, table in zip(self.groups, self.pools, sequence.blocks, strict=True):
            if group.recurrent:  # what a block holds of these depends on where steps end: see `advance`
                continue
            for i in range(sequence.registered, num_full):
                if table[i]:
                    pool.register(table[i], sequence.hashes[i])
        sequence.registered = num_full

    def _register_state(self, sequence: Sequence, pool: BlockPool, table: "array[int]") -> None:
        num_full, rest = divmod(sequence.num_computed, self.block_size)
        if not self.prefix_caching or rest:
            return
        self._hash(sequence)
        pool.register(table[num_full - 1], sequence.hashes[num_full - 1])
        if (num_full - 1) * self.block_size > sequence.num_prompt:
            pool.unregister(sequence.hashes[num_full - 2 : num_full - 1])
