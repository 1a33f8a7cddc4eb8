"""Requests run through an engine, step by step, and what came of them. Knows nothing of what is right.

The engine is the one that serves, built as it is for everybody, with one difference: the platform is the object that
is tried, found under no name. So a platform can be tried before it is installed.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config import EngineConfig
from core.contracts.platform import Device, Platform
from core.contracts.runner import TokenLogprobs
from core.discovery import Plugins, load_plugins
from core.engine.build import build_engine
from core.engine.engine import Engine, SequenceDelta
from core.engine.request import Request
from core.errors import EngineError
from core.sampling_params import SamplingParams

MAX_STEPS = 20_000
"""More than any check takes; an engine that is not done by then never will be."""

MAX_NUM_SEQS = 8


@dataclass(frozen=True, kw_only=True)
class Alone(Plugins):
    """The plugins of this environment, of whose platforms none is chosen but this one."""

    platform: Platform
    device: Device

    def select_platform(self, name: str) -> tuple[Platform, Device]:
        return self.platform, self.device


@dataclass(frozen=True, kw_only=True)
class Side:
    """Where a model is run: a platform, its device, a dtype and the tokens in a block."""

    platform: Platform
    device: Device
    dtype: str
    block_size: int

    @contextmanager
    def engine(self, folder: Path, **settings: Any) -> Generator[Engine]:
        """An engine for the model in `folder`, closed at the end. Settings are `EngineConfig`'s.

        Raises the CoreError of whatever is wrong, and what the platform raised.
        """
        given: dict[str, Any] = {"dtype": self.dtype, "block_size": self.block_size, **settings}
        given.setdefault("max_num_seqs", self._most())
        config = EngineConfig(
            model=str(folder), platform=self.platform.name, skip_tokenizer_init=True, **given
        )
        found = load_plugins()
        plugins = Alone(
            platform=self.platform,
            device=self.device,
            architectures=found.architectures,
            fallbacks=found.fallbacks,
        )
        engine = build_engine(config, plugins=plugins)
        try:
            yield engine
        finally:
            engine.close()

    def _most(self) -> int:
        limit = self.platform.capabilities(self.device).scheduling.max_num_seqs
        return MAX_NUM_SEQS if limit is None else min(limit, MAX_NUM_SEQS)


@dataclass(slots=True)
class Answer:
    """One answer as it grows. `num_cached` counts the tokens of its prompt that were found in the cache."""

    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    finish_reason: str | None = None
    num_cached: int = 0
    error: str = ""

    def take(self, delta: SequenceDelta) -> None:
        """Grow by what a step added."""
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.num_cached = delta.num_cached_tokens
        self.error = delta.error or self.error


class Session:
    """Requests under way in an engine. answers: by the request's name and the answer's index."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.answers: dict[tuple[str, int], Answer] = {}

    def add(self, name: str, prompt: Sequence[int], params: SamplingParams) -> None:
        """Queue a request of token ids that the model knows."""
        self.engine.add(Request(request_id=name, prompt_token_ids=list(prompt), params=params))
        self.answers |= {(name, index): Answer() for index in range(params.n)}

    def step(self) -> list[SequenceDelta]:
        """One step; returns what it added."""
        return self._take(self.engine.step())

    def abort(self, names: Sequence[str]) -> list[SequenceDelta]:
        """End requests wherever they are."""
        return self._take(self.engine.abort(names))

    def finish(self) -> None:
        """Step until nothing is left to do. Raises EngineError when that does not come."""
        for _ in range(MAX_STEPS):
            if not self.engine.has_work:
                return
            self.step()
        raise EngineError(f"requests are unfinished after {MAX_STEPS:,} steps")

    def _take(self, deltas: list[SequenceDelta]) -> list[SequenceDelta]:
        for delta in deltas:
            self.answers[delta.request_id, delta.index].take(delta)
        return deltas


def complete(
    engine: Engine, prompts: Mapping[str, Sequence[int]], params: SamplingParams, *, together: bool = True
) -> dict[str, Answer]:
    """The first answer to each prompt, by its name: all at once, or one after the other."""
    session = Session(engine)
    for name, prompt in prompts.items():
        session.add(name, prompt, params)
        if not together:
            session.finish()
    session.finish()
    return {name: session.answers[name, 0] for name in prompts}
