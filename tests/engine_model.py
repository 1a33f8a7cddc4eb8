"""A scheduler driven without a model, and an oracle that knows what every slot of the cache must hold.

Each slot stores a fingerprint of the tokens up to and including its own. Reading a slot that holds another
fingerprint is what a stale, shared-by-mistake or overwritten block looks like. A block of a recurrent group stores one,
in its first slot: that of the tokens up to where the step that wrote it ended.
"""

import hashlib
from collections.abc import Iterator, Sequence

from core.config import Settings
from core.contracts.platform import SchedulingLimits
from core.contracts.runner import Batch, CacheGroup, ScheduledSequence, SequenceResult
from core.engine.kv_cache import KVCache
from core.engine.request import Request, SequenceLimits
from core.engine.request import Sequence as EngineSequence
from core.engine.scheduler import Scheduler
from core.sampling_params import SamplingParams

EOS = 0
BAD = 666_666  # a token whose row never gives anything finite
GARBAGE = b"not a number"
FULL = CacheGroup(name="full", layers=(0,))


STATE = CacheGroup(name="state", layers=(2,), window=2, recurrent=True)


def window(size: int) -> CacheGroup:
    return CacheGroup(name=f"window_{size}", layers=(1,), window=size)


def make_scheduler(
    *,
    num_blocks: int = 32,
    block_size: int = 4,
    groups: tuple[CacheGroup, ...] = (FULL,),
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    prefill_chunk_size: int | None = None,
    prefix_caching: bool = True,
    policy: str = "fcfs",
    separate_steps: bool = False,
) -> Scheduler:
    """A scheduler whose every group has `num_blocks` usable blocks."""
    max_model_len = num_blocks * block_size
    settings = Settings(
        quantization="none",
        dtype="float32",
        seed=0,
        max_model_len=max_model_len,
        max_model_len_asked=True,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        prefill_chunk_size=prefill_chunk_size or max_num_batched_tokens,
        block_size=block_size,
        kv_cache_memory=None,
        kv_cache_dtype="float32",
        enable_prefix_caching=prefix_caching,
        scheduling_policy=policy,
    )
    cache = KVCache(groups, [num_blocks + 1] * len(groups), block_size, prefix_caching)
    limits = SequenceLimits(max_model_len=max_model_len, eos_token_ids=frozenset({EOS}))
    return Scheduler(settings, cache, SchedulingLimits(separate_steps=separate_steps), limits)


def submit(
    scheduler: Scheduler,
    prompt: Sequence[int] | int,
    *,
    request_id: str | None = None,
    priority: int = 0,
    salt: str = "",
    **params: object,
) -> list[EngineSequence]:
    """Queue a prompt (a number makes one of distinct tokens); returns its sequences."""
    known = {s.sequence_id for s in alive(scheduler)}
    if isinstance(prompt, int):
        first = 1000 * (1 + max(known, default=-1))
        prompt = list(range(first + 1, first + 1 + prompt))
    request = Request(
        request_id=request_id or f"r{max(known, default=-1) + 1}-{len(known)}",
        prompt_token_ids=list(prompt),
        params=SamplingParams(**({"max_tokens": 8, "ignore_eos": True} | params)),  # type: ignore[arg-type]
        priority=priority,
        cache_salt=salt,
    )
    scheduler.add(request, seed=0)
    return [s for s in alive(scheduler) if s.sequence_id not in known]


def one(scheduler: Scheduler, prompt: Sequence[int] | int, **params: object) -> EngineSequence:
    """Queue a prompt that gets one answer."""
    (sequence,) = submit(scheduler, prompt, **params)  # type: ignore[arg-type]
    return sequence


def answer(sequence: EngineSequence) -> list[int]:
    return list(sequence.token_ids[sequence.num_prompt :])


def alive(scheduler: Scheduler) -> list[EngineSequence]:
    return [*scheduler.waiting, *scheduler.running]


class Oracle:
    """Executes batches on fingerprints, and fails on the first wrong read, shape or token.

    A row fails when its tokens hold BAD, or when it is told to. It then spoils everything that it writes in that
    step, as a NaN does, and so does whoever reads what is spoiled; only they may be given up for it.
    """

    def __init__(self, scheduler: Scheduler, alphabet: int = 3) -> None:
        self.scheduler = scheduler
        self.alphabet = alphabet
        self.slots: list[dict[int, bytes]] = [{} for _ in scheduler.cache.groups]
        self.steps = 0
        self.injected: set[int] = set()

    def step(self, errors: frozenset[int] = frozenset()) -> Batch | None:
        """One step; sequences whose id is in `errors` fail. Returns the batch, None when there was no work."""
        batch = self.scheduler.schedule()
        if batch is None:
            return None
        self.steps += 1
        self.injected |= errors
        check_shape(self.scheduler, batch)
        self._move(batch)
        prints = self._fingerprints(batch)
        before = self._states_before(batch, prints)
        self._write(batch, prints)
        failing = {i for i, part in enumerate(batch.sequences) if part.sequence_id in errors}
        spoiled = self._spoil(batch, failing | before)
        results = [
            self._result(part, prints[i], i in spoiled, part.sequence_id in errors)
            for i, part in enumerate(batch.sequences)
        ]
        for sequence, result, reason in self.scheduler.update(batch, results):
            self._check_change(sequence, result, reason)
        return batch

    def run(self, max_steps: int = 2000) -> None:
        """Until nothing is left to do."""
        for _ in range(max_steps):
            if self.step() is None:
                return
        raise AssertionError(f"not finished after {max_steps} steps")

    def _move(self, batch: Batch) -> None:
        size = self.scheduler.cache.block_size
        for held, dead, copies in zip(self.slots, batch.discarded, batch.copies, strict=True):
            for block in dead:
                for offset in range(size):
                    held.pop(block * size + offset, None)
            for source, destination in copies:
                for offset in range(size):
                    held[destination * size + offset] = held.get(source * size + offset, b"")

    def _fingerprints(self, batch: Batch) -> list[list[bytes]]:
        """Of each part's tokens up to where it ends."""
        salts = {s.sequence_id: s.request.cache_salt for s in self.scheduler.running}
        return [
            fingerprints(part.token_ids[: part.start + part.num_tokens], salts[part.sequence_id])
            for part in batch.sequences
        ]

    def _states_before(self, batch: Batch, prints: list[list[bytes]]) -> set[int]:
        """States are read before anybody writes. Returns the parts whose state is garbage."""
        garbage: set[int] = set()
        for g, group in enumerate(self.scheduler.cache.groups):
            for i, part in enumerate(batch.sequences):
                if group.recurrent and part.start:
                    found = self.slots[g].get(self._state_slot(g, part, part.start))
                    assert found in (prints[i][part.start - 1], GARBAGE), (
                        f"sequence {part.sequence_id} read a wrong state at {part.start}"
                    )
                    garbage |= {i} if found == GARBAGE else set()
        return garbage

    def _state_slot(self, g: int, part: ScheduledSequence, num_tokens: int) -> int:
        """Where the state after so many tokens is kept."""
        size = self.scheduler.cache.block_size
        block = part.blocks[g][(num_tokens - 1) // size]
        assert block > 0, "a state is kept in the block that belongs to nobody"
        return block * size

    def _write(self, batch: Batch, prints: list[list[bytes]]) -> None:
        """Everybody writes before anybody reads what is not a state."""
        written: list[set[int]] = [set() for _ in self.slots]
        for part, own in zip(batch.sequences, prints, strict=True):
            for g, position, slot in self._written(part):
                assert slot >= self.scheduler.cache.block_size, "written to the block that belongs to nobody"
                assert slot not in written[g], "two tokens write the same slot"
                written[g].add(slot)
                self.slots[g][slot] = own[position]

    def _spoil(self, batch: Batch, spoiled: set[int]) -> set[int]:
        """Overwrite with garbage what spoiled parts write, until no further part reads any."""
        spoiled |= {i for i, p in enumerate(batch.sequences) if BAD in p.token_ids[: p.start + p.num_tokens]}
        known = -1
        while known != len(spoiled):
            known = len(spoiled)
            for i in spoiled:  # before anybody is asked: who reads may stand before who spoils
                part = batch.sequences[i]
                for g, _, slot in self._written(part):
                    self.slots[g][slot] = GARBAGE
            for i, part in enumerate(batch.sequences):
                if any(self.slots[g].get(slot) == GARBAGE for g, _, slot in self._read(part)):
                    spoiled.add(i)
        return spoiled

    def _result(
        self, part: ScheduledSequence, prints: list[bytes], spoiled: bool, fails: bool
    ) -> SequenceResult:
        for g, position, slot in self._read(part):
            found = self.slots[g].get(slot)
            right = found == prints[position] or (spoiled and found == GARBAGE)
            assert right, f"sequence {part.sequence_id} read a wrong slot at {position}"
        if fails or (spoiled and part.samples):
            return SequenceResult(error="injected")
        return SequenceResult(token_ids=[self._token(prints[-1], part.seed)] if part.samples else [])

    def _read(self, part: ScheduledSequence) -> Iterator[tuple[int, int, int]]:
        """(group, position, slot) of everything that a part looks at once all have written."""
        for g, group in enumerate(self.scheduler.cache.groups):
            oldest = 0 if group.window is None else max(0, part.start - group.window + 1)
            if not group.recurrent:
                yield from self._slots(g, part, oldest)

    def _written(self, part: ScheduledSequence) -> Iterator[tuple[int, int, int]]:
        """(group, position, slot) of everything that a part writes."""
        end = part.start + part.num_tokens
        for g, group in enumerate(self.scheduler.cache.groups):
            if group.recurrent:
                yield g, end - 1, self._state_slot(g, part, end)
            else:
                yield from self._slots(g, part, part.start)

    def _slots(self, g: int, part: ScheduledSequence, start: int) -> Iterator[tuple[int, int, int]]:
        size, blocks = self.scheduler.cache.block_size, part.blocks[g]
        for position in range(start, part.start + part.num_tokens):
            yield g, position, blocks[position // size] * size + position % size

    def _token(self, fingerprint: bytes, seed: int) -> int:
        return (fingerprint[0] + seed) % self.alphabet

    def _check_change(self, sequence: EngineSequence, result: SequenceResult, reason: str | None) -> None:
        """Every token follows from those before it; nobody is given up who did not fail."""
        tokens = sequence.token_ids
        if result.token_ids:
            expected = self._token(fingerprints(tokens[:-1], sequence.request.cache_salt)[-1], sequence.seed)
            assert (result.token_ids, tokens[-1]) == ([expected], expected)
        if reason == "error":
            assert BAD in tokens or sequence.sequence_id in self.injected, "given up for another's failure"


def run(oracle: Oracle) -> list[Batch]:
    """All steps that are left."""
    batches: list[Batch] = []
    while (batch := oracle.step()) is not None:
        batches.append(batch)
    return batches


def fingerprints(token_ids: Sequence[int], salt: str = "") -> list[bytes]:
    prints, parent = [], salt.encode()
    for token in token_ids:
        parent = hashlib.blake2b(parent + token.to_bytes(4, "little"), digest_size=8).digest()
        prints.append(parent)
    return prints


def check_shape(scheduler: Scheduler, batch: Batch) -> None:
    """A step is within its limits and says of itself what it is."""
    settings, counts = scheduler.settings, [part.num_tokens for part in batch.sequences]
    assert 0 < sum(counts) == batch.num_tokens <= settings.max_num_batched_tokens
    assert len(counts) <= settings.max_num_seqs
    assert min(counts) > 0
    assert [count == 1 for count in counts] == [i < batch.num_decodes for i in range(len(counts))]
    if scheduler.shapes.separate_steps:
        assert batch.num_decodes in (0, len(counts))


def check_ownership(scheduler: Scheduler) -> None:
    """Every block's owners are exactly the sequences whose tables hold it; the others are free."""
    for g, pool in enumerate(scheduler.cache.pools):
        owners = [0] * pool.num_blocks
        for sequence in alive(scheduler):
            held = [block for block in sequence.blocks[g] if block]
            assert len(held) == len(set(held)), "a sequence holds a block twice"
            for block in held:
                owners[block] += 1
        assert [pool.owners(block) for block in range(pool.num_blocks)] == owners
        assert pool.num_free == sum(count == 0 for count in owners[1:])
