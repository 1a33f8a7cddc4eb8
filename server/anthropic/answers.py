"""What Anthropic's routes answer."""

from typing import Literal

from server.answers import Answer


class AnthropicError(Answer):
    type: str
    message: str


class AnthropicErrorObject(Answer):
    """Every answer of these routes that is not 2xx."""

    type: Literal["error"]
    error: AnthropicError
    request_id: str | None


class AnswerBlock(Answer):
    type: Literal["text"]
    text: str


class MessageUsage(Answer):
    """Tokens. What the prefix cache held is not among `input_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicMessage(Answer):
    """The assistant's turn. `content` is empty where it said nothing."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: MessageUsage


class CountedTokens(Answer):
    input_tokens: int
