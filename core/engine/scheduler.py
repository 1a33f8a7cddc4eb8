"""Who computes what in the next step.

`schedule` spends one step's token budget: running sequences first, in order of urgency, then waiting ones.
Prompts are computed in chunks; prefixes found in the cache are skipped; when no block is free the least
urgent sequence gives its blocks back and starts again later. It counts; it never touches a tensor.
"""

from bisect import insort
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic

from core.config import Settings
from core.contracts.platform import SchedulingLimits
from core.contracts.runner import Batch, ScheduledSequence, SequenceResult
from core.engine.kv_cache import KVCache
from core.engine.request import Request, Sequence, SequenceLimits, State, sequences_of


class Phase(Enum):
    """Which sequences a step may hold. Hardware that cannot mix gets prompts and decodes in turn."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"

    def accepts(self, num_tokens: int) -> bool:
        return num_tokens > 0 and (self is Phase.MIXED or (num_tokens > 1) == (self is Phase.PREFILL))


@dataclass(slots=True)
class Plan:
    """A step being planned: what is left of its budget, and who takes part with how many tokens."""

    phase: Phase
    budget: int
    parts: dict[Sequence, int] = field(default_factory=dict[Sequence, int])
    preempted: bool = False

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        self.parts[sequence] = num_tokens
        self.budget -= num_tokens


@dataclass(slots=True)
class SchedulerStatistics:
    """Counters since the start."""

    num_preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


class Scheduler:
    """Every sequence that is not finished, and the blocks they own."""

    def __init__(
        self, settings: Settings, cache: KVCache, shapes: SchedulingLimits, limits: SequenceLimits
    ) -> None:
        self.cache = cache
        self.limits = limits
        self.statistics = SchedulerStatistics()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.settings = settings
        self.shapes = shapes
        self._by_priority = settings.scheduling_policy == "priority"
        self._next_id = 0
        self._requests: dict[str, list[Sequence]] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request, seed: int) -> None:
        """Queue a checked request. Its id is not in use."""
        assert request.request_id not in self._requests
        sequences = sequences_of(request, self._next_id, seed, self.limits, len(self.cache.groups))
        self._next_id += len(sequences)
        self._requests[request.request_id] = sequences
        for sequence in sequences:
            self._enqueue(sequence)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def abort(self, request_id: str) -> list[Sequence]:
        """End a request wherever it is; returns the sequences that were still alive."""
        alive = [s for s in self._requests.get(request_id, []) if s.state is not State.FINISHED]
        for sequence in alive:
            self.finish(sequence)
        return alive

    def stop(self, request_id: str, index: int) -> None:
        """End one answer of a request; nothing happens when it has ended already."""
        for sequence in self._requests.get(request_id, []):
            if sequence.index == index and sequence.state is not State.FINISHED:
                self.finish(sequence)
                return

    def schedule(self) -> Batch | None:
        """The next step, or None when nothing waits or runs."""
        phases = [Phase.PREFILL, Phase.DECODE] if self.shapes.separate_steps else [Phase.MIXED]
        for phase in phases:
            plan = Plan(phase, self._budget(phase))
            self._continue_running(plan)
            if not plan.preempted and phase is not Phase.DECODE:
                self._admit_waiting(plan)
            if plan.parts:
                return self._batch(plan)
        return None

    def update(
        self, batch: Batch, results: list[SequenceResult]
    ) -> list[tuple[Sequence, SequenceResult, str | None]]:
        """Take a step's results in: append tokens, finish sequences. Returns (sequence, result, finish reason)."""
        by_id = {s.sequence_id: s for s in self.running}
        changes: list[tuple[Sequence, SequenceResult, str | None]] = []
        for part, result in zip(batch.sequences, results, strict=True):
            sequence = by_id[part.sequence_id]
            if result.error is not None and sequence.borrowed:
                self._start_over(sequence)
                continue
            if part.samples and part.pooling is not None and result.pooled is None and result.error is None:
                result.error = "the runner does not pool"
            self._drop_reported(sequence, part, result)
            self.cache.advance(sequence, part.num_tokens)
            reason = "error" if result.error is not None else self._append(sequence, result)
            if reason is not None:
                self.finish(sequence, trusted=result.error is None)
            if reason is not None or result.token_ids or result.prompt_logprobs:
                changes.append((sequence, result, reason))
        return changes

    def finish(self, sequence: Sequence, *, trusted: bool = True) -> None:
        """Take a sequence out and release its blocks; what they hold is reused only if it is `trusted`."""
        (self.running if sequence.state is State.RUNNING else self.waiting).remove(sequence)
        sequence.state = State.FINISHED
        self.cache.release(sequence, trusted=trusted)
        family = self._requests[sequence.request.request_id]
        if all(s.state is State.FINISHED for s in family):
            del self._requests[sequence.request.request_id]

    def _drop_reported(self, sequence: Sequence, part: ScheduledSequence, result: SequenceResult) -> None:
        """A preempted prompt is computed again; its log-probabilities are given out once."""
        del result.prompt_logprobs[: max(0, sequence.num_reported - part.start)]
        sequence.num_reported = max(sequence.num_reported, part.start + part.num_tokens)

    def _append(self, sequence: Sequence, result: SequenceResult) -> str | None:
        """Append sampled tokens up to the one that ends the sequence; returns the finish reason."""
        if result.pooled is not None:
            return "stop"
        for i, token in enumerate(result.token_ids):
            sequence.token_ids.append(token)
            reason = None
            if token in sequence.stop_ids and sequence.num_output > sequence.request.params.min_tokens:
                reason = "stop"
            elif sequence.num_output >= sequence.max_tokens:
                reason = "length"
            if reason is not None:
                del result.token_ids[i + 1 :], result.logprobs[i + 1 :]
                return reason
        return None

    def _budget(self, phase: Phase) -> int:
        """Tokens of the next step. Prompts get less of it while others decode."""
        most = self.settings.max_num_batched_tokens
        decoding = sum(sequence.num_pending == 1 for sequence in self.running)
        if phase is not Phase.MIXED or decoding == 0:
            return most
        return min(most, decoding + self.settings.prefill_chunk_size)

    def _continue_running(self, plan: Plan) -> None:
        for sequence in list(self.running):
            if plan.budget == 0:
                return
            num_tokens = self.cache.chunk(sequence, plan.budget)
            if sequence.state is State.RUNNING and plan.phase.accepts(num_tokens):
                while not self.cache.extend(sequence, sequence.num_computed + num_tokens):
                    victim = self.running[-1]
                    self._preempt(victim, plan)
                    if victim is sequence:
                        break
                else:
                    plan.add(sequence, num_tokens)

    def _admit_waiting(self, plan: Plan) -> None:
        for sequence in list(self.waiting):
            room = sequence.num_pending if self.settings.whole else 1
            if plan.budget < room or len(self.running) >= self.settings.max_num_seqs:
                return
            if self._waits_for_parent(sequence):
                continue
            forked = sequence.parent is not None and self.cache.fork(sequence.parent, sequence)
            found = None if forked else self._look_up_prefix(sequence)
            num_tokens = self.cache.chunk(sequence, plan.budget)
            if plan.phase.accepts(num_tokens):  # else it has one token left, and decodes in the next step
                if not self.cache.extend(sequence, sequence.num_computed + num_tokens):
                    self.cache.release(sequence)
                    return
                plan.add(sequence, num_tokens)
            self._count_admission(sequence, found)
            sequence.borrowed = forked or bool(found)
            sequence.parent = None
            self.waiting.remove(sequence)
            sequence.state = State.RUNNING
            insort(self.running, sequence, key=self._order)

    def _waits_for_parent(self, sequence: Sequence) -> bool:
        parent = sequence.parent
        return parent is not None and parent.state is not State.FINISHED and parent.num_output == 0

    def _look_up_prefix(self, sequence: Sequence) -> int | None:
        """Tokens found in the cache; None when nothing was looked for."""
        if sequence.mistrusts:
            return None
        reports = sequence.request.params.prompt_logprobs is not None and sequence.num_output == 0
        if reports or not self.cache.prefix_caching:  # every prompt position must be computed to be seen
            return None
        return self.cache.match_prefix(sequence)

    def _count_admission(self, sequence: Sequence, found: int | None) -> None:
        """At the first admission only: what a preempted sequence finds of its own was nobody's saving."""
        if sequence.num_cached is None:
            sequence.admitted_at = monotonic()
            sequence.num_cached = found or 0
            self.statistics.prefix_queries += 0 if found is None else len(sequence.token_ids)
            self.statistics.prefix_hits += found or 0

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        assert sequence not in plan.parts  # victims come after everybody who was planned
        plan.preempted = True
        self._put_back(sequence)
        self.statistics.num_preemptions += 1

    def _start_over(self, sequence: Sequence) -> None:
        """A sequence failed that reads what others computed. Theirs may be at fault: a single NaN spoils what
        its own sequence computed before it in the same step. It computes everything itself before it is failed.
        """
        sequence.mistrusts = True
        self._put_back(sequence, trusted=False)

    def _put_back(self, sequence: Sequence, *, trusted: bool = True) -> None:
        self.cache.release(sequence, trusted=trusted)
        self.running.remove(sequence)
        sequence.state = State.WAITING
        self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=self._order)

    def _order(self, sequence: Sequence) -> tuple[int, int]:
        return (sequence.request.priority if self._by_priority else 0, sequence.sequence_id)

    def _batch(self, plan: Plan) -> Batch:
        parts = sorted(plan.parts.items(), key=lambda part: part[1] > 1)
        return Batch(
            sequences=tuple(self._scheduled(sequence, count) for sequence, count in parts),
            num_decodes=sum(count == 1 for _, count in parts),
            num_tokens=sum(count for _, count in parts),
            discarded=self.cache.take_discarded(),
            copies=self.cache.take_copies(),
        )

    def _scheduled(self, sequence: Sequence, num_tokens: int) -> ScheduledSequence:
        return ScheduledSequence(
            sequence_id=sequence.sequence_id,
            token_ids=sequence.token_ids,
            num_prompt=sequence.num_prompt,
            start=sequence.num_computed,
            num_tokens=num_tokens,
            blocks=sequence.blocks,
            samples=num_tokens == sequence.num_pending,
            params=sequence.request.params,
            stop_ids=sequence.stop_ids,
            seed=sequence.seed,
            pooling=sequence.request.pooling,
            second=sequence.request.second,
            skip=sequence.request.skip,
        )
