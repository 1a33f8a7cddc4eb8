"""Requests that come, wait, are preempted, aborted and stopped in any order, on an engine with hardly any cache.

Whatever happens to a request's neighbours, its answer is the one that transformers gives to it alone.
"""

import random
from pathlib import Path

from parity import Reference

from core import LLM, SamplingParams
from core.engine.engine import Engine
from core.engine.kv_cache import KVCache
from core.engine.request import Request

LENGTH = 12


class Storm:
    """Random events, the same for the same seed, on the engine of `folder`'s model.

    num_blocks  of each cache group: a few more than the longest sequence needs
    """

    def __init__(self, engine: Engine, reference: Reference, num_blocks: tuple[int, ...], seed: int) -> None:
        scheduler = engine.scheduler
        scheduler.cache = KVCache(
            scheduler.cache.groups,
            num_blocks,
            engine.settings.block_size,
            scheduler.settings.enable_prefix_caching,
        )
        self.engine, self.reference, self.random = engine, reference, random.Random(seed)
        self.prompts: dict[str, list[int]] = {}
        self.answers: dict[tuple[str, int], list[int]] = {}
        self.told: list[list[int]] = []  # conversations to go on with
        self.num_compared = 0

    def run(self, num_events: int) -> None:
        """So many events, then steps until nothing is left to do."""
        events = (self.add, self.add, self.step, self.step, self.step, self.step, self.abort, self.stop)
        for _ in range(num_events):
            self.random.choice(events)()
        while self.engine.has_work:
            self.step()
        for pool in self.engine.scheduler.cache.pools:
            assert pool.num_free == pool.usable, "blocks leaked"

    def add(self) -> None:
        request_id, prompt = f"r{len(self.prompts)}", self._prompt()
        self.prompts[request_id] = prompt
        params = SamplingParams(
            temperature=0,
            max_tokens=LENGTH,
            ignore_eos=True,
            n=self.random.choice((1, 1, 2)),
            detokenize=False,
        )
        self.engine.add(Request(request_id=request_id, prompt_token_ids=prompt, params=params))

    def step(self) -> None:
        for _ in range(self.random.randrange(1, 5)):
            for delta in self.engine.step():
                assert delta.error is None, delta.error
                key = (delta.request_id, delta.index)
                answer = self.answers.setdefault(key, [])
                answer += delta.token_ids
                if delta.finish_reason:
                    self._compare(*key)

    def abort(self) -> None:
        alive = [request_id for request_id in self.prompts if request_id in self.engine.scheduler]
        if alive and self.random.random() < 0.5:
            self.engine.abort([self.random.choice(alive)])

    def stop(self) -> None:
        running = self.engine.scheduler.running
        if running and self.random.random() < 0.5:
            sequence = self.random.choice(running)
            self.engine.stop([(sequence.request.request_id, sequence.index)])

    def _prompt(self) -> list[int]:
        """A conversation that goes on, the beginning of an earlier prompt and something else, or something new."""
        fresh = [self.random.randrange(5, 320) for _ in range(self.random.randrange(1, 40))]
        if self.told and self.random.random() < 0.4:
            fresh = self.random.choice(self.told) + fresh
        elif self.prompts and self.random.random() < 0.6:
            before = self.random.choice(list(self.prompts.values()))
            fresh = before[: self.random.randrange(1, len(before) + 1)] + fresh
        return fresh[:80]

    def _compare(self, request_id: str, index: int) -> None:
        prompt, answer = self.prompts[request_id], self.answers[request_id, index]
        assert len(answer) == LENGTH
        difference = self.reference.first_difference(prompt, answer)
        assert difference is None, f"{request_id}.{index}, {len(prompt)} tokens: {difference}"
        self.told.append([*prompt, *answer])
        self.num_compared += 1


def assert_storm_proof(
    folder: Path, num_blocks: tuple[int, ...], platform: str, seed: int, **settings: object
) -> None:
    """The engine's answers stay right through a storm in which sequences are preempted and prefixes found."""
    with LLM(
        str(folder),
        platform=platform,
        dtype="float32",
        skip_tokenizer_init=True,
        block_size=12,
        max_num_batched_tokens=48,
        max_num_seqs=5,
        **settings,
    ) as llm:
        storm = Storm(llm.engine, Reference(folder, attention="eager"), num_blocks, seed)
        storm.run(160)
        statistics = llm.engine.statistics()
    assert storm.num_compared > 20
    assert statistics.num_preemptions > 0
    assert statistics.prefix_cache_hits > 0 or not llm.engine.settings.enable_prefix_caching
