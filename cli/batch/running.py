"""Many requests of a batch at once, each answer written as soon as it is there."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from cli.batch.calls import App, Reply, post
from cli.batch.journal import Journal
from cli.batch.requests import BatchRequest
from cli.failures import CommandError

FULL, UNAVAILABLE = 429, 503
AGAIN_S = 0.5  # until a request is sent again that found no room


class Batch:
    """Answers requests with an app. Failed ones go to `failures`, which may be the same journal.

    is_alive  whether the app's engine is; what a dying one answers is no answer
    ended     called with whether the request succeeded, when its line has been written
    """

    def __init__(
        self,
        app: App,
        is_alive: Callable[[], bool],
        answers: Journal,
        failures: Journal,
        ended: Callable[[bool], None],
    ) -> None:
        self._app = app
        self._is_alive = is_alive
        self._answers = answers
        self._failures = failures
        self._ended = ended
        self._written: asyncio.Queue[tuple[bytes, bool] | None] = asyncio.Queue()

    async def run(self, requests: Iterator[BatchRequest], max_concurrency: int) -> None:
        """Returns when every request has a line. Raises CommandError when the engine or the disk fails."""

        async def work() -> None:
            for request in requests:
                self._written.put_nowait(await self._answer(request))

        async def work_all() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(max_concurrency):
                    group.create_task(work())
            self._written.put_nowait(None)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write())
                group.create_task(work_all())
        except BaseExceptionGroup as errors:
            raise _first(errors) from None

    async def _answer(self, request: BatchRequest) -> tuple[bytes, bool]:
        """The line for the output, and whether it says that the request succeeded."""
        if request.refusal is not None:
            error = {"code": "invalid_request", "message": request.refusal}
            return _line(request, None, error), False
        while (reply := await post(self._app, request.url, request.body)).status == FULL:
            await asyncio.sleep(AGAIN_S)
        if reply.status == UNAVAILABLE or not self._is_alive():
            raise CommandError("the engine has stopped; run the same command again to go on from here")
        response = {
            "status_code": reply.status,
            "request_id": reply.headers.get("x-request-id", ""),
            "body": _content(reply),
        }
        return _line(request, response, None), reply.status == 200

    async def _write(self) -> None:
        """Whatever has been answered while the last lines were on their way to the disk is written at once."""
        last = False
        while not last:
            found = [await self._written.get()]
            while not self._written.empty():
                found.append(self._written.get_nowait())
            last = found[-1] is None
            lines = [entry for entry in found if entry is not None]
            for journal, success in ((self._answers, True), (self._failures, False)):
                if chosen := [line for line, succeeded in lines if succeeded is success]:
                    await asyncio.to_thread(journal.append, chosen)
            for _, succeeded in lines:
                self._ended(succeeded)


def _line(request: BatchRequest, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    content = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": request.custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(content) + b"\n"


def _content(reply: Reply) -> Any:
    """JSON as it is, without writing it anew; anything else as a text."""
    if reply.headers.get("content-type", "").startswith("application/json"):
        return msgspec.Raw(reply.body)
    return reply.body.decode(errors="replace")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
