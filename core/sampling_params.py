"""What a caller may ask of sampling, checked once, where it is built."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

from core.errors import RequestError

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP = 16
MAX_STOP_LENGTH = 256
MAX_STOP_TOKENS = 1024
MAX_LOGIT_BIAS = 1024
MAX_SEED = 2**63


class Range(NamedTuple):
    """The numbers that are accepted: `low` to `high`, both included, unless `open_low` leaves `low` out."""

    low: float
    high: float
    open_low: bool = False


INTEGERS = {
    "n": Range(1, MAX_N),
    "top_k": Range(0, 2**31),
    "seed": Range(-MAX_SEED, MAX_SEED - 1),
    "max_tokens": Range(1, 2**31),
    "min_tokens": Range(0, 2**31),
    "logprobs": Range(0, MAX_LOGPROBS),
    "prompt_logprobs": Range(0, MAX_LOGPROBS),
}
NUMBERS = {
    "temperature": Range(0.0, 100.0),
    "top_p": Range(0.0, 1.0, open_low=True),
    "min_p": Range(0.0, 1.0),
    "presence_penalty": Range(-2.0, 2.0),
    "frequency_penalty": Range(-2.0, 2.0),
    "repetition_penalty": Range(0.0, 100.0, open_low=True),
}
TOKEN_IDS = Range(0, 2**31)
BIASES = Range(-100.0, 100.0)
OPTIONAL = ("seed", "max_tokens", "logprobs", "prompt_logprobs")
"""Integers that may be None."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens, and when to stop. Keywords mean what they mean in vLLM.

    n                   answers per prompt
    temperature         0 takes the likeliest token; otherwise logits are divided by it
    top_p, top_k, min_p keep the smallest set of tokens whose mass reaches top_p; the top_k likeliest (0: all);
                        those at least min_p times as likely as the likeliest
    seed                the same seed gives the same tokens, alone and in a batch
    max_tokens          new tokens at most; None: as many as the context holds
    min_tokens          end-of-sequence and stop tokens are impossible before this many; stop strings are looked
                        for in the text after them
    stop                strings (or one string) that end the answer; not part of it unless include_stop_str_in_output
    stop_token_ids      token ids that end the answer
    ignore_eos          the model's end-of-sequence token is an ordinary token
    presence_penalty, frequency_penalty  subtracted once per seen token, and once per occurrence, of the answer
    repetition_penalty  divides positive and multiplies negative logits of tokens in the prompt or the answer
    logit_bias          token id -> added to its logit, -100 to 100
    logprobs            log-probabilities of the sampled token and this many likeliest ones, per new token
    prompt_logprobs     the same for every prompt token but the first
    skip_special_tokens leave special tokens out of the text
    detokenize          False leaves `text` empty (and stop strings are then refused)

    Raises RequestError naming the parameter, its value and what is accepted.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: Sequence[str] | str = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    detokenize: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "stop", (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop)
        )
        object.__setattr__(self, "stop_token_ids", _items("stop_token_ids", self.stop_token_ids))
        if self.top_k == -1:  # vLLM's older spelling of "all"
            object.__setattr__(self, "top_k", 0)
        self._check_numbers()
        self._check_stops()
        self._check_bias()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @classmethod
    def from_defaults(cls, defaults: Mapping[str, Any], **given: Any) -> Self:
        """Parameters from a model's generation_config, overridden by what was given."""
        known = {f.name for f in fields(cls)}
        return cls(**({k: v for k, v in defaults.items() if k in known} | given))

    def with_(self, **changes: Any) -> Self:
        """A checked copy with some fields changed."""
        return replace(self, **changes)

    def _check_numbers(self) -> None:
        for name, accepted in INTEGERS.items():
            _integer(name, getattr(self, name), accepted, optional=name in OPTIONAL)
        for name, accepted in NUMBERS.items():
            _number(name, getattr(self, name), accepted)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens {self.max_tokens}",
                parameter="min_tokens",
            )
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "detokenize"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(
                    f"{name} must be true or false, not {_shown(getattr(self, name))}", parameter=name
                )

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOP:
            raise RequestError(
                f"stop has {len(self.stop)} strings; at most {MAX_STOP} are accepted", parameter="stop"
            )
        for text in self.stop:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise RequestError(
                    f"stop must hold strings of 1 to {MAX_STOP_LENGTH} characters, not {_shown(text)}",
                    parameter="stop",
                )
        if self.stop and not self.detokenize:
            raise RequestError(
                "stop strings need detokenize=True; use stop_token_ids instead", parameter="stop"
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise RequestError(
                f"stop_token_ids has {len(self.stop_token_ids)} ids; at most {MAX_STOP_TOKENS} are accepted",
                parameter="stop_token_ids",
            )
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, TOKEN_IDS)

    def _check_bias(self) -> None:
        given: Any = self.logit_bias
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise RequestError(
                f"logit_bias must map token ids to numbers, not be {_shown(given)}", parameter="logit_bias"
            )
        bias: dict[Any, Any] = {_spelled_id(token): value for token, value in given.items()}  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
        if len(bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias has {len(bias)} entries; at most {MAX_LOGIT_BIAS} are accepted",
                parameter="logit_bias",
            )
        for token, value in bias.items():
            _integer("logit_bias", token, TOKEN_IDS)
            _number("logit_bias", value, BIASES)
        object.__setattr__(self, "logit_bias", bias)


def _spelled_id(token: object) -> object:
    """JSON spells the keys of an object as strings: "5" is 5."""
    if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 12:
        return int(token)
    return token


def _items(name: str, given: object) -> tuple[Any, ...]:
    if given is None:
        return ()
    if not isinstance(given, list | tuple | set | frozenset):
        raise RequestError(f"{name} must be a list, not {_shown(given)}", parameter=name)
    return tuple(given)  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python prints no number of more than 4,300 digits
        return "a number of thousands of digits"


def _integer(name: str, value: object, accepted: Range, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not accepted.low <= value <= accepted.high:
        shown = f"a whole number from {accepted.low} to {accepted.high}" + (", or none" if optional else "")
        raise RequestError(f"{name} must be {shown}, not {_shown(value)}", parameter=name)


def _number(name: str, value: object, accepted: Range) -> None:
    low, high, open_low = accepted
    good = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    good = good and not isinstance(value, bool)
    if not good or not low <= value <= high or (open_low and value == low):  # type: ignore[operator]
        shown = f"{'above' if open_low else 'from'} {low:g} {'up ' if open_low else ''}to {high:g}"
        raise RequestError(f"{name} must be a number {shown}, not {_shown(value)}", parameter=name)
