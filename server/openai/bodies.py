"""The bodies of OpenAI's generating routes."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from core.errors import RequestError
from core.sampling_params import INTEGERS, MAX_N, Range
from server.fields import Body
from server.sampling import SamplingBody
from server.shapes import Prompts, Stops


class StreamOptions(Body):
    """include_usage ends a stream with a chunk for the tokens; continuous_usage_stats has them in every chunk, too."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class GenerationBody(SamplingBody):
    """What both endpoints accept."""

    SAMPLING: ClassVar[tuple[str, ...]] = (
        *SamplingBody.SAMPLING,
        "n",
        "stop",
        "prompt_logprobs",
        "include_stop_str_in_output",
    )

    n: int | None = None
    max_tokens: int | None = None
    stop: Stops | None = None
    prompt_logprobs: int | None = None
    include_stop_str_in_output: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False

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
    """POST /v1/completions."""

    RANGES = GenerationBody.RANGES | {
        "max_tokens": Range(0, INTEGERS["max_tokens"].high),
    }

    prompt: Prompts
    suffix: str | None = None
    echo: bool = False
    logprobs: int | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    add_special_tokens: bool = True

    @property
    def chooses(self) -> bool:
        """Whether more answers are computed than are sent."""
        return self.best_of is not None and self.best_of > (self.n or 1)

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise RequestError(
                f"best_of is {self.best_of}, fewer than the {self.n} answers (n) that are to be chosen from them",
                parameter="best_of",
            )
        if self.chooses and self.stream:
            raise RequestError(
                f"best_of is {self.best_of} and n {self.n or 1}: which answers are best is known when all have "
                "ended, so they cannot be streamed; leave stream or best_of out",
                parameter="best_of",
            )
        if self.suffix and self.echo:
            raise RequestError(
                "echo repeats a prompt that goes on in the answer, and with a suffix it does not; leave one out",
                parameter="echo",
            )
        return self


class TextPart(Body):
    """A part of a turn, maybe with a hint at what to cache."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


Nothing = Annotated[list[Any], Field(max_length=0)]
"""A list that clients send along with an answer that is sent back. With something in it, it is not supported."""


class Message(Body):
    """One turn. `content` is a text, or parts of one that are joined by line breaks."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart],
        BeforeValidator(
            lambda given: [{"type": "text", "text": given}] if isinstance(given, str) else given,
            json_schema_input_type=str | list[TextPart],
        ),
    ]
    name: str | None = None
    tool_calls: Nothing | None = None
    annotations: Nothing | None = None

    def for_template(self) -> dict[str, Any]:
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": "\n".join(part.text for part in self.content)}
        return message if self.name is None else message | {"name": self.name}


class RenderedBody(Body):
    """How a conversation is rendered: its end (where an answer begins, or open, so that the answer continues it), and
    what the model's own template knows besides, such as Qwen's `enable_thinking`.
    """

    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def template_arguments(self) -> dict[str, Any]:
        """`ChatTemplate.encode`'s. Where a message is continued, none begins unless both are asked for."""
        begin, go_on = self.add_generation_prompt, self.continue_final_message
        return {
            "add_generation_prompt": not go_on if begin is None else begin,
            "continue_final_message": go_on,
            "chat_template_kwargs": self.chat_template_kwargs,
        }


class ChatBody(GenerationBody, RenderedBody):
    """POST /v1/chat/completions."""

    RANGES = GenerationBody.RANGES | {
        "max_completion_tokens": INTEGERS["max_tokens"],
        "top_logprobs": INTEGERS["logprobs"],
    }

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", parameter="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise RequestError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens "
                f"{self.max_completion_tokens}; send one",
                parameter="max_completion_tokens",
            )
        return self
