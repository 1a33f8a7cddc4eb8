"""What a caller gets back. Shapes and names are vLLM's, so that scripts move over."""

from dataclasses import dataclass, field


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
class RequestOutput:
    """All answers to one prompt.

    `prompt_logprobs` has one entry per prompt token; the first is None, because nothing precedes it.
    `num_cached_tokens` counts the prompt tokens that the prefix cache already held.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0
    error: str | None = None
