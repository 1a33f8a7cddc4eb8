"""What a caller gets back. Shapes and names are vLLM's, so that scripts move over."""

import struct
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Output = TypeVar("Output")


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate at one position: natural log-probability, rank (1 is the likeliest), its text."""

    logprob: float
    rank: int
    decoded_token: str | None = None


PositionLogprobs = dict[int, Logprob]
"""token id -> Logprob: the chosen token first, then the likeliest ones."""


@dataclass(slots=True)
class CompletionOutput:
    """One answer to a prompt. `finish_reason` is "stop", "length", "abort" or "error"; None while it runs.

    `stop_reason` is the stop string or token id that ended it, None for end-of-sequence or length.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestTimes:
    """When what happened to a request, in seconds of the monotonic clock; None: not yet.

    arrived      it was asked
    admitted     the engine first gave it a place in a step
    first_token  the first token of any of its answers came, or its numbers
    last_token   the latest did
    """

    arrived: float
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """All answers to one prompt.

    `prompt_logprobs` has one entry per prompt token; the first is None, because nothing precedes it.
    `num_cached_tokens` counts the prompt tokens that the prefix cache already held.
    `pooled`, of a request that asked for it, is what the text was pooled to: float32 numbers, little-endian.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    pooled: bytes | None = None
    times: RequestTimes | None = None


@dataclass(slots=True)
class PoolingOutput:
    """The numbers that a text was pooled to."""

    data: list[float]


@dataclass(slots=True)
class EmbeddingOutput:
    """A text's vector."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(slots=True)
class ClassificationOutput:
    """A number for each label, by default a probability."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass(slots=True)
class ScoringOutput:
    """How well two texts go together."""

    score: float


@dataclass(slots=True)
class PoolingRequestOutput(Generic[Output]):
    """What became of one text, or of one pair of texts. `error` says why there are no numbers in `outputs`."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: Output
    finished: bool = True
    num_cached_tokens: int = 0
    error: str | None = None


def pooled_output(output: RequestOutput, outputs: Output) -> PoolingRequestOutput[Output]:
    """What a caller gets for a request that was pooled."""
    return PoolingRequestOutput(
        request_id=output.request_id,
        prompt=output.prompt,
        prompt_token_ids=output.prompt_token_ids,
        outputs=outputs,
        finished=output.finished,
        num_cached_tokens=output.num_cached_tokens,
        error=output.error,
    )


def floats(pooled: bytes | None) -> tuple[float, ...]:
    """The numbers in `RequestOutput.pooled`; none when there are none."""
    return struct.unpack(f"<{len(pooled or b'') // 4}f", pooled or b"")
