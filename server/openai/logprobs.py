"""Log-probabilities in OpenAI's two shapes, and vLLM's for prompts."""

from collections.abc import Iterable, Sequence
from typing import Any

from core.outputs import Logprob, PositionLogprobs
from core.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""What JSON gets for minus infinity."""

Position = tuple[str, PositionLogprobs | None]
"""A token's text and its candidates; None for the first token of a prompt, which nothing precedes."""


def positions(logprobs: Iterable[PositionLogprobs]) -> list[Position]:
    return [(_text(*next(iter(candidates.items()))), candidates) for candidates in logprobs]


def legacy_logprobs(tokens: Sequence[Position], offset: int) -> dict[str, Any]:
    """The parallel lists of /v1/completions. `offset` is where the first token begins in the text."""
    shaped: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for text, candidates in tokens:
        shaped["tokens"].append(text)
        shaped["text_offset"].append(offset)
        offset += len(text)
        if candidates is None:
            shaped["token_logprobs"].append(None)
            shaped["top_logprobs"].append(None)
            continue
        top: dict[str, float] = {}
        for token, candidate in candidates.items():
            top.setdefault(_text(token, candidate), _finite(candidate.logprob))
        shaped["token_logprobs"].append(_finite(next(iter(candidates.values())).logprob))
        shaped["top_logprobs"].append(top)
    return shaped


def chat_logprobs(
    logprobs: Iterable[PositionLogprobs], num_top: int, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """The list of /v1/chat/completions: each token with its bytes and the `num_top` likeliest candidates.

    The bytes are the token's own, even where it is only a part of a character.
    """

    def entry(token: int, candidate: Logprob) -> dict[str, Any]:
        spelled = None if tokenizer is None else list(tokenizer.spelling[token])
        text, logprob = _text(token, candidate), _finite(candidate.logprob)
        return {"token": text, "logprob": logprob, "bytes": spelled}

    content: list[dict[str, Any]] = []
    for candidates in logprobs:
        ranked = sorted(candidates.items(), key=lambda item: item[1].rank)[:num_top]
        chosen = next(iter(candidates.items()))
        top = [entry(token, candidate) for token, candidate in ranked if candidate.rank <= num_top]
        content.append(entry(*chosen) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def prompt_logprobs(logprobs: Iterable[PositionLogprobs | None]) -> list[dict[str, Any] | None]:
    """One entry per prompt token: token id -> {logprob, rank, decoded_token}; the first is null."""
    return [
        None
        if candidates is None
        else {
            str(token): {"logprob": _finite(c.logprob), "rank": c.rank, "decoded_token": c.decoded_token}
            for token, c in candidates.items()
        }
        for candidates in logprobs
    ]


def _text(token: int, candidate: Logprob) -> str:
    return f"token_id:{token}" if candidate.decoded_token is None else candidate.decoded_token


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
