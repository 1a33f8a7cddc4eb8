"""POST /v1/completions."""

import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from core.outputs import CompletionOutput, RequestOutput
from core.sampling_params import SamplingParams
from server.body import read_body
from server.openai.answering import respond
from server.openai.answers import Completion, CompletionChunk
from server.openai.bodies import CompletionBody
from server.openai.choices import News, likeliest
from server.openai.fingerprint import system_fingerprint
from server.openai.logprobs import Position, legacy_logprobs, positions, prompt_logprobs
from server.routes import Routes
from server.state import Served, State

DEFAULT_MAX_TOKENS = 16


def completion_routes(state: State) -> Routes:
    routes = Routes()

    @routes.post("/v1/completions", body=CompletionBody, answer=Completion, event=CompletionChunk)
    async def create_completion(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, CompletionBody)
        served = state.take(body.model)
        served.engine.room.check(len(body.prompt))
        params = sampling_params(served, body)
        rendering = CompletionRendering(served, body)
        requests = [
            await served.engine.request(
                prompt,
                params,
                request_id=f"{rendering.response_id}-{i}",
                priority=body.priority,
                cache_salt=body.cache_salt,
                add_special_tokens=body.add_special_tokens,
                suffix=body.suffix or None,
            )
            for i, prompt in enumerate(body.prompt)
        ]
        texts = [prompt if isinstance(prompt, str) else None for prompt in body.prompt]
        return await respond(served.submit(request, requests, texts), rendering, body)

    return routes


def sampling_params(served: Served, body: CompletionBody) -> SamplingParams:
    """What the client asked for over the model's defaults. max_tokens 0 computes one token and hides it.

    Answers of which the best are chosen have log-probabilities, whether or not they are sent.
    """
    given = body.given_sampling()
    given["max_tokens"] = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if given["max_tokens"] == 0:
        given["max_tokens"] = 1
    if body.chooses:
        given |= {"n": body.best_of, "logprobs": 0}
    if body.logprobs is not None:
        given["logprobs"] = body.logprobs
        if body.echo:
            given["prompt_logprobs"] = body.logprobs
    return served.engine.intake.default_params(**given)


class CompletionRendering:
    """A completion as JSON: the text, after the prompt's if it is to be echoed."""

    def __init__(self, served: Served, body: CompletionBody) -> None:
        self.response_id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self.counts_answers = body.max_tokens != 0
        self._served = served
        self._body = body
        self._num_answers = body.n or 1
        self._sent: dict[int, int] = {}  # choice -> characters of logprob tokens so far

    def envelope(self, *, streamed: bool) -> dict[str, Any]:
        return {
            "id": self.response_id,
            "object": "text_completion",
            "created": self._created,
            "model": self._served.name,
            "system_fingerprint": system_fingerprint(self._served.engine.info),
        }

    def chosen(self, output: RequestOutput) -> list[CompletionOutput]:
        """Those that are sent: all, or of more than were asked for the likeliest, the likeliest first."""
        return likeliest(output.outputs, self._num_answers) if self._body.chooses else output.outputs

    def chunks(self, output: RequestOutput, news: News) -> list[dict[str, Any]]:
        return [self.choice(output, news)]

    def choice(self, output: RequestOutput, whole: News) -> dict[str, Any]:
        news, body = whole, self._body
        index = int(output.request_id.rpartition("-")[2]) * self._num_answers + news.index
        echoes = body.echo and news.first
        shown = self.counts_answers
        choice: dict[str, Any] = {
            "index": index,
            "text": (self._prompt_text(output) if echoes else "") + (news.text if shown else ""),
            "logprobs": self._logprobs(output, news, index) if body.logprobs is not None else None,
            "finish_reason": news.finish_reason if shown else news.finish_reason and "length",
            "stop_reason": news.stop_reason if shown else None,
        }
        if body.return_token_ids:
            choice["token_ids"] = news.token_ids if shown else []
            if news.first:
                choice["prompt_token_ids"] = output.prompt_token_ids
        if body.prompt_logprobs is not None and output.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
        return choice

    def extras(self, outputs: list[RequestOutput]) -> dict[str, Any]:
        return {}

    def _logprobs(self, output: RequestOutput, news: News, index: int) -> dict[str, Any]:
        tokens: list[Position] = []
        if self._body.echo and news.first and output.prompt_logprobs is not None:
            tokens.append((self._token_text(output.prompt_token_ids[0]), None))
            tokens += positions(p for p in output.prompt_logprobs if p is not None)
        if self.counts_answers:
            tokens += positions(news.logprobs or [])
        offset = self._sent.get(index, 0)
        self._sent[index] = offset + sum(len(text) for text, _ in tokens)
        return legacy_logprobs(tokens, offset)

    def _prompt_text(self, output: RequestOutput) -> str:
        if output.prompt is not None:
            return output.prompt
        tokenizer = self._served.engine.intake.tokenizer
        return "" if tokenizer is None else tokenizer.decode(output.prompt_token_ids)

    def _token_text(self, token: int) -> str:
        tokenizer = self._served.engine.intake.tokenizer
        return f"token_id:{token}" if tokenizer is None else tokenizer.token_text(token)
