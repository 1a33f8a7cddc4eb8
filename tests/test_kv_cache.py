"""Which blocks belong to whom, which can be found again, and in which order they are given away."""

from collections.abc import Sequence as Items

import pytest
from engine_model import FULL, window

from core.contracts.runner import CacheGroup
from core.engine.block_pool import BlockPool
from core.engine.kv_cache import KVCache, blocks_needed, first_needed
from core.engine.request import Request, Sequence, SequenceLimits, sequences_of
from core.sampling_params import SamplingParams

SIZE = 4
LIMITS = SequenceLimits(max_model_len=1000, eos_token_ids=frozenset())


def make_cache(*groups: CacheGroup, num_blocks: int = 16, prefix_caching: bool = True) -> KVCache:
    """A cache whose every group has `num_blocks` usable blocks of four tokens."""
    groups = groups or (FULL,)
    return KVCache(groups, [num_blocks + 1] * len(groups), SIZE, prefix_caching)


def make_sequence(token_ids: Items[int], *, salt: str = "", num_groups: int = 1, n: int = 1) -> Sequence:
    return make_sequences(token_ids, salt=salt, num_groups=num_groups, n=1)[0]


def make_sequences(
    token_ids: Items[int], *, salt: str = "", num_groups: int = 1, n: int = 2
) -> list[Sequence]:
    request = Request(
        request_id="r", prompt_token_ids=list(token_ids), params=SamplingParams(n=n), cache_salt=salt
    )
    return sequences_of(request, 0, 0, LIMITS, num_groups)


def compute(cache: KVCache, sequence: Sequence) -> Sequence:
    """As the scheduler does: find a prefix, own blocks for the rest, compute it."""
    cache.match_prefix(sequence)
    assert cache.extend(sequence, len(sequence.token_ids))
    cache.advance(sequence, sequence.num_pending)
    return sequence


def remember(cache: KVCache, token_ids: Items[int], *, salt: str = "") -> None:
    """Compute a sequence and let it end."""
    cache.release(compute(cache, make_sequence(token_ids, salt=salt, num_groups=len(cache.groups))))


def found(cache: KVCache, token_ids: Items[int], *, salt: str = "") -> int:
    """How many leading tokens are in the cache, without keeping them."""
    sequence = make_sequence(token_ids, salt=salt, num_groups=len(cache.groups))
    count = cache.match_prefix(sequence)
    cache.release(sequence)
    return count


def test_blocks_are_counted_by_what_they_hold() -> None:
    assert [blocks_needed(n, 4) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    assert [first_needed(FULL, n, 4) for n in (0, 100)] == [0, 0]
    # With a window of 6, the token at position 9 sees 4 to 9; the one at 10 sees 5 to 10.
    assert [first_needed(window(6), n, 4) for n in (0, 5, 8, 9, 12, 13)] == [0, 0, 0, 1, 1, 2]


class TestOwning:
    def test_blocks_are_taken_as_tokens_need_them(self) -> None:
        cache, sequence = make_cache(), make_sequence(range(10))
        for num_tokens, blocks in ((1, 1), (4, 1), (5, 2), (10, 3), (3, 3)):
            assert cache.extend(sequence, num_tokens)
            assert len(sequence.blocks[0]) == blocks
        assert len(set(sequence.blocks[0])) == 3 and 0 not in sequence.blocks[0]

    def test_too_few_free_blocks_change_nothing(self) -> None:
        cache = make_cache(num_blocks=2)
        sequence = make_sequence(range(12))
        assert cache.extend(sequence, 4)
        held, free = list(sequence.blocks[0]), cache.pools[0].num_free
        assert not cache.extend(sequence, 12)
        assert (list(sequence.blocks[0]), cache.pools[0].num_free) == (held, free)
        assert cache.extend(sequence, 8)

    def test_one_full_group_refuses_for_all(self) -> None:
        cache = KVCache((FULL, window(6)), [10, 2], SIZE, True)
        sequence = make_sequence(range(8), num_groups=2)
        assert not cache.extend(sequence, 8)
        assert [len(table) for table in sequence.blocks] == [0, 0]
        assert [pool.num_free for pool in cache.pools] == [9, 1]

    def test_what_is_given_back_is_free_and_usage_follows(self) -> None:
        cache = make_cache(num_blocks=4)
        sequence = compute(cache, make_sequence(range(6)))
        assert cache.usage == 0.5
        cache.release(sequence)
        assert cache.usage == 0.0
        assert [len(table) for table in sequence.blocks] == [0] and sequence.num_computed == 0

    def test_the_fullest_group_is_the_usage(self) -> None:
        cache = KVCache((FULL, window(6)), [5, 9], SIZE, True)
        compute(cache, make_sequence(range(8), num_groups=2))
        assert cache.usage == 0.5


class TestPrefixes:
    def test_whole_blocks_that_begin_alike_are_found(self) -> None:
        cache = make_cache()
        remember(cache, range(14))
        assert found(cache, range(20)) == 12
        assert found(cache, [*range(9), 99, 99, 99, 99]) == 8
        assert found(cache, [99, *range(1, 14)]) == 0

    def test_the_last_token_is_never_found(self) -> None:
        cache = make_cache()
        remember(cache, range(16))
        assert [found(cache, range(n)) for n in (1, 4, 5, 8, 9, 15, 16, 17)] == [0, 0, 4, 4, 8, 12, 12, 16]

    def test_the_same_tokens_after_others_are_something_else(self) -> None:
        cache = make_cache()
        remember(cache, [1, 1, 1, 1, 2, 2, 2, 2, 0])
        assert found(cache, [2, 2, 2, 2, 1, 1, 1, 1, 0]) == 0
        remember(cache, [3, 3, 3, 3, 2, 2, 2, 2, 0])
        assert found(cache, [2, 2, 2, 2, 0]) == 0

    def test_token_ids_are_not_confused_by_their_spelling(self) -> None:
        cache = make_cache()
        remember(cache, [1, 11, 1, 1, 0])
        for other in ([11, 1, 1, 1, 0], [1, 1, 11, 1, 0], [1, 11, 11, 0, 0], [257, 11, 1, 1, 0]):
            assert found(cache, other) == 0

    def test_another_salt_finds_nothing(self) -> None:
        cache = make_cache()
        remember(cache, range(9), salt="a")
        assert [found(cache, range(9), salt=salt) for salt in ("a", "b", "", "aa")] == [8, 0, 0, 0]

    def test_hashes_of_one_cache_say_nothing_of_anothers(self) -> None:
        hashes = []
        for cache in (make_cache(), make_cache()):
            hashes.append(compute(cache, make_sequence(range(9))).hashes)
        assert not {*hashes[0]} & {*hashes[1]}
        assert all(len(key) == 32 for key in hashes[0])

    def test_a_running_sequence_shares_what_it_has(self) -> None:
        cache = make_cache()
        first = compute(cache, make_sequence(range(10)))
        second = compute(cache, make_sequence(range(9)))
        assert list(second.blocks[0][:2]) == list(first.blocks[0][:2])
        assert [cache.pools[0].owners(block) for block in first.blocks[0]] == [2, 2, 1]
        cache.release(first)
        assert [cache.pools[0].owners(block) for block in second.blocks[0]] == [1, 1, 1]

    def test_what_was_never_computed_is_not_found(self) -> None:
        cache = make_cache()
        sequence = make_sequence(range(12))
        assert cache.extend(sequence, 12)
        sequence.num_computed = 7  # the rest of the step is lost
        cache.release(sequence)
        assert found(cache, range(12)) == 4

    def test_what_is_not_trusted_is_not_found_even_where_others_hold_it(self) -> None:
        cache = make_cache()
        first = compute(cache, make_sequence(range(10)))
        second = compute(cache, make_sequence(range(10)))
        cache.release(second, trusted=False)
        assert found(cache, range(10)) == 0
        cache.release(first)
        assert found(cache, range(10)) == 0
        remember(cache, range(10))
        assert found(cache, range(10)) == 8

    def test_switched_off_nothing_is_found(self) -> None:
        cache = make_cache(prefix_caching=False)
        remember(cache, range(10))
        assert found(cache, range(10)) == 0

    def test_of_two_that_computed_the_same_the_first_is_found(self) -> None:
        cache = make_cache()
        first, second = make_sequence(range(5)), make_sequence(range(5))
        for sequence in (first, second):  # in one step: the second looked before the first was known
            assert cache.extend(sequence, 5)
            sequence.num_computed = 5
        kept = first.blocks[0][0]
        cache.release(second)
        again = compute(cache, make_sequence(range(5)))
        assert again.blocks[0][0] == kept


class TestEviction:
    def test_what_nobody_can_find_goes_first(self) -> None:
        cache = make_cache(num_blocks=4)
        remember(cache, range(8))  # two blocks, both findable
        compute(cache, make_sequence(range(100, 108)))
        assert found(cache, range(9)) == 8

    def test_then_the_one_that_was_given_back_longest_ago(self) -> None:
        cache = make_cache(num_blocks=3)
        for start in (0, 100, 200):
            remember(cache, range(start, start + 4))
        found(cache, range(5))  # used again: now the youngest
        compute(cache, make_sequence([7]))
        assert [found(cache, range(start, start + 5)) for start in (0, 100, 200)] == [4, 0, 4]

    def test_of_one_sequence_the_end_goes_before_the_beginning(self) -> None:
        cache = make_cache(num_blocks=3)
        remember(cache, range(12))
        lengths = []
        for _ in range(3):
            compute(cache, make_sequence([7]))
            lengths.append(found(cache, range(13)))
        assert lengths == [8, 4, 0]

    def test_what_is_found_is_nobodys_to_take(self) -> None:
        cache = make_cache(num_blocks=3)
        remember(cache, range(8))
        holder = make_sequence(range(9))
        assert cache.match_prefix(holder) == 8
        assert cache.pools[0].num_free == 1
        assert not cache.extend(make_sequence(range(50, 58)), 8)

    def test_the_memory_is_told_of_every_block_that_died(self) -> None:
        cache = make_cache(num_blocks=3)
        sequence = compute(cache, make_sequence(range(10)))
        full, partial = list(sequence.blocks[0][:2]), sequence.blocks[0][2]
        cache.release(sequence)
        assert cache.take_discarded() == ((partial,),), "the findable ones live on"
        compute(cache, make_sequence(range(50, 62)))
        assert set(cache.take_discarded()[0]) == {*full}
        assert cache.take_discarded() == ((),)


class TestWindow:
    def test_blocks_that_it_has_passed_are_given_back(self) -> None:
        cache = make_cache(FULL, window(6))
        sequence = compute(cache, make_sequence(range(17), num_groups=2))
        full, windowed = sequence.blocks
        assert len(full) == len(windowed) == 5
        assert list(windowed[:3]) == [0, 0, 0] and all(windowed[3:]) and all(full)
        assert [pool.usable - pool.num_free for pool in cache.pools] == [5, 2]
        cache.release(sequence)
        assert all(pool.num_free == pool.usable for pool in cache.pools)

    def test_only_what_it_still_sees_must_be_in_the_cache(self) -> None:
        cache = make_cache(window(6), num_blocks=5)
        remember(cache, range(16))
        assert found(cache, range(17)) == 16
        # The token after 16 sees 11 to 16: blocks 2 and 3. The first two may go.
        for _ in range(2):
            compute(cache, make_sequence([7]))
        sequence = make_sequence(range(17))
        assert cache.match_prefix(sequence) == 16
        assert list(sequence.blocks[0][:2]) == [0, 0] and all(sequence.blocks[0][2:])

    def test_a_gap_in_what_it_sees_is_a_gap(self) -> None:
        cache = make_cache(window(6), num_blocks=4)
        remember_in_chunks(cache, range(16))
        compute(
            cache, make_sequence(range(50, 59))
        )  # takes blocks 0 and 1, passed long ago, and then the last
        assert found(cache, range(17)) == 0, "only block 2 is left, and nothing can be continued from it"

    def test_the_groups_agree_on_the_longest_prefix_that_all_have(self) -> None:
        cache = KVCache((FULL, window(6)), [5, 21], SIZE, True)
        remember_in_chunks(cache, range(16))
        assert found(cache, range(17)) == 16
        compute(cache, make_sequence([7], num_groups=2))  # takes the last block of the full group
        assert found(cache, range(17)) == 12

    def test_they_agree_again_when_one_has_less_than_that(self) -> None:
        cache = KVCache((FULL, window(6)), [6, 6], SIZE, True)
        remember_in_chunks(cache, range(16))
        other = make_sequence(range(50, 56), num_groups=2)
        compute(
            cache, other
        )  # one block of each group was free; the others: the full one's last, the window's first
        assert found(cache, range(17)) == 12
        compute(cache, make_sequence([7], num_groups=2))  # the full group keeps 0 and 1, the window 2 and 3
        assert found(cache, range(17)) == 0


def remember_in_chunks(cache: KVCache, token_ids: Items[int]) -> None:
    """Block by block, so that a window's blocks are given back on the way."""
    sequence = make_sequence(token_ids, num_groups=len(cache.groups))
    for end in range(SIZE, len(sequence.token_ids) + 1, SIZE):
        assert cache.extend(sequence, end)
        cache.advance(sequence, SIZE)
    cache.release(sequence)


class TestFork:
    @pytest.mark.parametrize("length", [2, 4, 5, 8, 9])
    def test_the_child_shares_all_but_the_last_token_of_the_prompt(self, length: int) -> None:
        cache = make_cache()
        parent, child = make_sequences(range(length))
        compute(cache, parent)
        assert cache.fork(parent, child)
        full, partial = divmod(length - 1, SIZE)
        assert child.num_computed == length - 1
        assert list(child.blocks[0][:full]) == list(parent.blocks[0][:full])
        assert len(child.blocks[0]) == full + bool(partial)
        copies = [(parent.blocks[0][full], child.blocks[0][full])] if partial else []
        assert cache.take_copies() == (tuple(copies),)

    def test_not_from_a_parent_that_lost_its_blocks_or_has_not_computed_them(self) -> None:
        cache = make_cache()
        parent, child = make_sequences(range(7))
        assert cache.extend(parent, 7)
        parent.num_computed = 4
        assert not cache.fork(parent, child)
        parent.num_computed = 7
        cache.release(parent)
        assert not cache.fork(parent, child)
        assert (len(child.blocks[0]), child.num_computed, cache.take_copies()) == (0, 0, ((),))

    def test_not_without_a_block_for_the_copy(self) -> None:
        cache = make_cache(num_blocks=2)
        parent, child = make_sequences(range(7))
        compute(cache, parent)
        assert not cache.fork(parent, child)
        assert len(child.blocks[0]) == 0

    def test_not_when_a_window_has_left_the_prompt_behind(self) -> None:
        cache = make_cache(window(6))
        parent, child = make_sequences(range(7))
        parent.token_ids += range(100, 110)
        compute(cache, parent)
        assert not cache.fork(parent, child)


class TestPool:
    def test_block_zero_belongs_to_nobody(self) -> None:
        pool = BlockPool(4)
        assert pool.usable == 3
        assert sorted(pool.allocate(3)) == [1, 2, 3]
        assert pool.num_free == 0

    def test_a_block_is_free_when_its_last_owner_lets_go(self) -> None:
        pool = BlockPool(3)
        (block,) = pool.allocate(1)
        pool.share(block)
        pool.release([block])
        assert (pool.owners(block), pool.num_free) == (1, 1)
        pool.release([block])
        assert (pool.owners(block), pool.num_free) == (0, 2)

    def test_zeros_in_a_table_are_not_released(self) -> None:
        pool = BlockPool(3)
        (block,) = pool.allocate(1)
        pool.release([0, block, 0])
        assert pool.num_free == 2

    def test_a_block_keeps_its_first_key_and_a_key_its_first_block(self) -> None:
        pool = BlockPool(3)
        a, b = pool.allocate(2)
        pool.register(a, b"key")
        pool.register(b, b"key")
        pool.register(a, b"other")
        assert (pool.find(b"key"), pool.find(b"other")) == (a, None)
        pool.forget([b])
        assert pool.find(b"key") == a
        pool.forget([a])
        assert pool.find(b"key") is None
