"""What /v1/responses answers."""

from typing import Any, Literal

from pydantic import Field

from server.answers import Answer
from server.openai.answers import ChatLogprob
from server.openai.responses.writing import Status


class OutputText(Answer):
    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[ChatLogprob]


class OutputMessage(Answer):
    """What the assistant said."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class ResponseFailure(Answer):
    code: str
    message: str


class IncompleteDetails(Answer):
    reason: Literal["max_output_tokens"]


class InputDetails(Answer):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Answer):
    reasoning_tokens: int


class ResponseUsage(Answer):
    """Tokens that were read and written."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseObject(Answer):
    """A response. `output` and `usage` are filled once nothing more will be said."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: bool
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, None]
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["auto"]
    tools: list[None]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None


class DeletedResponse(Answer):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class KeptText(Answer):
    """A part of a turn. What the assistant said may have its log-probabilities."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[None] = Field(default_factory=list[None])
    logprobs: list[ChatLogprob] = Field(default_factory=list[ChatLogprob])


class KeptItem(Answer):
    """A turn of the conversation."""

    id: str
    type: Literal["message"]
    role: Literal["system", "developer", "user", "assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[KeptText]


class InputItems(Answer):
    """A page of the conversation that a response answers."""

    object: Literal["list"]
    data: list[KeptItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
