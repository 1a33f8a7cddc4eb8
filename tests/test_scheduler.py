"""Who computes what, step by step. No model: tokens come from the oracle of engine_model."""

from collections import Counter

import pytest
from engine_model import (
    EOS,
    FULL,
    Oracle,
    alive,
    answer,
    check_ownership,
    make_scheduler,
    one,
    run,
    submit,
    window,
)

from core.contracts.runner import Batch, CacheGroup, SequenceResult
from core.engine.request import State


def ids(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [part.sequence_id for part in batch.sequences]


def counts(batch: Batch | None) -> dict[int, int]:
    assert batch is not None
    return {part.sequence_id: part.num_tokens for part in batch.sequences}


class TestBudget:
    def test_a_long_prompt_is_computed_in_chunks_and_sampled_from_after_the_last(self) -> None:
        scheduler = make_scheduler(max_num_batched_tokens=8)
        sequence = one(scheduler, 20)
        oracle = Oracle(scheduler)

        steps = [oracle.step() for _ in range(4)]

        parts = [batch.sequences[0] for batch in steps if batch]
        assert [(part.start, part.num_tokens, part.samples) for part in parts] == [
            (0, 8, False),
            (8, 8, False),
            (16, 4, True),
            (20, 1, True),
        ]
        assert sequence.num_output == 2

    def test_what_one_prompt_leaves_of_a_step_goes_to_the_next(self) -> None:
        scheduler = make_scheduler(max_num_batched_tokens=10)
        first, second, third = one(scheduler, 6), one(scheduler, 3), one(scheduler, 5)
        assert counts(Oracle(scheduler).step()) == {
            first.sequence_id: 6,
            second.sequence_id: 3,
            third.sequence_id: 1,
        }

    def test_running_sequences_come_before_waiting_prompts(self) -> None:
        scheduler = make_scheduler(max_num_batched_tokens=8)
        old = [one(scheduler, 3), one(scheduler, 4)]
        oracle = Oracle(scheduler)
        oracle.step()
        long = one(scheduler, 30)

        batch = oracle.step()

        assert counts(batch) == {old[0].sequence_id: 1, old[1].sequence_id: 1, long.sequence_id: 6}
        assert batch is not None and batch.num_decodes == 2 and batch.num_tokens == 8

    def test_decodes_lead_the_batch_even_when_a_prompt_is_older(self) -> None:
        scheduler = make_scheduler(max_num_batched_tokens=8)
        oracle = Oracle(scheduler)
        long, short = one(scheduler, 13), one(scheduler, 3)
        assert counts(oracle.step()) == {long.sequence_id: 8}
        assert counts(oracle.step()) == {long.sequence_id: 5, short.sequence_id: 3}
        another = one(scheduler, 4)
        assert ids(oracle.step()) == [long.sequence_id, short.sequence_id, another.sequence_id]
        late = one(scheduler, 2)
        batch = oracle.step()
        assert ids(batch)[-1] == late.sequence_id and batch is not None and batch.num_decodes == 3

    def test_prompts_get_a_chunk_of_a_step_while_others_decode_and_all_of_it_when_nobody_does(self) -> None:
        scheduler = make_scheduler(max_num_batched_tokens=16, prefill_chunk_size=5)
        oracle = Oracle(scheduler)
        first, long = one(scheduler, 9, max_tokens=3), one(scheduler, 30)
        assert counts(oracle.step()) == {first.sequence_id: 9, long.sequence_id: 7}
        assert counts(oracle.step()) == {first.sequence_id: 1, long.sequence_id: 5}
        assert counts(oracle.step()) == {first.sequence_id: 1, long.sequence_id: 5}
        assert counts(oracle.step()) == {long.sequence_id: 13}

    def test_sequences_that_decode_are_not_held_back_by_the_size_of_a_chunk(self) -> None:
        scheduler = make_scheduler(max_num_batched_tokens=16, prefill_chunk_size=1)
        oracle = Oracle(scheduler)
        old = [one(scheduler, 2) for _ in range(4)]
        oracle.step()
        new = one(scheduler, 3)
        assert counts(oracle.step()) == {**{s.sequence_id: 1 for s in old}, new.sequence_id: 1}

    @pytest.mark.parametrize("budget", [1, 2, 5, 7])
    def test_no_step_ever_exceeds_its_budget_and_everything_finishes(self, budget: int) -> None:
        scheduler = make_scheduler(max_num_batched_tokens=budget)
        sequences = [one(scheduler, length) for length in (1, 9, 4, 17)] + submit(scheduler, 6, n=3)
        batches = run(Oracle(scheduler))
        assert max(batch.num_tokens for batch in batches) <= budget
        assert all(batch.num_tokens == sum(counts(batch).values()) for batch in batches)
        assert all(len(answer(sequence)) == 8 for sequence in sequences)


class TestOrder:
    def test_first_come_first_served(self) -> None:
        scheduler = make_scheduler(max_num_seqs=1)
        sequences = [one(scheduler, 3, max_tokens=2) for _ in range(3)]
        started = [
            part.sequence_id
            for batch in run(Oracle(scheduler))
            for part in batch.sequences
            if part.start == 0
        ]
        assert started == [s.sequence_id for s in sequences]

    def test_one_that_does_not_fit_yet_is_not_overtaken(self) -> None:
        scheduler = make_scheduler(num_blocks=4)
        first = one(scheduler, 9)
        large, small = one(scheduler, 12), one(scheduler, 2)
        oracle = Oracle(scheduler)
        oracle.step()
        assert (first.state, large.state, small.state) == (State.RUNNING, State.WAITING, State.WAITING)

    def test_lower_priority_numbers_go_first_under_that_policy_only(self) -> None:
        for policy, expected in (("fcfs", [0, 1, 2, 3]), ("priority", [2, 1, 3, 0])):
            scheduler = make_scheduler(max_num_seqs=1, policy=policy)
            for priority in (5, 0, -1, 0):
                one(scheduler, 3, max_tokens=1, priority=priority)
            assert [ids(batch)[0] for batch in run(Oracle(scheduler))] == expected


class TestPreemption:
    def test_the_youngest_gives_its_blocks_back_when_none_is_free(self) -> None:
        scheduler = make_scheduler(num_blocks=4)
        old, young = one(scheduler, 8), one(scheduler, 8)
        oracle = Oracle(scheduler)
        oracle.step()

        batch = oracle.step()

        assert ids(batch) == [old.sequence_id]
        assert (old.state, young.state) == (State.RUNNING, State.WAITING)
        assert young.num_computed == 0 and len(young.blocks[0]) == 0
        assert scheduler.statistics.num_preemptions == 1

    def test_the_least_urgent_gives_way_though_it_came_first(self) -> None:
        scheduler = make_scheduler(num_blocks=5, policy="priority")
        unimportant = one(scheduler, 8, priority=1)
        oracle = Oracle(scheduler)
        oracle.step()
        urgent = one(scheduler, 7, priority=0)
        oracle.step()
        assert scheduler.running == [urgent, unimportant]
        oracle.step()
        oracle.step()  # the urgent one needs a third block, and all five are taken
        assert (scheduler.running, scheduler.waiting) == ([urgent], [unimportant])

    def test_nobody_new_is_admitted_in_the_step_that_preempts(self) -> None:
        scheduler = make_scheduler(num_blocks=4)
        one(scheduler, 8)
        one(scheduler, 8)
        oracle = Oracle(scheduler)
        oracle.step()
        newcomer = one(scheduler, 1)
        oracle.step()
        assert newcomer.state is State.WAITING

    def test_a_preempted_sequence_is_ahead_of_those_that_came_later(self) -> None:
        scheduler = make_scheduler(num_blocks=4)
        one(scheduler, 8)
        young = one(scheduler, 8)
        oracle = Oracle(scheduler)
        oracle.step()
        late = one(scheduler, 2)
        oracle.step()
        assert scheduler.waiting == [young, late]

    @pytest.mark.parametrize("prefix_caching", [True, False])
    def test_answers_are_those_of_a_cache_that_is_large_enough(self, prefix_caching: bool) -> None:
        answers: list[list[list[int]]] = []
        for num_blocks in (64, 5):
            scheduler = make_scheduler(num_blocks=num_blocks, prefix_caching=prefix_caching)
            sequences = [one(scheduler, [i, *range(100, 107)], max_tokens=9) for i in range(6)]
            run(Oracle(scheduler))
            answers.append([answer(sequence) for sequence in sequences])
            assert (scheduler.statistics.num_preemptions > 0) == (num_blocks == 5)
        assert answers[0] == answers[1]

    def test_what_was_computed_before_is_found_again_if_nobody_took_it(self) -> None:
        scheduler = make_scheduler(num_blocks=6)
        one(scheduler, 12, max_tokens=5)
        young = one(scheduler, 12, max_tokens=2)
        batches = run(Oracle(scheduler))
        starts = [
            part.start for b in batches for part in b.sequences if part.sequence_id == young.sequence_id
        ]
        assert starts[0] == 0 and starts[1] > 0
        assert young.num_cached == 0, "its own work is no hit"

    def test_what_it_computes_again_can_be_found_by_others(self) -> None:
        scheduler = make_scheduler(num_blocks=5)
        one(scheduler, list(range(100, 108)), max_tokens=8)
        young = one(scheduler, list(range(1, 9)), max_tokens=9)
        oracle = Oracle(scheduler)
        run(oracle)
        assert scheduler.statistics.num_preemptions > 0
        assert answer(young)
        other = one(scheduler, [*young.token_ids[:16], 7])
        run(oracle)
        assert other.num_cached == 16


class TestAnswers:
    def test_the_prompt_of_several_answers_is_computed_once(self) -> None:
        scheduler = make_scheduler()
        submit(scheduler, 10, n=4, max_tokens=3)
        batches = run(Oracle(scheduler))
        computed = Counter(
            part.sequence_id for b in batches for part in b.sequences for _ in range(part.num_tokens)
        )
        # Each samples three tokens, of which the last is not computed; the others repeat the last prompt token.
        assert computed == {0: 10 + 2, 1: 1 + 2, 2: 1 + 2, 3: 1 + 2}

    def test_the_others_wait_until_the_first_has_the_prompt(self) -> None:
        scheduler = make_scheduler(max_num_batched_tokens=4)
        submit(scheduler, 10, n=3)
        oracle = Oracle(scheduler)
        assert [ids(oracle.step()) for _ in range(4)] == [[0], [0], [0], [0, 1, 2]]

    @pytest.mark.parametrize(("length", "copied"), [(2, 1), (4, 1), (5, 0), (9, 0), (10, 1), (1, 0)])
    def test_only_a_partly_filled_block_is_copied(self, length: int, copied: int) -> None:
        scheduler = make_scheduler()
        submit(scheduler, length, n=3)
        batches = run(Oracle(scheduler))
        copies = [pair for batch in batches for pair in batch.copies[0]]
        assert len(copies) == 2 * copied
        assert len({source for source, _ in copies}) == copied
        assert len({destination for _, destination in copies}) == 2 * copied

    def test_full_blocks_of_the_prompt_are_shared(self) -> None:
        scheduler = make_scheduler()
        first, second = submit(scheduler, 10, n=2)
        oracle = Oracle(scheduler)
        oracle.step()
        oracle.step()
        assert list(first.blocks[0][:2]) == list(second.blocks[0][:2])
        assert first.blocks[0][2] != second.blocks[0][2]
        check_ownership(scheduler)

    def test_a_prompt_that_is_being_computed_again_is_not_forked_half_way(self) -> None:
        scheduler = make_scheduler(
            num_blocks=6, max_num_seqs=2, max_num_batched_tokens=6, prefix_caching=False, policy="priority"
        )
        first, second = submit(scheduler, 8, n=2, max_tokens=4, priority=1)
        oracle = Oracle(scheduler)
        oracle.step()
        submit(scheduler, 12, max_tokens=8, priority=0)  # leaves no room to run in for the second answer
        while first.state is State.RUNNING:
            oracle.step()
        assert first.num_output > 0 and second.num_output == 0

        run(oracle)  # the oracle fails at the first wrong read

        assert len(answer(first)) == len(answer(second)) == 4

    def test_ending_one_answer_lets_the_others_go_on(self) -> None:
        scheduler = make_scheduler()
        first, second, third = submit(scheduler, 5, n=3, max_tokens=6)
        oracle = Oracle(scheduler)
        oracle.step()
        scheduler.stop(first.request.request_id, 0)
        assert first.state is State.FINISHED and first.request.request_id in scheduler
        run(oracle)
        assert [len(answer(s)) for s in (first, second, third)] == [1, 6, 6]
        assert first.request.request_id not in scheduler


class TestEnding:
    def test_by_length(self) -> None:
        scheduler = make_scheduler()
        sequence = one(scheduler, 5, max_tokens=3)
        run(Oracle(scheduler))
        assert (len(answer(sequence)), sequence.state) == (3, State.FINISHED)

    def test_by_the_context(self) -> None:
        scheduler = make_scheduler(num_blocks=5)
        for sequence in (one(scheduler, 15, max_tokens=None), one(scheduler, 15, max_tokens=100)):
            run(Oracle(scheduler))
            assert len(sequence.token_ids) == 20

    @pytest.mark.parametrize(("min_tokens", "length"), [(0, 1), (1, 2), (3, 4), (5, 5)])
    def test_by_a_stop_token_once_min_tokens_are_there(self, min_tokens: int, length: int) -> None:
        scheduler = make_scheduler()
        sequence = one(scheduler, 3, max_tokens=5, min_tokens=min_tokens, ignore_eos=False)
        reasons = []
        while (batch := scheduler.schedule()) is not None:
            changes = scheduler.update(batch, [SequenceResult(token_ids=[EOS])])
            reasons += [reason for _, _, reason in changes if reason]
        assert len(answer(sequence)) == length
        assert reasons == ["length" if min_tokens == 5 else "stop"]

    def test_tokens_after_the_one_that_ends_it_are_dropped(self) -> None:
        scheduler = make_scheduler()
        sequence = one(scheduler, 3, max_tokens=8, ignore_eos=False)
        batch = scheduler.schedule()
        assert batch is not None
        ((_, result, reason),) = scheduler.update(batch, [SequenceResult(token_ids=[5, 6, EOS, 7, 8])])
        assert (result.token_ids, reason, answer(sequence)) == ([5, 6, EOS], "stop", [5, 6, EOS])

    def test_by_abort_wherever_it_is(self) -> None:
        scheduler = make_scheduler(max_num_seqs=2)
        running, waiting = submit(scheduler, 9, n=2), submit(scheduler, 3)
        Oracle(scheduler).step()
        assert scheduler.abort(waiting[0].request.request_id) == waiting
        assert scheduler.abort(running[0].request.request_id) == running
        assert scheduler.abort("unknown") == []
        assert not scheduler.has_work and scheduler.schedule() is None
        assert all(pool.num_free == pool.usable for pool in scheduler.cache.pools)


class TestFailure:
    def test_what_a_failing_sequence_computed_is_never_found_again(self) -> None:
        scheduler = make_scheduler()
        failing = one(scheduler, list(range(1, 14)))
        oracle = Oracle(scheduler)
        oracle.step(errors=frozenset({failing.sequence_id}))
        assert failing.state is State.FINISHED
        again = one(scheduler, list(range(1, 14)))
        run(oracle)
        assert again.num_cached == 0
        assert all(pool.num_free == pool.usable for pool in scheduler.cache.pools)

    def test_one_that_builds_on_others_work_computes_everything_itself_before_it_is_given_up(self) -> None:
        scheduler = make_scheduler()
        oracle = Oracle(scheduler)
        one(scheduler, list(range(1, 14)), max_tokens=1)
        run(oracle)
        borrower = one(scheduler, list(range(1, 14)))
        batch = oracle.step(errors=frozenset({borrower.sequence_id}))
        assert batch is not None and batch.sequences[0].start == 12
        assert borrower.state is State.WAITING

        batch = oracle.step(errors=frozenset({borrower.sequence_id}))

        assert batch is not None and batch.sequences[0].start == 0
        assert borrower.state is State.FINISHED and answer(borrower) == []

    def test_and_what_it_borrowed_is_not_lent_again(self) -> None:
        scheduler = make_scheduler()
        oracle = Oracle(scheduler)
        prompt = list(range(1, 14))
        one(scheduler, prompt, max_tokens=1)
        run(oracle)
        borrower = one(scheduler, prompt, priority=1)
        oracle.step(errors=frozenset({borrower.sequence_id}))
        other = one(scheduler, prompt)
        scheduler.abort(borrower.request.request_id)
        run(oracle)
        assert other.num_cached == 0


class TestSeparateSteps:
    @pytest.mark.parametrize("groups", [(FULL,), (window(6),), (FULL, window(6))])
    @pytest.mark.parametrize("budget", [2, 7, 64])
    def test_prompts_and_decodes_never_share_a_step(
        self, groups: tuple[CacheGroup, ...], budget: int
    ) -> None:
        scheduler = make_scheduler(
            separate_steps=True, groups=groups, max_num_batched_tokens=budget, num_blocks=24
        )
        oracle = Oracle(scheduler)
        for length in (1, 5, 13, 2, 8):
            submit(scheduler, length, n=1 + length % 2)
            oracle.step()
        for batch in run(oracle):
            assert batch.num_decodes in (0, len(batch.sequences))
        assert not alive(scheduler)

    def test_prompts_go_first(self) -> None:
        scheduler = make_scheduler(separate_steps=True)
        old = one(scheduler, 4)
        oracle = Oracle(scheduler)
        oracle.step()
        new = one(scheduler, 4)
        assert ids(oracle.step()) == [new.sequence_id]
        assert ids(oracle.step()) == [old.sequence_id, new.sequence_id]


class TestStatistics:
    def test_a_waiting_sequence_is_counted_once_however_often_it_is_considered(self) -> None:
        scheduler = make_scheduler(num_blocks=6)
        oracle = Oracle(scheduler)
        one(scheduler, list(range(1, 10)), max_tokens=1)
        run(oracle)
        hog = one(scheduler, list(range(200, 213)), max_tokens=8)
        oracle.step()
        waiting = one(scheduler, [*range(1, 9), *range(50, 58)], max_tokens=1)
        for _ in range(3):
            oracle.step()
        assert waiting.state is State.WAITING and hog.state is State.RUNNING
        run(oracle)
        assert scheduler.statistics.prefix_queries == 9 + 13 + 16
        assert scheduler.statistics.prefix_hits == waiting.num_cached
