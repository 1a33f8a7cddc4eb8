"""Any order of events leaves the block accounting exact and every read right."""

from itertools import chain

import pytest
from engine_model import BAD, FULL, STATE, Oracle, alive, check_ownership, make_scheduler, window
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.engine.request import Request, State
from core.sampling_params import SamplingParams

# Whole blocks and odd pieces, few enough that prompts begin alike, repeat themselves and part again.
PIECES = [[0, 0, 0, 0], [0, 0, 0, 1], [1, 2, 1, 2], [0], [1], [2, 0], [0, 1, 2]]
TOKENS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=7).map(lambda pieces: list(chain(*pieces)))
GROUPS = [(FULL,), (window(6),), (FULL, window(6)), (window(3), window(9)), (window(5), FULL, window(8))]
GROUPS += [(STATE,), (FULL, STATE), (STATE, window(6), FULL)]


class EngineMachine(RuleBasedStateMachine):
    """Add, step, abort, stop one answer, fail a row, lose a step, on a cache so small that preemption is common."""

    rows_fail = False

    @initialize(
        groups=st.sampled_from(GROUPS),
        num_blocks=st.integers(8, 20),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(1, 40),
        chunk=st.one_of(st.none(), st.integers(1, 40)),
        prefix_caching=st.sampled_from([True, True, False]),
        policy=st.sampled_from(["fcfs", "priority"]),
        separate_steps=st.booleans(),
    )
    def start(self, groups, num_blocks, max_num_seqs, budget, chunk, prefix_caching, policy, separate_steps):
        self.scheduler = make_scheduler(
            groups=groups,
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            prefill_chunk_size=chunk,
            prefix_caching=prefix_caching,
            policy=policy,
            separate_steps=separate_steps,
        )
        self.oracle = Oracle(self.scheduler)
        self.prompts = []

    @rule(
        prompt=TOKENS,
        n=st.integers(1, 3),
        max_tokens=st.integers(1, 12),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "", "other"]),
        ignore_eos=st.booleans(),
        bad_at=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 27)),
    )
    def add(self, prompt, n, max_tokens, priority, salt, ignore_eos, bad_at):
        if self.rows_fail and bad_at is not None and bad_at < len(prompt):
            prompt = [*prompt[:bad_at], BAD, *prompt[bad_at + 1 :]]
        params = SamplingParams(n=n, max_tokens=max_tokens, ignore_eos=ignore_eos)
        self.submit(prompt, params, priority, salt)

    @rule(choice=st.integers(0, 100), more=st.sampled_from([[], [], *PIECES]), n=st.integers(1, 2))
    def add_another_like_it(self, choice, more, n):
        if self.prompts:
            prompt = [*self.prompts[choice % len(self.prompts)], *more][:28]
            self.submit(prompt, SamplingParams(n=n, max_tokens=4, ignore_eos=True), 0, "")

    def submit(self, prompt, params, priority, salt):
        self.prompts.append(prompt)
        request_id = str(len(self.prompts))
        request = Request(
            request_id=request_id, prompt_token_ids=prompt, params=params, priority=priority, cache_salt=salt
        )
        self.scheduler.add(request, seed=len(self.prompts))

    @rule(count=st.integers(1, 6))
    def step(self, count):
        for _ in range(count):
            had_work = self.scheduler.has_work
            assert (self.oracle.step() is not None) == had_work, "work was waiting and no step was made"

    @rule(choice=st.integers(0, 100))
    def abort(self, choice):
        sequences = alive(self.scheduler)
        if sequences:
            request_id = sequences[choice % len(sequences)].request.request_id
            self.scheduler.abort(request_id)
            assert request_id not in self.scheduler

    @rule(choice=st.integers(0, 100))
    def stop_one_answer(self, choice):
        sequences = alive(self.scheduler)
        if sequences:
            sequence = sequences[choice % len(sequences)]
            self.scheduler.stop(sequence.request.request_id, sequence.index)
            assert sequence.state is State.FINISHED

    @precondition(lambda self: self.rows_fail)
    @rule(choice=st.integers(0, 100))
    def fail_one_row(self, choice):
        running = self.scheduler.running
        if running:
            self.oracle.step(errors=frozenset({running[choice % len(running)].sequence_id}))

    @rule()
    def lose_a_step(self):
        """The device fails: nothing was computed, and everything under way is aborted."""
        if self.scheduler.schedule() is not None:
            for sequence in alive(self.scheduler):
                self.scheduler.abort(sequence.request.request_id)

    @invariant()
    def ownership_is_exact(self):
        if hasattr(self, "scheduler"):
            check_ownership(self.scheduler)

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        self.oracle.run()
        check_ownership(self.scheduler)
        for pool in self.scheduler.cache.pools:
            assert pool.num_free == pool.usable, "blocks leaked"


TestR4EngineMachine = pytest.mark.timeout(300)(EngineMachine.TestCase)
TestR4EngineMachine.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


class FailingRowsMachine(EngineMachine):
    """The same, with rows that fail and tokens that spoil what is computed in their step."""

    rows_fail = True


TestR4R14FailingRowsMachine = pytest.mark.timeout(300)(FailingRowsMachine.TestCase)
TestR4R14FailingRowsMachine.settings = TestR4EngineMachine.settings
