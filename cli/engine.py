"""From what the user gave to a loaded engine and checked sampling parameters."""

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cli.failures import UsageError, refused_values
from cli.options import Given
from cli.terminal import Status
from core.config import EngineConfig
from core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from core.llm import LLM

SAMPLING_FALLBACK: Mapping[str, Any] = {"temperature": 0.8, "top_p": 0.95}
"""What `generate` and `chat` sample with where neither the user nor the model's generation_config says."""


@contextmanager
def opened(config: EngineConfig, status: Status) -> Iterator["LLM"]:
    """The engine of `config`, loaded with a status line and shut down at the end."""
    status("starting")
    gc.disable()  # what is imported stays: looking for garbage in it takes a tenth of a second
    try:
        from core.llm import LLM

        llm = LLM(**asdict(config), progress=status)
    finally:
        gc.enable()
        status.clear()
    try:
        yield llm
    finally:
        llm.shutdown()


def engine_config(given: Given) -> EngineConfig:
    """Raises UsageError naming the option whose value is refused."""
    with refused_values():
        return EngineConfig(**given)


def given_sampling(sampling: Given, *, seed: int | None, max_tokens: int) -> Given:
    """What the user gave, with this command's own defaults; checked before anything slow begins.

    Without a seed each run gets a new one, so that trying again gives another answer.
    Raises UsageError naming the option whose value is refused.
    """
    given = {
        "max_tokens": max_tokens,
        "seed": int.from_bytes(os.urandom(4)) if seed is None else seed,
        **sampling,
    }
    if "logit_bias" in given:
        given["logit_bias"] = dict(_bias(text) for text in given["logit_bias"])
    with refused_values():
        SamplingParams(**given)
    return given


def sampling_params(given: Given, model_defaults: Mapping[str, Any]) -> SamplingParams:
    """The user's word first, then the model's, then SAMPLING_FALLBACK."""
    return SamplingParams.from_defaults({**SAMPLING_FALLBACK, **model_defaults}, **given)


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise UsageError(f"--logit-bias is {text!r}; write TOKEN_ID=BIAS, like 198=-100") from None
