"""What is new in an answer since the last look, and what it all counts to."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.outputs import CompletionOutput, PositionLogprobs, RequestOutput


@dataclass(slots=True, kw_only=True)
class News:
    """What one answer gained. `first` is true in the first of an answer, `finish_reason` set in the last."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None
    first: bool
    finish_reason: str | None
    stop_reason: int | str | None


@dataclass(slots=True)
class Reader:
    """How far one answer has been read."""

    text: int = 0
    tokens: int = 0
    started: bool = False
    finished: bool = False

    def news(self, answer: CompletionOutput) -> News | None:
        """What there is to send; None when there are only tokens whose text is not known yet."""
        news = News(
            index=answer.index,
            text=answer.text[self.text :],
            token_ids=answer.token_ids[self.tokens :],
            logprobs=None if answer.logprobs is None else answer.logprobs[self.tokens :],
            first=not self.started,
            finish_reason=None if self.finished else answer.finish_reason,
            stop_reason=answer.stop_reason,
        )
        if not (news.first or news.text or news.logprobs or news.finish_reason):
            return None
        self.text, self.tokens = len(answer.text), len(answer.token_ids)
        self.started, self.finished = True, answer.finish_reason is not None
        return news


def likeliest(answers: Sequence[CompletionOutput], count: int) -> list[CompletionOutput]:
    """So many of these answers by their cumulative log-probability, the likeliest first, numbered anew."""
    ranked = sorted(answers, key=lambda answer: answer.cumulative_logprob or 0.0, reverse=True)
    return [replace(answer, index=index) for index, answer in enumerate(ranked[:count])]


@dataclass(slots=True)
class Usage:
    """Tokens of the requests that one HTTP request became."""

    _outputs: dict[str, RequestOutput] = field(default_factory=dict[str, RequestOutput])

    def add(self, output: RequestOutput) -> None:
        """Count an output as it is when `as_dict` is called."""
        self._outputs[output.request_id] = output

    def as_dict(self, *, count_answers: bool = True) -> dict[str, Any]:
        outputs = self._outputs.values()
        prompt = sum(len(output.prompt_token_ids) for output in outputs)
        answers = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
        completion = answers if count_answers else 0
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(output.num_cached_tokens for output in outputs)},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
