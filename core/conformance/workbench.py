"""What the trials of whole answers share: tiny models, prompts around a block's edges, and the reference's answers.

An answer is right when every token is the reference's. Where two tokens are as likely as one another within a margin
that the dtype's rounding explains, either is right, and what follows cannot be compared.
"""

import random
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from core.conformance.driver import MAX_NUM_SEQS, Answer, Side, complete
from core.conformance.heads import head_dim_for
from core.conformance.reference_platform import DEVICE, ReferencePlatform
from core.conformance.tiny import CONFIG, write_tiny_model
from core.contracts.platform import Capabilities, Device, Platform
from core.engine.engine import Engine
from core.errors import InsufficientMemory
from core.sampling_params import SamplingParams

MARGINS = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
"""In log-probability, how close to the likeliest another token must be to pass for it."""

WINDOW = 20
CANDIDATES = 5  # of the reference's at each place, by which a near tie is known


class NotSupported(Exception):
    """The platform does not do this, by its own word, which is the message."""


class Workbench:
    """A platform beside the reference, in one dtype.

    unit     tokens of one block, or of as many as hold eight
    prompts  by what is special about each; `crowd` are those that fill a small cache, and soon ask for more
    margin   within which another token passes for the likeliest
    figures  what the trial under way has measured, by name
    """

    def __init__(
        self, platform: Platform, device: Device, folder: Path, dtype: str, *, seed: int, length: int
    ) -> None:
        self.capabilities: Capabilities = platform.capabilities(device)
        self._seed, self._folder, self._source = seed, folder, random.Random(seed)
        size = self.capabilities.block_sizes[0]
        self.unit = size * -(-8 // size)
        self.ours = Side(platform=platform, device=device, dtype=dtype, block_size=size)
        reference = ReferencePlatform(like=self.capabilities)
        self.reference = Side(platform=reference, device=DEVICE, dtype=dtype, block_size=size)
        self.prompts = self._prompts()
        self.crowd = {f"of sequence {i}": self._random(2 * self.unit - 4) for i in range(self.num_seqs)}
        self.greedy = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
        self.margin = MARGINS[dtype]
        self.figures: dict[str, float] = {}
        self._expected: dict[tuple[object, ...], dict[str, Answer]] = {}

    @property
    def num_seqs(self) -> int:
        """Sequences that one step may hold, four at most."""
        return min(4, self.capabilities.scheduling.max_num_seqs or MAX_NUM_SEQS)

    def model(self, **changes: Any) -> Path:
        """The folder of a tiny model that the device accepts, written when it is first asked for."""
        head_dim = head_dim_for(self.capabilities, CONFIG["head_dim"])
        config = {"head_dim": head_dim, "max_position_embeddings": max(512, 6 * self.unit), **changes}
        folder = self._folder / ("-".join(f"{name}-{value}" for name, value in changes.items()) or "llama")
        if not folder.is_dir():
            write_tiny_model(folder, seed=self._seed, **config)
        return folder

    def windowed(self) -> Path:
        """A model with a sliding window."""
        if "sliding_window" not in self.capabilities.features:
            raise NotSupported("sliding_window is not among its features")
        return self.model(sliding_window=WINDOW)

    def expected(
        self, folder: Path, prompts: Mapping[str, Sequence[int]] | None = None, num_tokens: int | None = None
    ) -> dict[str, Answer]:
        """The reference's answers to `prompts`, each computed alone, with the candidates for every token."""
        prompts = self.prompts if prompts is None else prompts
        params = self.greedy.with_(logprobs=CANDIDATES, max_tokens=num_tokens or self.greedy.max_tokens)
        key = (folder.name, params.max_tokens, *prompts)
        if key not in self._expected:
            with self.reference.engine(folder, enable_prefix_caching=False) as engine:
                self._expected[key] = complete(engine, prompts, params, together=False)
        return self._expected[key]

    @contextmanager
    def crowded(self, side: Side, folder: Path, **settings: Any) -> Generator[Engine]:
        """An engine whose cache holds what `num_seqs` prompts of two units need, and no third unit for each."""
        if self.num_seqs < 2:
            raise NotSupported("a step holds one sequence, and one alone is never preempted")
        with side.engine(folder) as roomy:
            pools = roomy.scheduler.cache.pools
            block_bytes = roomy.info.kv_cache_bytes // sum(pool.num_blocks for pool in pools)
        num_blocks = self.unit // side.block_size * (2 * self.num_seqs + 1) + 1
        small = {"kv_cache_memory": num_blocks * block_bytes, "max_model_len": 3 * self.unit}
        with ExitStack() as stack:
            try:
                opened = side.engine(folder, max_num_seqs=self.num_seqs, **small, **settings)
                engine = stack.enter_context(opened)
            except InsufficientMemory as error:
                raise NotSupported(f"so small a cache cannot be had: {error}") from error
            yield engine

    def compared(self, expected: Mapping[str, Answer], actual: Mapping[str, Answer]) -> str:
        """What is wrong with some of the reference's answers as the platform gave them, or ""."""
        for name, answer in actual.items():
            if problem := difference(expected[name], answer, self.margin):
                return f"the answer to the prompt {name}: {problem}"
        return ""

    def _random(self, length: int) -> list[int]:
        """Token ids, none of them special."""
        return [self._source.randrange(3, CONFIG["vocab_size"]) for _ in range(length)]

    def _prompts(self) -> dict[str, list[int]]:
        unit = self.unit
        lengths = (1, 3, unit - 1, unit, unit + 1, 2 * unit + 3)
        made = {f"of {length} tokens": self._random(length) for length in lengths}
        longest = made[f"of {lengths[-1]} tokens"]
        return made | {"that begins like another": [*longest[: 2 * unit], 5, 9]}


def difference(expected: Answer, actual: Answer, margin: float) -> str:
    """Where an answer leaves the reference's, unless that is a near tie; "" where it does not."""
    if actual.error:
        return f"ended in error: {actual.error}"
    for place, (right, found) in enumerate(zip(expected.token_ids, actual.token_ids, strict=False)):
        if right != found:
            behind = behind_likeliest(expected, place, found)
            return "" if behind <= margin else f"token {place} is {found}, expected {right}"
    if len(expected.token_ids) != len(actual.token_ids):
        return f"{len(actual.token_ids)} tokens, expected {len(expected.token_ids)}"
    return ""


def behind_likeliest(expected: Answer, place: int, token: int) -> float:
    """By how much a token's log-probability lay below the likeliest's there; infinite past the candidates."""
    candidates = expected.logprobs[place]
    known = dict(zip(candidates.token_ids, candidates.logprobs, strict=True))
    return max(known.values()) - known[token] if token in known else float("inf")


def left_behind(engine: Engine) -> str:
    """What an engine without requests still holds, or ""."""
    now = engine.statistics()
    if now.num_running or now.num_waiting or now.kv_cache_usage:
        return (
            f"afterwards {now.num_running} sequences run, {now.num_waiting} wait, and {now.kv_cache_usage:.0%} of "
            "the cache has an owner"
        )
    return ""
