"""A response while it is written, and as the object that clients see."""

import secrets
from time import time
from typing import Any, Literal

from core.outputs import CompletionOutput, PositionLogprobs, RequestOutput
from core.sampling_params import SamplingParams
from server.answering import checked
from server.errors import describe
from server.openai.logprobs import chat_logprobs
from server.openai.responses.bodies import ResponseBody, item_id
from server.state import Served

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

UNFINISHED: tuple[Status, ...] = ("queued", "in_progress")

ENDINGS: dict[str, Status] = {"stop": "completed", "length": "incomplete"}
"""By the reason for which an answer ended."""


class Writing:
    """One response. It is told of each output as it grows, and in the end why there will be no more.

    items  the conversation that it answers, what came before among it
    """

    def __init__(
        self, served: Served, body: ResponseBody, params: SamplingParams, items: list[dict[str, Any]]
    ) -> None:
        self.id = f"resp_{secrets.token_hex(24)}"
        self.item_id = item_id()
        self.items = items
        self.status: Status = "queued" if body.background else "in_progress"
        self.body = body
        self._served = served
        self._params = params
        self._created = int(time())
        self._completed: int | None = None
        self._output: RequestOutput | None = None
        self._error: dict[str, str] | None = None

    def take(self, output: RequestOutput) -> CompletionOutput:
        """The answer so far. Raises RequestFailed when it could not be computed."""
        self._output = checked(output)
        (answer,) = output.outputs
        self.status = ENDINGS.get(answer.finish_reason or "", "in_progress")
        if self.status == "completed":
            self._completed = int(time())
        return answer

    def end(self) -> None:
        """Nothing more comes: what is not finished was cancelled."""
        if self.status in UNFINISHED:
            self.status = "cancelled"

    def fail(self, error: Exception) -> None:
        """Nothing more comes, because of an error."""
        self.status, self._error = "failed", failure(describe(error).message)

    def response(self) -> dict[str, Any]:
        """The object that clients get. What it says is part of it once nothing more will be said."""
        body, params = self.body, self._params
        over = self.status not in UNFINISHED
        cut = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": self._completed,
            "status": self.status,
            "background": body.background,
            "error": self._error,
            "incomplete_details": cut,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata,
            "model": self._served.name,
            "output": [self.item()] if over and self._output is not None else [],
            "parallel_tool_calls": True,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": body.store,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": body.truncation,
            "usage": self._usage() if over else None,
        }

    def item(self) -> dict[str, Any]:
        """The message that the response consists of, once nothing more will be said."""
        status = "completed" if self.status == "completed" else "incomplete"
        return message_item(self.item_id, status, [self.part()])

    def part(self) -> dict[str, Any]:
        """All the text that there is."""
        (answer,) = self._output.outputs if self._output is not None else (CompletionOutput(0),)
        return text_part(answer.text, self.logprobs(answer.logprobs))

    def logprobs(self, positions: list[PositionLogprobs] | None) -> list[dict[str, Any]]:
        """Those of these tokens; none when they were not asked for."""
        top = self.body.num_logprobs
        if top is None or positions is None:
            return []
        return chat_logprobs(positions, top, self._served.engine.intake.tokenizer)["content"]

    def _usage(self) -> dict[str, Any] | None:
        if self._output is None:
            return None
        prompt, answer = self._output.prompt_token_ids, self._output.outputs[0].token_ids
        return {
            "input_tokens": len(prompt),
            "input_tokens_details": {
                "cached_tokens": self._output.num_cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": len(answer),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": len(prompt) + len(answer),
        }


def message_item(item_id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def failure(message: str) -> dict[str, str]:
    """Why a response has failed."""
    return {"code": "server_error", "message": message}
