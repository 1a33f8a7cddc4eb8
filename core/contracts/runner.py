"""The runner: holds a model and its cache, and turns a batch into tokens.

The core has one, `core.execution.runner.ModelRunner`, made of replaceable stages (prepare, forward, sample).
A platform that does not execute torch operations brings its own; scheduler and block tables stay the core's.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.clock import StageClock
from core.contracts.memory import MemoryStatistics
from core.contracts.model import Architecture, ModelDescription
from core.contracts.platform import Capabilities, Device, Platform
from core.pooling_params import PoolingParams
from core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from core.config import Settings
    from core.ledger import Ledger
    from core.weights.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class CacheGroup:
    """Layers whose cache is accounted together, with one block table per sequence.

    window     a token's keys are needed by the window - 1 tokens after it; None: for ever
    recurrent  a block holds the state after the newest of its tokens that ended a step, and nothing of the others
    """

    name: str
    layers: tuple[int, ...]
    window: int | None = None
    recurrent: bool = False


@dataclass(frozen=True, kw_only=True)
class RunnerContext:
    """Everything a runner is built from.

    clock  to mark the stages of a step on; what a runner does not mark counts as its forward pass
    """

    settings: "Settings"
    description: ModelDescription
    architecture: Architecture
    checkpoint: "Checkpoint"
    groups: tuple[CacheGroup, ...]
    platform: Platform
    device: Device
    capabilities: Capabilities
    ledger: "Ledger"
    clock: StageClock


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledSequence:
    """One sequence's part in a step. The arrays are the scheduler's own, to be read and not kept.

    token_ids   all tokens known so far, prompt and answer; this step computes [start, start + num_tokens)
    num_prompt  how many of them are the prompt
    blocks      per cache group, the block of each block_size tokens; 0 where a window has passed
    samples     whether the next token is sampled after the last one computed, or the text pooled
    stop_ids    tokens that end the answer; impossible before `params.min_tokens`
    seed        of this sequence's random numbers; with the count of answer tokens it determines each
    pooling     what is wanted of the text; None: a next token, under `params`
    second      of two texts, the index of the second one's first token; None: it is one, or the model need not know
    skip        leading tokens that are not pooled
    """

    sequence_id: int
    token_ids: Sequence[int]
    num_prompt: int
    start: int
    num_tokens: int
    blocks: "tuple[array[int], ...]"
    samples: bool
    params: SamplingParams
    stop_ids: frozenset[int]
    seed: int
    pooling: PoolingParams | None = None
    second: int | None = None
    skip: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step, as the scheduler decided it. Counts only; no tensor.

    Sequences may share blocks that this very step fills: in each layer, all writes come before all reads.

    sequences  decodes (one token, sampled) first
    discarded  per cache group, blocks whose contents died since the last step; to be told to the memory first
    copies     per cache group, (source, destination) blocks to copy before anything else, after the discards
    """

    sequences: tuple[ScheduledSequence, ...]
    num_decodes: int
    num_tokens: int
    discarded: tuple[tuple[int, ...], ...]
    copies: tuple[tuple[tuple[int, int], ...], ...]


@dataclass(slots=True)
class TokenLogprobs:
    """Candidates at one position, the chosen token first: ids, natural log-probabilities, ranks from 1."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]


@dataclass(slots=True)
class SequenceResult:
    """What a step gave one sequence. `error` ends that sequence alone.

    prompt_logprobs  of the prompt tokens after each position computed, when its params ask for them
    pooled           what the text was pooled to: float32 numbers, little-endian
    """

    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    error: str | None = None
    pooled: bytes | None = None


class Runner(ABC):
    """Owns a model on a device. Calls come in the order load, allocate_cache, step …, close."""

    @abstractmethod
    def load(self) -> None:
        """Read the weights. Raises BadCheckpoint listing everything missing, misshaped or left over."""

    @abstractmethod
    def block_bytes(self, group: CacheGroup) -> int:
        """Bytes that one block of this group takes, over all its layers."""

    def storage_bytes(self, group: CacheGroup) -> Sequence[int]:
        """The same, tensor by tensor: each is given so many blocks that its size is a multiple of
        `Capabilities.alignment_bytes`.
        """
        return (self.block_bytes(group),)

    @abstractmethod
    def memory_statistics(self) -> MemoryStatistics:
        """The device's memory as it is now."""

    @abstractmethod
    def allocate_cache(self, num_blocks: Sequence[int]) -> None:
        """Take memory for this many blocks per cache group, block 0 included."""

    @abstractmethod
    def step(self, batch: Batch) -> list[SequenceResult]:
        """Compute a batch; one result per sequence, in its order.

        Raises EngineError, or what the device raised, when the step as a whole is lost.
        """

    def close(self) -> None:
        """Give everything back. Called once; nothing follows."""
        return
