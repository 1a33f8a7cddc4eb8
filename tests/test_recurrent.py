"""States in their own cache group: which blocks hold them, which are found again, and how much memory they get."""

from collections.abc import Sequence as Items

import pytest
import torch
from engine_model import FULL, STATE, Oracle, make_scheduler, one, run, submit, window
from test_budget import BLOCK, PLENTY, plan
from test_kv_cache import SIZE, compute, found, make_cache, make_sequence, make_sequences, remember

from core.contracts.attention import AttentionBatch, AttentionShape
from core.contracts.model import ModelDescription, StateShape
from core.contracts.state import StateBatch
from core.engine.budget import cache_groups
from core.engine.kv_cache import KVCache
from core.engine.request import Sequence
from core.execution.inputs import state_batch
from core.reference import KERNELS
from core.reference.causal_conv import state_batch as state_batch_of


def compute_to(cache: KVCache, sequence: Sequence, *ends: int) -> None:
    """Steps that end after so many tokens."""
    for end in ends:
        assert cache.extend(sequence, end)
        cache.advance(sequence, end - sequence.num_computed)


def held(sequence: Sequence, group: int = 0) -> list[bool]:
    """Where its table names a block."""
    return [block > 0 for block in sequence.blocks[group]]


class TestBlocks:
    def test_only_where_a_step_ends_is_there_a_block(self) -> None:
        cache, sequence = make_cache(STATE), make_sequence(range(40))
        assert cache.extend(sequence, 3 * SIZE + 1)
        assert held(sequence) == [False, False, False, True]
        assert cache.pools[0].num_free == cache.pools[0].usable - 1

    def test_a_step_reads_one_block_and_writes_another_and_then_the_first_is_free(self) -> None:
        cache, sequence = make_cache(STATE), make_sequence(range(40))
        compute_to(cache, sequence, 3)
        first = sequence.blocks[0][0]
        compute_to(cache, sequence, SIZE)
        assert list(sequence.blocks[0]) == [first], "within a block it is written in place"
        assert cache.extend(sequence, 3 * SIZE)
        assert held(sequence) == [True, False, True]
        cache.advance(sequence, 2 * SIZE)
        assert held(sequence) == [False, False, True]
        assert cache.pools[0].num_free == cache.pools[0].usable - 1

    def test_one_free_block_is_enough_for_any_number_of_tokens(self) -> None:
        cache, sequence, other = (
            make_cache(STATE, num_blocks=2),
            make_sequence(range(40)),
            make_sequence(range(9)),
        )
        compute_to(cache, other, 9)
        assert cache.extend(sequence, 40)
        assert not cache.extend(other, 13)
        assert held(other) == [False, False, True]

    def test_a_sequence_holds_one_state_between_steps_however_long_it_is(self) -> None:
        scheduler = make_scheduler(groups=(FULL, STATE), num_blocks=40)
        one(scheduler, 30, max_tokens=60)
        oracle, full, states = Oracle(scheduler), *scheduler.cache.pools
        most = 0
        while oracle.step():
            most = max(most, states.usable - states.num_free)
        assert most == 1
        assert full.num_free == full.usable and states.num_free == states.usable


class TestPrefixes:
    @pytest.mark.parametrize(
        ("ends", "length"), [((8, 14), 8), ((14,), 0), ((5, 12, 14), 12), ((4, 6, 14), 4)]
    )
    def test_a_state_is_found_where_a_step_ended_at_the_end_of_a_block(
        self, ends: Items[int], length: int
    ) -> None:
        cache, sequence = make_cache(FULL, STATE), make_sequence(range(14), num_groups=2)
        compute_to(cache, sequence, *ends)
        assert found(cache, range(20)) == length
        assert found(cache, [*range(length), *[99] * 20]) == length
        cache.release(sequence)
        assert found(cache, range(20)) == length

    def test_what_a_step_will_end_in_is_not_found_before_it_has(self) -> None:
        cache, sequence = make_cache(STATE), make_sequence(range(20))
        assert cache.extend(sequence, 2 * SIZE)
        assert found(cache, range(20)) == 0
        cache.advance(sequence, 2 * SIZE)
        assert found(cache, range(20)) == 2 * SIZE

    def test_groups_agree_on_a_prefix_that_all_can_go_on_from(self) -> None:
        cache, sequence = make_cache(FULL, STATE, window(6)), make_sequence(range(20), num_groups=3)
        compute_to(cache, sequence, 8, 12, 18)
        assert found(cache, range(20)) == 12
        again = make_sequence(range(20), num_groups=3)
        assert cache.match_prefix(again) == 12
        assert [held(again, group) for group in range(3)] == [
            [True] * 3,
            [False, False, True],
            [False, True, True],
        ]

    def test_whoever_goes_on_from_a_state_leaves_it_as_it_is(self) -> None:
        cache = make_cache(STATE)
        compute_to(cache, sequence := make_sequence(range(SIZE)), SIZE)
        shared = sequence.blocks[0][0]
        others = [make_sequence([*range(SIZE), 7 + i, 8]) for i in range(2)]
        for other in others:
            assert cache.match_prefix(other) == SIZE
            assert cache.extend(other, SIZE + 2)
        assert [other.blocks[0][0] for other in others] == [shared, shared]
        written = {sequence.blocks[0][0], *(other.blocks[0][1] for other in others)}
        assert len(written) == 3, "each writes a block of its own"

    def test_of_an_answer_only_the_newest_state_stays(self) -> None:
        cache = make_cache(STATE)
        (sequence,) = make_sequences(range(2 * SIZE + 1), n=1)
        compute_to(cache, sequence, 2 * SIZE, 2 * SIZE + 1)
        sequence.token_ids += range(100, 140)
        compute_to(cache, sequence, *range(2 * SIZE + 2, 5 * SIZE + 2))
        assert found(cache, sequence.token_ids) == 5 * SIZE
        assert found(cache, sequence.token_ids[: 5 * SIZE]) == 2 * SIZE, "the prompt's"

    def test_a_failed_row_takes_with_it_what_it_left_behind(self) -> None:
        cache, sequence = make_cache(FULL, STATE), make_sequence(range(20), num_groups=2)
        compute_to(cache, sequence, 8, 16, 18)
        cache.release(sequence, trusted=False)
        assert found(cache, range(20)) == 0
        assert set(cache.take_discarded()[1]) >= {1}, "and its memory is told"
        remember(cache, range(18))
        assert cache.pools[1].num_free == cache.pools[1].usable

    def test_a_state_is_past_the_token_that_a_child_would_compute(self) -> None:
        cache = make_cache(FULL, STATE)
        parent, child = make_sequences(range(9), num_groups=2)
        compute(cache, parent)
        assert not cache.fork(parent, child)
        assert [len(table) for table in child.blocks] == [0, 0]


class TestChunks:
    @pytest.mark.parametrize(
        ("length", "budget", "chunks"),
        [
            (3, 64, [3]),
            (4, 64, [4]),
            (5, 64, [4, 1]),
            (21, 64, [20, 1]),
            (20, 64, [16, 4]),
            (21, 10, [8, 8, 4, 1]),
            (9, 3, [3, 1, 3, 1, 1]),
        ],
    )
    def test_prompts_end_their_steps_where_states_can_be_found(
        self, length: int, budget: int, chunks: list[int]
    ) -> None:
        scheduler = make_scheduler(groups=(FULL, STATE), max_num_batched_tokens=budget)
        one(scheduler, length, max_tokens=1)
        assert [batch.num_tokens for batch in run(Oracle(scheduler))] == chunks

    @pytest.mark.parametrize("separate_steps", [False, True])
    def test_the_next_turn_of_a_conversation_goes_on_from_the_last(self, separate_steps: bool) -> None:
        scheduler = make_scheduler(groups=(STATE, FULL), separate_steps=separate_steps)
        oracle = Oracle(scheduler)
        first = one(scheduler, 18, max_tokens=9)
        run(oracle)
        second = one(scheduler, [*first.token_ids, 5, 5])
        same = one(scheduler, list(first.token_ids[:18]))
        run(oracle)
        assert (second.num_cached, same.num_cached) == (24, 16)

    def test_nothing_is_split_where_nothing_is_kept(self) -> None:
        for groups, prefix_caching in (((FULL, STATE), False), ((FULL,), True)):
            scheduler = make_scheduler(groups=groups, prefix_caching=prefix_caching)
            one(scheduler, 21, max_tokens=1)
            assert [batch.num_tokens for batch in run(Oracle(scheduler))] == [21]

    def test_answers_to_one_prompt_share_its_state(self) -> None:
        scheduler = make_scheduler(groups=(FULL, STATE))
        first, *others = submit(scheduler, 22, n=3)
        run(Oracle(scheduler))
        assert [other.num_cached for other in others] == [20, 20]
        assert first.num_cached == 0


class TestMemory:
    def test_layers_that_keep_states_share_a_group(self) -> None:
        state = StateShape(convolution=(3, 8), state=(8, 1, 4))
        attention = AttentionShape(num_heads=1, num_kv_heads=1, head_dim=8, scale=1.0)
        description = ModelDescription(
            architecture="X",
            vocab_size=1,
            hidden_size=1,
            context=1,
            dtype="float32",
            layers=(state, attention, state, attention, state),
        )
        states, full = cache_groups(description)
        assert (states.layers, states.window, states.recurrent) == ((0, 2, 4), 2, True)
        assert (full.layers, full.window, full.recurrent) == ((1, 3), None, False)

    def test_every_sequence_has_the_two_states_of_a_step_however_long_it_is(self) -> None:
        for length in (16, 512):
            assert plan(FULL, STATE, max_model_len=length, max_num_seqs=7).num_blocks[1] == 2 * 7 + 1

    def test_little_memory_is_for_states_first_up_to_half_of_it(self) -> None:
        # One sequence of 512 tokens takes 33 blocks of tokens and 3 of states.
        found = plan(FULL, STATE, kv_cache_memory=56 * BLOCK)
        assert found.num_blocks == (33 + 14, 3 + 6), "six are all that three more sequences need"
        found = plan(FULL, STATE, kv_cache_memory=44 * BLOCK)
        assert found.num_blocks == (33 + 4, 3 + 4), "half of what is left"
        assert found.num_tokens == 36 * 16

    def test_a_model_of_states_alone_needs_the_same_for_every_length(self) -> None:
        found = plan(STATE, kv_cache_memory=3 * BLOCK)
        assert (found.num_blocks, found.max_model_len, found.num_tokens) == ((3,), 512, 512)

    def test_tensors_of_unequal_size_are_all_aligned(self) -> None:
        from test_budget import settings

        from core.engine.budget import plan_cache

        found = plan_cache(settings(), (STATE, FULL), [(24, 100), (576, 0)], 192, PLENTY)
        states, full = found.num_blocks
        assert states * 24 % 192 == states * 100 % 192 == full * 576 % 192 == 0
        assert states >= 3
        assert found.total_bytes == states * 124 + full * 576


def test_a_step_names_the_blocks_that_states_are_read_from_and_written_to() -> None:
    query_lens, lengths = (1, 1, 5, 9, 4), (1, 5, 5, 13, 8)
    tables = torch.tensor(
        [[1, 0, 0, 0], [2, 3, 0, 0], [0, 4, 0, 0], [5, 0, 0, 6], [7, 8, 0, 0]], dtype=torch.int32
    )
    batch = AttentionBatch(
        query_lens=query_lens,
        lengths=lengths,
        num_decodes=2,
        query_start=torch.tensor((0, *query_lens)).cumsum(0).to(torch.int32),
        block_tables=tables,
        seq_lengths=torch.tensor(lengths, dtype=torch.int32),
        slot_mapping=torch.zeros(sum(query_lens), dtype=torch.int64),
    )

    states = state_batch(batch, SIZE)

    assert states.read_blocks.tolist() == [0, 2, 0, 5, 7]
    assert states.write_blocks.tolist() == [1, 3, 4, 6, 8]
    assert list(states.runs()) == [
        (slice(0, 2), slice(0, 2), 1),
        (slice(2, 3), slice(2, 7), 5),
        (slice(3, 4), slice(7, 16), 9),
        (slice(4, 5), slice(16, 20), 4),
    ]


class TestKernels:
    """Against transformers, which computes whole sequences one by one."""

    LENS = (1, 1, 6, 3)

    @pytest.mark.parametrize("width", [2, 4])
    def test_a_convolution_goes_on_where_it_was(self, width: int) -> None:
        from transformers.models.mamba.modeling_mamba import causal_conv1d_fn

        weight, bias = torch.randn(8, width), torch.randn(8)
        past = [torch.randn(n, 8) for n in (5, 1, 9, 0)]
        new = [torch.randn(n, 8) for n in self.LENS]
        batch = self.batch(past)
        states = torch.full((9, width - 1, 8), torch.nan)
        for block, before in zip(batch.read_blocks.tolist(), past, strict=True):
            states[block] = torch.cat((torch.zeros(width - 1, 8), before))[len(before) :]

        found = KERNELS["causal_conv"].reference(torch.cat(new), weight, bias, states, batch)

        whole = [torch.cat(both) for both in zip(past, new, strict=True)]
        expected = [causal_conv1d_fn(x.T[None], weight, bias, activation="silu")[0].T for x in whole]
        for i, part in enumerate(found.split(self.LENS)):
            torch.testing.assert_close(part, expected[i][-len(part) :])
            kept = torch.cat((torch.zeros(width - 1, 8), whole[i]))[len(whole[i]) :]
            assert torch.equal(states[batch.write_blocks[i]], kept)

    def test_a_recurrence_goes_on_where_it_was(self) -> None:
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan

        past = [torch.randn(n, 34) for n in (5, 1, 9, 0)]
        new = [torch.randn(n, 34) for n in self.LENS]
        a, d, bias = -torch.rand(8, 5), torch.randn(8), torch.randn(8)

        def theirs(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            u, step, gate, b, c = (part.T[None] for part in x.split((8, 8, 8, 5, 5), dim=1))
            arguments = {"delta_bias": bias, "delta_softplus": True, "return_last_state": True}
            scanned, state = mamba_selective_scan(u, step, a, b, c, D=d, z=gate, **arguments)
            return scanned[0].T, state[0]

        batch, states = self.batch(past), torch.full((9, 8, 1, 5), torch.nan)
        for block, before in zip(batch.read_blocks.tolist(), past, strict=True):
            if block:
                states[block] = theirs(before)[1][:, None]

        u, step, gate, b, c = torch.cat(new).split((8, 8, 8, 5, 5), dim=1)
        found = KERNELS["selective_scan"].reference(
            u[..., None], step, bias, a, b[:, None], c[:, None], d, gate[..., None], states, batch
        )[..., 0]

        for i, part in enumerate(found.split(self.LENS)):
            expected, state = theirs(torch.cat((past[i], new[i])))
            torch.testing.assert_close(part, expected[-len(part) :])
            torch.testing.assert_close(states[batch.write_blocks[i]][:, 0], state)

    def test_heads_that_share_are_neighbours(self) -> None:
        """Mamba-2's form: each head computed alone, with the b and the c of its group."""
        heads, dim, groups, size = 6, 3, 2, 4
        x, step = torch.randn(7, heads, dim), torch.randn(7, heads)
        b, c = torch.randn(7, groups, size), torch.randn(7, groups, size)
        a, d, bias = -torch.rand(heads, 1), torch.randn(heads), torch.randn(heads)
        batch, scan = state_batch_of((7,), (False,)), KERNELS["selective_scan"].reference
        states = torch.zeros(3, heads, dim, size)

        found = scan(x, step, bias, a, b, c, d, None, states, batch)

        for h in range(heads):
            one_head, group = slice(h, h + 1), slice(h // 3, h // 3 + 1)
            own = torch.zeros(3, 1, dim, size)
            alone = scan(
                x[:, one_head],
                step[:, one_head],
                bias[one_head],
                a[one_head],
                b[:, group],
                c[:, group],
                d[one_head],
                None,
                own,
                batch,
            )
            torch.testing.assert_close(found[:, one_head], alone)
            torch.testing.assert_close(states[:, one_head], own)

    def test_a_prompt_of_any_length_is_its_tokens_one_by_one(self) -> None:
        """Also one whose states after each token are too many to be held at once."""
        length, heads, size = 90, 1024, 16
        x, step, b, c = (
            torch.randn(length, *shape) for shape in ((heads, 1), (heads,), (1, size), (1, size))
        )
        a, d = -torch.rand(heads, size), torch.randn(heads)
        scan = KERNELS["selective_scan"].reference
        at_once, in_turn = torch.zeros(3, heads, 1, size), torch.zeros(3, heads, 1, size)

        found = scan(x, step, d, a, b, c, d, None, at_once, state_batch_of((length,), (False,)))
        steps = [
            scan(
                x[t, None],
                step[t, None],
                d,
                a,
                b[t, None],
                c[t, None],
                d,
                None,
                in_turn,
                state_batch_of((1,), (t > 0,)),
            )
            for t in range(length)
        ]

        torch.testing.assert_close(found, torch.cat(steps), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(at_once[1], in_turn[1])

    def batch(self, past: list[torch.Tensor]) -> StateBatch:
        return state_batch_of(self.LENS, tuple(len(before) > 0 for before in past))
