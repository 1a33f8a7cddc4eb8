"""POST /v1/chat/completions."""

import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from core.engine.request import Request as GenerationRequest
from core.outputs import CompletionOutput, RequestOutput
from core.sampling_params import SamplingParams
from server.body import read_body
from server.fields import called
from server.openai.answering import respond
from server.openai.answers import ChatCompletion, ChatCompletionChunk
from server.openai.bodies import ChatBody
from server.openai.choices import News
from server.openai.fingerprint import system_fingerprint
from server.openai.logprobs import chat_logprobs, prompt_logprobs
from server.routes import Routes
from server.state import Served, State


def chat_routes(state: State) -> Routes:
    routes = Routes()

    @routes.post("/v1/chat/completions", body=ChatBody, answer=ChatCompletion, event=ChatCompletionChunk)
    async def create_chat_completion(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, ChatBody)
        served = state.take(body.model)
        rendering = ChatRendering(served, body)
        generation = await _generation_request(served, body, rendering.response_id)
        return await respond(served.submit(request, [generation]), rendering, body)

    return routes


async def _generation_request(served: Served, body: ChatBody, request_id: str) -> GenerationRequest:
    with called(prompt="messages"):
        return await served.engine.chat_request(
            [message.for_template() for message in body.messages],
            sampling_params(served, body),
            request_id=request_id,
            priority=body.priority,
            cache_salt=body.cache_salt,
            **body.template_arguments,
        )


def sampling_params(served: Served, body: ChatBody) -> SamplingParams:
    """What the client asked for, over the model's defaults. Without a limit the context is one."""
    given = body.given_sampling()
    given["max_tokens"] = (
        body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    )
    if body.logprobs:
        given["logprobs"] = body.top_logprobs or 0
    return served.engine.intake.default_params(**given)


class ChatRendering:
    """An assistant's message as JSON, or as deltas: the role, then text, then why it ended."""

    counts_answers = True

    def __init__(self, served: Served, body: ChatBody) -> None:
        self.response_id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._served = served
        self._body = body

    def envelope(self, *, streamed: bool) -> dict[str, Any]:
        return {
            "id": self.response_id,
            "object": "chat.completion.chunk" if streamed else "chat.completion",
            "created": self._created,
            "model": self._served.name,
            "service_tier": "default",
            "system_fingerprint": system_fingerprint(self._served.engine.info),
        }

    def chosen(self, output: RequestOutput) -> list[CompletionOutput]:
        return output.outputs

    def chunks(self, output: RequestOutput, news: News) -> list[dict[str, Any]]:
        chunks: list[dict[str, Any]] = []
        if news.first:
            role = self._chunk(news, {"role": "assistant", "content": ""})
            if self._body.return_token_ids:
                role["prompt_token_ids"] = output.prompt_token_ids
            chunks.append(role)
        if news.text or news.logprobs or (self._body.return_token_ids and news.token_ids):
            content = self._chunk(news, {"content": news.text})
            content["logprobs"] = self._logprobs(news)
            if self._body.return_token_ids:
                content["token_ids"] = news.token_ids
            chunks.append(content)
        if news.finish_reason is not None:
            end = self._chunk(news, {})
            chunks.append(end | {"finish_reason": news.finish_reason, "stop_reason": news.stop_reason})
        return chunks

    def choice(self, output: RequestOutput, whole: News) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": whole.index,
            "message": {"role": "assistant", "content": whole.text, "refusal": None},
            "logprobs": self._logprobs(whole),
            "finish_reason": whole.finish_reason,
            "stop_reason": whole.stop_reason,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = whole.token_ids
        return choice

    def extras(self, outputs: list[RequestOutput]) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        output = outputs[0]
        if self._body.prompt_logprobs is not None and output.prompt_logprobs is not None:
            extras["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
        if self._body.return_token_ids:
            extras["prompt_token_ids"] = output.prompt_token_ids
        return extras

    def _chunk(self, news: News, delta: dict[str, str]) -> dict[str, Any]:
        return {"index": news.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, news: News) -> dict[str, Any] | None:
        if news.logprobs is None:
            return None
        return chat_logprobs(
            news.logprobs, self._body.top_logprobs or 0, self._served.engine.intake.tokenizer
        )
