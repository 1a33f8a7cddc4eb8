"""The bodies that are accepted, field by field.

Nothing is ignored in silence: a field is honoured, or stands in ACCEPTED_WITHOUT_EFFECT, or has here the one
value that asks for nothing (`NEUTRAL`), or is refused by name. null means "not given" everywhere.
"""

from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from core.errors import RequestError

ACCEPTED_WITHOUT_EFFECT = ("user", "safety_identifier", "prompt_cache_key")
"""Labels for a provider's books. They cannot change an answer, so clients that always send them are served.
"""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields that are not supported, and the values with which they ask for nothing."""


class Body(BaseModel):
    """JSON with known fields of exactly the right types: "5" is not 5, and true is not 1."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class GenerationBody(Body):
    """What both endpoints accept."""

    SAMPLING: ClassVar[tuple[str, ...]] = (
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "min_tokens",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "prompt_logprobs",
        "skip_special_tokens",
        "include_stop_str_in_output",
    )

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: Annotated[
        list[str] | None, BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
    ] = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    cache_salt: Annotated[str, Field(max_length=256)] = ""
    return_token_ids: bool = False

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def given_sampling(self) -> dict[str, Any]:
        """The sampling parameters that the client set, under SamplingParams' names."""
        return {name: value for name in self.SAMPLING if (value := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream: true", parameter="stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError(
                "prompt_logprobs is not sent in a stream; leave stream out", parameter="prompt_logprobs"
            )
        return self


class CompletionBody(GenerationBody):
    """POST /v1/completions. `prompt` is checked by `listed_prompts`, with one message for all its shapes."""

    prompt: Any
    echo: bool = False
    logprobs: int | None = None
    best_of: int | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise RequestError(
                f"best_of is {self.best_of}; only the value of n ({self.n or 1}) is supported",
                parameter="best_of",
            )
        return self


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    """One turn. `content` is a text, or parts of one that are joined by line breaks."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart],
        BeforeValidator(lambda given: [{"type": "text", "text": given}] if isinstance(given, str) else given),
    ]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, given: Any) -> Any:
        return without_nulls(given)

    def for_template(self) -> dict[str, Any]:
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": "\n".join(part.text for part in self.content)}
        return message if self.name is None else message | {"name": self.name}


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", parameter="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise RequestError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens "
                f"{self.max_completion_tokens}; send one",
                parameter="max_completion_tokens",
            )
        return self


def without_nulls(given: Any) -> Any:
    return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given


def known_fields(kind: type[Body], given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a body that `kind` knows. Raises RequestError naming one that it does not."""
    known: dict[str, Any] = {}
    for name, value in without_nulls(given).items():
        if name in kind.model_fields:
            known[name] = value
        elif name in ACCEPTED_WITHOUT_EFFECT:
            continue
        elif name not in NEUTRAL:
            close = get_close_matches(name, kind.model_fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else "; leave it out"
            raise RequestError(f"{name!r:.80} is not a parameter of this endpoint{hint}", parameter=name[:80])
        elif value not in NEUTRAL[name]:
            accepted = " or ".join(repr(neutral) for neutral in NEUTRAL[name])
            hint = f"leave it out, or send {accepted}" if accepted else "leave it out"
            raise RequestError(f"{name} is not supported by this server; {hint}", parameter=name)
    return known
