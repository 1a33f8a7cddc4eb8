"""The body of POST /v1/responses, and the items that a conversation is made of."""

import secrets
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from core.errors import RequestError
from core.sampling_params import INTEGERS
from server.fields import Body
from server.sampling import SamplingBody

NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "context_management": ([],),
    "conversation": (),
    "max_tool_calls": (),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prompt": (),
    "reasoning": ({}, {"effort": "none"}),
    "service_tier": ("auto", "default"),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
"""Fields that are not supported, and the values with which they ask for nothing."""

LOGPROBS = "message.output_text.logprobs"

Includable = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
]
"""What may be asked for in an answer. All but the first belong to items that no answer has here."""

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class TextFormat(Body):
    type: Literal["text"]


class TextConfig(Body):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(Body):
    include_obfuscation: Literal[False] = False


class TextContent(Body):
    """A text of a user, or of an answer that is sent back as it was received."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


def _as_content(given: Any) -> Any:
    return [{"type": "input_text", "text": given}] if isinstance(given, str) else given


def _as_items(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class MessageItem(Body):
    """A turn of the conversation. `id`, `status` and `phase` are those of an answer that is sent back."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[
        list[TextContent],
        BeforeValidator(_as_content, json_schema_input_type=str | list[TextContent]),
        Field(min_length=1),
    ]
    id: Annotated[str, Field(max_length=128)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    def kept(self) -> dict[str, Any]:
        """The item as it is kept and listed."""
        answer = self.role == "assistant"
        kind = {"type": "output_text", "annotations": []} if answer else {"type": "input_text"}
        return {
            "id": self.id or item_id(),
            "type": "message",
            "role": self.role,
            "status": self.status or "completed",
            "content": [kind | {"text": part.text} for part in self.content],
        }


class ResponseBody(SamplingBody):
    """POST /v1/responses."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = NOT_SUPPORTED
    RANGES = SamplingBody.RANGES | {
        "max_output_tokens": INTEGERS["max_tokens"],
        "top_logprobs": INTEGERS["logprobs"],
    }

    input: Annotated[
        list[MessageItem],
        BeforeValidator(_as_items, json_schema_input_type=str | list[MessageItem]),
        Field(min_length=1),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[Includable] = Field(default_factory=list[Includable])
    text: TextConfig | None = None
    truncation: Literal["disabled"] = "disabled"
    metadata: Metadata = Field(default_factory=dict[str, str])
    previous_response_id: str | None = None
    store: bool = True
    background: bool = False
    stream_options: ResponseStreamOptions | None = None

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens come with each token; None when no log-probabilities are wanted."""
        return self.top_logprobs or 0 if LOGPROBS in self.include else None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.top_logprobs and LOGPROBS not in self.include:
            raise RequestError(f'top_logprobs needs include: ["{LOGPROBS}"]', parameter="top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream: true", parameter="stream_options")
        if self.background and self.stream:
            raise RequestError(
                "a response in the background is asked for again until it is finished; it is not streamed",
                parameter="stream",
            )
        if self.background and not self.store:
            raise RequestError("a response in the background must be stored", parameter="store")
        return self


def item_id() -> str:
    return f"msg_{secrets.token_hex(24)}"


def for_template(items: Iterable[dict[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """Kept items as messages for the chat template, after the instructions."""
    said = [] if instructions is None else [("system", instructions)]
    said += [(item["role"], "\n".join(part["text"] for part in item["content"])) for item in items]
    return [{"role": "system" if role == "developer" else role, "content": text} for role, text in said]
