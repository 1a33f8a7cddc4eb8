"""What every generating route lets its clients say about sampling, whichever API it speaks."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from core.sampling_params import INTEGERS, NUMBERS, Range
from server.fields import Body
from server.shapes import LogitBias, TokenIds


class SamplingBody(Body):
    """Fields under SamplingParams' names, and where in the queue the request stands."""

    SAMPLING: ClassVar[tuple[str, ...]] = (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "min_tokens",
        "stop_token_ids",
        "ignore_eos",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "skip_special_tokens",
    )

    RANGES = INTEGERS | NUMBERS | {"top_k": Range(-1, INTEGERS["top_k"].high)}

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    min_tokens: int | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: LogitBias | None = None
    skip_special_tokens: bool | None = None
    stream: bool = False
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    cache_salt: Annotated[str, Field(max_length=256)] = ""

    def given_sampling(self) -> dict[str, Any]:
        """The sampling parameters that the client set, under SamplingParams' names."""
        return {name: value for name in self.SAMPLING if (value := getattr(self, name)) is not None}
