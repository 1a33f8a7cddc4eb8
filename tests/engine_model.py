"""A scheduler driven without a model, and an oracle that knows what every slot of the cache must hold.

Each slot stores a fingerprint of the tokens up to and including its own. Reading a slot that holds another
fingerprint is what a stale, shared-by-mistake or overwritten block looks like.
"""

import hashlib
from collections.abc import Sequence

from core.config import Settings
from core.contracts.platform import SchedulingLimits
from core.contracts.runner import Batch, CacheGroup, ScheduledSequence, SequenceResult
from core.engine.kv_cache import KVCache
from core.engine.request import Request, SequenceLimits
from core.engine.request import Sequence as EngineSequence
from core.engine.scheduler import Scheduler
from core.sampling_params import SamplingParams

EOS = 0
FULL = CacheGroup(name="full", layers=(0,))


def window(size: int) -> CacheGroup:
    return CacheGroup(name=f"window_{size}", layers=(1,), window=size)


def make_scheduler(
    *,
    num_blocks: int = 32,
    block_size: int = 4,
    groups: tuple[CacheGroup, ...] = (FULL,),
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    prefix_caching: bool = True,
    policy: str = "fcfs",
    separate_steps: bool = False,
) -> Scheduler:
    """A scheduler whose every group has `num_blocks` usable blocks."""
    max_model_len = num_blocks * block_size
    settings = Settings(
        dtype="float32",
        seed=0,
        max_model_len=max_model_len,
        max_model_len_asked=True,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        kv_cache_memory=None,
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


def alive(scheduler: Scheduler) -> list[EngineSequence]:
    return [*scheduler.waiting, *scheduler.running]


class Oracle:
    """Executes batches on fingerprints and fails on the first wrong read."""

    def __init__(self, scheduler: Scheduler, alphabet: int = 3) -> None:
        self.scheduler = scheduler
        self.alphabet = alphabet
        self.slots: list[dict[int, bytes]] = [{} for _ in scheduler.cache.groups]
        self.steps = 0

    def step(self, errors: frozenset[int] = frozenset()) -> Batch | None:
        """One step; sequences whose id is in `errors` fail. Returns the batch, None when there was no work."""
        batch = self.scheduler.schedule()
        if batch is None:
            return None
        self.steps += 1
        size = self.scheduler.cache.block_size
        for held, dead, copies in zip(self.slots, batch.discarded, batch.copies, strict=True):
            for block in dead:
                for offset in range(size):
                    held.pop(block * size + offset, None)
            for source, destination in copies:
                for offset in range(size):
                    held[destination * size + offset] = held.get(source * size + offset, b"")
        for part in batch.sequences:
            self._write(part)
        results = [self._read(part, part.sequence_id in errors) for part in batch.sequences]
        self.scheduler.update(batch, results)
        return batch

    def run(self, max_steps: int = 2000) -> None:
        """Until nothing is left to do."""
        for _ in range(max_steps):
            if self.step() is None:
                return
        raise AssertionError(f"not finished after {max_steps} steps")

    def _write(self, part: ScheduledSequence) -> None:
        size = self.scheduler.cache.block_size
        prints = fingerprints(part.token_ids[: part.start + part.num_tokens])
        for position in range(part.start, part.start + part.num_tokens):
            for held, blocks in zip(self.slots, part.blocks, strict=True):
                block = blocks[position // size]
                assert block != 0, "a token is written to the block that belongs to nobody"
                held[block * size + position % size] = prints[position]

    def _read(self, part: ScheduledSequence, fails: bool) -> SequenceResult:
        size, end = self.scheduler.cache.block_size, part.start + part.num_tokens
        prints = fingerprints(part.token_ids[:end])
        for group, held, blocks in zip(self.scheduler.cache.groups, self.slots, part.blocks, strict=True):
            oldest = 0 if group.window is None else max(0, part.start - group.window + 1)
            for position in range(oldest, end):
                found = held.get(blocks[position // size] * size + position % size)
                assert found == prints[position], f"sequence {part.sequence_id} read a wrong slot at {position}"
        if fails:
            return SequenceResult(error="injected")
        return SequenceResult(token_ids=[prints[-1][0] % self.alphabet] if part.samples else [])


def fingerprints(token_ids: Sequence[int]) -> list[bytes]:
    prints, parent = [], b""
    for token in token_ids:
        parent = hashlib.blake2b(parent + token.to_bytes(4, "little"), digest_size=8).digest()
        prints.append(parent)
    return prints


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
