"""What callers pass as prompts and parameters, one or many, as lists."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from core.errors import RequestError

Prompt = str | Sequence[int] | Mapping[str, Any]
Params = TypeVar("Params")

_KEYS = {"prompt", "prompt_token_ids", "cache_salt"}


def listed_prompts(prompts: Any) -> list[Prompt]:
    """One prompt or many, as a list: a flat list of ids is one prompt. Raises RequestError."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes | bytearray):
        raise RequestError(
            f"prompts must be a text, token ids, or a list of either, not {prompts!r:.80}", parameter="prompt"
        )
    listed: list[Any] = list(prompts)  # pyright: ignore[reportUnknownArgumentType]
    if listed and all(isinstance(item, int) for item in listed):
        return [listed]
    return listed


def opened_prompt(prompt: Prompt) -> tuple[Any, str | None, str]:
    """What is to be computed, its text if it has one, and its cache_salt. Raises RequestError."""
    if not isinstance(prompt, Mapping):
        return prompt, (prompt if isinstance(prompt, str) else None), ""
    text = prompt.get("prompt")
    content = prompt.get("prompt_token_ids", text)
    if content is None or not prompt.keys() <= _KEYS:
        raise RequestError(
            "a prompt given as a dict has prompt or prompt_token_ids, and may have cache_salt; "
            f"this one has {', '.join(map(str, prompt)) or 'nothing'}",
            parameter="prompt",
        )
    return content, text, prompt.get("cache_salt", "")


def listed_params(given: Any, kind: type[Params], number: int, name: str) -> Sequence[Params]:
    """Parameters for each of `number` prompts, from one for all or one for each. Raises RequestError naming `name`."""
    if isinstance(given, kind):
        return [given] * number
    listed: list[Any] = list(given) if isinstance(given, list | tuple) else [given]  # pyright: ignore[reportUnknownArgumentType]
    for params in listed:
        if not isinstance(params, kind):
            raise RequestError(
                f"{name} must be {kind.__name__}, or a list of them, not {params!r:.80}", parameter=name
            )
    if len(listed) != number:
        raise RequestError(f"{name} has {len(listed)} entries for {number} prompts", parameter=name)
    return listed
