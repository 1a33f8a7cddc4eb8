"""The engine: schedule, run, update, once per step.

Offline it is driven by `LLM` in the caller's process, served by `core.engine.process` in one of its own.
"""

import random
from collections.abc import Iterable
from typing import Any

import msgspec

from core.clock import StageClock
from core.config import Settings
from core.contracts.model import Pooling
from core.contracts.platform import SchedulingLimits
from core.contracts.runner import CacheGroup, Runner, SequenceResult, TokenLogprobs
from core.engine.kv_cache import KVCache
from core.engine.request import Request, Sequence, SequenceLimits
from core.engine.scheduler import Scheduler
from core.errors import RequestError
from core.ledger import Ledger


class EngineInfo(msgspec.Struct, kw_only=True, frozen=True):
    """What a front end must know of an engine that may run elsewhere.

    pooling         what it makes of a text; None: it generates
    quantization    "none", or the formats in which linear layers are held, with commas between
    kv_cache_dtype  what keys and values are held in
    num_kv_tokens   tokens that the whole KV cache holds, `block_size` in a block
    ledger          what was chosen at load, as plain data
    """

    model: str
    model_path: str
    tokenizer_path: str | None
    platform: str
    device: str
    dtype: str
    quantization: str
    kv_cache_dtype: str
    architecture: str
    pooling: Pooling | None
    max_model_len: int
    max_num_seqs: int
    scheduling_policy: str
    vocab_size: int
    eos_token_ids: list[int]
    sampling_defaults: dict[str, Any]
    num_kv_tokens: int
    block_size: int
    prefix_caching: bool
    kv_cache_bytes: int
    ledger: list[dict[str, Any]]


class SequenceDelta(msgspec.Struct, kw_only=True):
    """What a step added to one answer. `finish_reason` is stop, length, abort or error once it is over.

    admitted_at  when the answer was first given a place in a step, by the monotonic clock
    """

    request_id: str
    index: int
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []
    finish_reason: str | None = None
    stop_token: int | None = None
    num_cached_tokens: int = 0
    admitted_at: float | None = None
    error: str | None = None
    pooled: bytes | None = None


class EngineStatistics(msgspec.Struct, kw_only=True, frozen=True):
    """A snapshot. Token counts are since the start, but for those of the last step; `kv_cache_usage` is 0 to 1."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    num_preemptions: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    prompt_tokens: int
    generation_tokens: int
    num_steps: int
    num_step_tokens: int


class Engine:
    """One model on one device group, and the requests it works on. Not thread-safe: one owner calls it."""

    def __init__(
        self,
        *,
        info: EngineInfo,
        settings: Settings,
        groups: tuple[CacheGroup, ...],
        num_blocks: tuple[int, ...],
        shapes: SchedulingLimits,
        runner: Runner,
        ledger: Ledger,
        clock: StageClock,
    ) -> None:
        self.info = info
        self.settings = settings
        self.ledger = ledger
        self.clock = clock
        self._runner = runner
        self._random = random.Random(settings.seed)
        self._prompt_tokens = self._generation_tokens = self._num_steps = self._num_step_tokens = 0
        limits = SequenceLimits(max_model_len=info.max_model_len, eos_token_ids=frozenset(info.eos_token_ids))
        cache = KVCache(groups, num_blocks, settings.block_size, settings.enable_prefix_caching)
        self.scheduler = Scheduler(settings, cache, shapes, limits)

    @property
    def num_steps(self) -> int:
        """Steps computed since the start."""
        return self._num_steps

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, request: Request) -> None:
        """Queue a request that `Intake` has checked.

        Raises RequestError when its id is in use.
        """
        if request.request_id in self.scheduler:
            raise RequestError(f"request id {request.request_id} is in use", parameter="request_id")
        given = request.params.seed
        self.scheduler.add(request, self._random.getrandbits(62) if given is None else given)
        self._prompt_tokens += len(request.prompt_token_ids)

    def abort(self, request_ids: Iterable[str]) -> list[SequenceDelta]:
        """End requests wherever they are; unknown ids are ignored, for they may just have finished."""
        return [
            SequenceDelta(request_id=request_id, index=sequence.index, finish_reason="abort")
            for request_id in request_ids
            for sequence in self.scheduler.abort(request_id)
        ]

    def stop(self, answers: Iterable[tuple[str, int]]) -> None:
        """End single answers, by request id and index, because whoever reads their text found a stop string."""
        for request_id, index in answers:
            self.scheduler.stop(request_id, index)

    def step(self) -> list[SequenceDelta]:
        """Compute one batch; returns what it added to each answer. Nothing to do returns nothing."""
        self.clock.start()
        batch = self.scheduler.schedule()
        self.clock.mark("schedule")
        if batch is None:
            return []
        results = self._runner.step(batch)
        self.clock.mark("forward")
        changes = self.scheduler.update(batch, results)
        self._num_steps += 1
        self._num_step_tokens = batch.num_tokens
        deltas = [self._delta(sequence, result, reason) for sequence, result, reason in changes]
        self.clock.mark("update")
        return deltas

    def statistics(self) -> EngineStatistics:
        """How things stand between two steps."""
        scheduler = self.scheduler
        return EngineStatistics(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            kv_cache_usage=scheduler.cache.usage,
            num_preemptions=scheduler.statistics.num_preemptions,
            prefix_cache_queries=scheduler.statistics.prefix_queries,
            prefix_cache_hits=scheduler.statistics.prefix_hits,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            num_steps=self._num_steps,
            num_step_tokens=self._num_step_tokens,
        )

    def close(self) -> None:
        """Drop all requests and give the device back."""
        self._runner.close()

    def _delta(self, sequence: Sequence, result: SequenceResult, reason: str | None) -> SequenceDelta:
        self._generation_tokens += len(result.token_ids)
        last = result.token_ids[-1] if result.token_ids else None
        named = reason == "stop" and last in sequence.request.params.stop_token_ids
        return SequenceDelta(
            request_id=sequence.request.request_id,
            index=sequence.index,
            token_ids=result.token_ids,
            logprobs=result.logprobs,
            prompt_logprobs=result.prompt_logprobs,
            finish_reason=reason,
            stop_token=last if named else None,
            num_cached_tokens=sequence.num_cached or 0,
            admitted_at=sequence.admitted_at,
            error=result.error,
            pooled=result.pooled,
        )
