"""What can be wrong with a request for an embedding, for labels, or for either from a model that does neither."""

from collections.abc import Sequence

from core.contracts.model import Pooling
from core.engine.engine import EngineInfo
from core.errors import RequestError, RequestTooLong
from core.pooling_params import PoolingParams

DOES = {"embed": "makes embeddings", "classify": "gives numbers for labels"}


def check_generates(info: EngineInfo) -> None:
    """Raises RequestError for a model that does not go on with a text."""
    if info.pooling is not None:
        raise RequestError(
            f"the model, a {info.architecture}, {DOES[info.pooling.task]} and does not generate text",
            parameter="model",
        )


def pooling_of(info: EngineInfo, task: str | None = None) -> Pooling:
    """How the model pools. Raises RequestError when it does not, or not for this task."""
    if info.pooling is None:
        raise RequestError(
            f"the model, a {info.architecture}, generates text; start it with task embed to have embeddings of it, or "
            "take a model that was made for them",
            parameter="model",
        )
    if task not in (None, info.pooling.task):
        raise RequestError(
            f"the model, a {info.architecture}, {DOES[info.pooling.task]}; it has no answer for {task}",
            parameter="model",
        )
    return info.pooling


def check_pools(info: EngineInfo, params: PoolingParams) -> None:
    """Raises RequestError for a model that does not pool, and for parameters that would have no effect on it."""
    pooling = pooling_of(info)
    idle = ("use_activation",) if pooling.labels is None else ("dimensions", "normalize")
    for name in idle:
        if getattr(params, name) is not None:
            raise RequestError(
                f"{name} has no effect on a model that {DOES[pooling.task]}; leave it out", parameter=name
            )
    if params.dimensions not in (None, pooling.size):
        _check_dimensions(pooling, params.dimensions or 0)


def check_prompt_length(info: EngineInfo, token_ids: Sequence[int], parameter: str = "prompt") -> None:
    """Raises RequestError for no token, RequestTooLong naming the parameter for more than the model takes."""
    if not token_ids:
        raise RequestError("the prompt is empty; at least one token is needed", parameter="prompt")
    if len(token_ids) > info.max_model_len:
        raise RequestTooLong(
            f"the prompt has {len(token_ids):,} tokens and this engine accepts {info.max_model_len:,} (max_model_len); "
            "send truncate_prompt_tokens to have it cut off",
            parameter=parameter,
        )


def cut_length(info: EngineInfo, asked: int | None) -> int | None:
    """Tokens at which a text is cut off, from what was asked for: -1 stands for what the model takes."""
    if asked is None:
        return None
    limit = info.max_model_len
    if isinstance(asked, bool) or not isinstance(asked, int) or not (asked == -1 or 1 <= asked <= limit):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RequestError(
            f"truncate_prompt_tokens must be a whole number from 1 to {limit}, or -1 for {limit}, not {asked!r:.80}",
            parameter="truncate_prompt_tokens",
        )
    return limit if asked == -1 else asked


def _check_dimensions(pooling: Pooling, asked: int) -> None:
    accepted = ", ".join(map(str, pooling.shorter or ())) or f"1 to {pooling.size}"
    if pooling.shorter is None:
        accepted = f"{pooling.size}, because its embeddings were not trained to be cut short"
    elif asked in pooling.shorter or (not pooling.shorter and asked <= pooling.size):
        return
    raise RequestError(f"dimensions is {asked}; this model accepts {accepted}", parameter="dimensions")
