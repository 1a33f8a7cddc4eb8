"""Any order of events leaves the block accounting exact and every read right."""

import pytest
from engine_model import FULL, Oracle, alive, check_ownership, make_scheduler, window
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from core.engine.request import Request, State
from core.sampling_params import SamplingParams

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=30)


class EngineMachine(RuleBasedStateMachine):
    """Add, step, abort, stop one answer, fail one row, on a cache small enough that preemption is common."""

    @initialize(
        groups=st.sampled_from([(FULL,), (window(6),), (FULL, window(6))]),
        num_blocks=st.integers(10, 24),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 40),
        prefix_caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        separate_steps=st.booleans(),
    )
    def start(self, groups, num_blocks, max_num_seqs, budget, prefix_caching, policy, separate_steps):
        self.scheduler = make_scheduler(
            groups=groups,
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max(budget, 2) if separate_steps else budget,
            prefix_caching=prefix_caching,
            policy=policy,
            separate_steps=separate_steps,
        )
        self.oracle = Oracle(self.scheduler)
        self.added = 0

    @rule(
        prompt=TOKENS,
        n=st.integers(1, 3),
        max_tokens=st.integers(1, 9),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "other"]),
        ignore_eos=st.booleans(),
    )
    def add(self, prompt, n, max_tokens, priority, salt, ignore_eos):
        self.added += 1
        params = SamplingParams(n=n, max_tokens=max_tokens, ignore_eos=ignore_eos)
        request = Request(
            request_id=str(self.added), prompt_token_ids=prompt, params=params, priority=priority, cache_salt=salt
        )
        self.scheduler.add(request, seed=self.added)

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

    @rule(choice=st.integers(0, 100))
    def fail_one_row(self, choice):
        running = self.scheduler.running
        if running:
            self.oracle.step(errors=frozenset({running[choice % len(running)].sequence_id}))

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


TestEngineMachine = pytest.mark.timeout(300)(EngineMachine.TestCase)
TestEngineMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
