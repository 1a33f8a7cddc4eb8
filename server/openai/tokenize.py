"""POST /tokenize and /detokenize, and GET /tokenizer_info: the model's tokenizer, for clients that count and cut."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from core.engine.intake import Intake
from core.errors import RequestError
from core.text.tokenizer import SPECIAL_TOKENS, Tokenizer
from server.body import read_body
from server.errors import JSON
from server.fields import Body, called
from server.openai.answers import Detokenized, Tokenized, TokenizerInfo
from server.openai.bodies import Message, RenderedBody
from server.routes import Routes
from server.state import Served, State


class TokenizeBody(RenderedBody):
    """POST /tokenize: of a text, or of a conversation as its chat completion would be computed."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("send either prompt, a text, or messages, a conversation", parameter="prompt")
        if self.messages is not None and self.add_special_tokens:
            raise RequestError(
                "add_special_tokens has no effect on messages, whose template writes all special tokens; leave it out",
                parameter="add_special_tokens",
            )
        for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
            if self.prompt is not None and getattr(self, name):
                raise RequestError(
                    f"{name} has no effect on a prompt, which goes through no chat template; leave it out",
                    parameter=name,
                )
        return self


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


def tokenize_routes(state: State) -> Routes:
    routes = Routes()

    @routes.post("/tokenize", body=TokenizeBody, answer=Tokenized)
    async def tokenize(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, TokenizeBody)
        return await _threaded(state.take(body.model), lambda intake: _tokenized(intake, body))

    @routes.post("/detokenize", body=DetokenizeBody, answer=Detokenized)
    async def detokenize(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, DetokenizeBody)
        return await _threaded(state.take(body.model), lambda intake: _detokenized(intake, body.tokens))

    @routes.get("/tokenizer_info", answer=TokenizerInfo)
    async def tokenizer_info(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        served = state.find(request.query_params.get("model"))
        return await asyncio.to_thread(lambda: JSON(_described(served.engine.intake)))

    return routes


async def _threaded(served: Served, answer: Callable[[Intake], dict[str, Any]]) -> Response:
    """The answer, made off the event loop. It counts as a request meanwhile. Raises QueueFull, RequestError."""
    room = served.engine.room
    room.check()
    with room.preparing():
        return await asyncio.to_thread(lambda: JSON(answer(served.engine.intake)))


def _tokenized(intake: Intake, body: TokenizeBody) -> dict[str, Any]:
    tokenizer = _tokenizer(intake)
    if body.messages is None:
        ids = tokenizer.encode(body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
    else:
        with called(prompt="messages"):
            messages = [message.for_template() for message in body.messages]
            ids = intake.chat_ids(messages, **body.template_arguments)
    return {
        "count": len(ids),
        "max_model_len": intake.info.max_model_len,
        "tokens": ids,
        "token_strs": tokenizer.convert_ids_to_tokens(ids) if body.return_token_strs else None,
    }


def _detokenized(intake: Intake, tokens: list[int]) -> dict[str, Any]:
    """Special tokens are part of the text, so that tokenizing it gives these tokens again."""
    tokenizer = _tokenizer(intake)
    size = max(tokenizer.vocab_size, intake.info.vocab_size)
    for place, token in enumerate(tokens):
        if not 0 <= token < size:
            raise RequestError(
                f"tokens[{place}] is {token!r:.80}; token ids of this model are whole numbers from 0 to {size - 1}",
                parameter="tokens",
            )
    return {"prompt": tokenizer.decode(tokens, skip_special_tokens=False)}


def _described(intake: Intake) -> dict[str, Any]:
    """What tokenizer_config.json would say, under its names. A special token that there is none of is null."""
    tokenizer = _tokenizer(intake)
    named = {name: tokenizer.special_tokens.get(name) for name in SPECIAL_TOKENS}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "additional_special_tokens": sorted(tokenizer.special_texts - {*named.values()}),
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": intake.info.max_model_len,
        "chat_template": tokenizer.chat_template,
    }


def _tokenizer(intake: Intake) -> Tokenizer:
    if intake.tokenizer is None:
        raise RequestError(
            "this server has no tokenizer (skip_tokenizer_init); send token ids to /v1/completions",
            parameter="model",
        )
    return intake.tokenizer
