"""What OpenAI's generating routes and the list of models answer."""

from typing import Literal

from pydantic import Field

from server.answers import Answer

FinishReason = Literal["stop", "length", "abort"]


class CachedTokens(Answer):
    cached_tokens: int


class ReasoningTokens(Answer):
    reasoning_tokens: int


class Usage(Answer):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class PromptLogprob(Answer):
    logprob: float
    rank: int
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""Per token of the prompt, by token id; null for the first, which nothing precedes."""


class CompletionLogprobs(Answer):
    """Parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionText(Answer):
    """An answer, or what it gained. The ids are there when `return_token_ids` asked for them."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    stop_reason: int | str | None
    token_ids: list[int] = Field(default_factory=list[int])
    prompt_token_ids: list[int] = Field(default_factory=list[int])


class CompletionChunkChoice(CompletionText):
    finish_reason: FinishReason | None


class CompletionChoice(CompletionText):
    finish_reason: FinishReason
    prompt_logprobs: PromptLogprobs = Field(default_factory=PromptLogprobs)


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(Answer):
    """The data of an event of /v1/completions. `usage` is there when `stream_options` asked for it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    content: list[ChatLogprob]
    refusal: None


class AssistantMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: list[int] = Field(default_factory=list[int])


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    service_tier: Literal["default"]
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs = Field(default_factory=PromptLogprobs)
    prompt_token_ids: list[int] = Field(default_factory=list[int])


class ChatDelta(Answer):
    """The role first, then pieces of the text."""

    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChatChunkChoice(Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    token_ids: list[int] = Field(default_factory=list[int])
    prompt_token_ids: list[int] = Field(default_factory=list[int])


class ChatCompletionChunk(Answer):
    """The data of an event of /v1/chat/completions. `usage` is there when `stream_options` asked for it."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    service_tier: Literal["default"]
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class Tokenized(Answer):
    """`token_strs` are the vocabulary's own strings, where they were asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str | None] | None


class Detokenized(Answer):
    prompt: str


class TokenizerInfo(Answer):
    """What tokenizer_config.json says, under its names."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    sep_token: str | None
    pad_token: str | None
    cls_token: str | None
    mask_token: str | None
    additional_special_tokens: list[str]
    vocab_size: int
    model_max_length: int
    chat_template: str | None


class ModelCard(Answer):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    task: Literal["generate", "embed", "classify"]


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelCard]
