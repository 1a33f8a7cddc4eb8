"""Responses that can be asked for again, and those that are written while nobody waits for them."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.exceptions import HTTPException

from core.engine.answers import Answers
from core.errors import RequestError
from server.openai.responses.store import Store
from server.openai.responses.writing import UNFINISHED, Writing, failure

log = logging.getLogger("server")

CONTINUED = ("completed", "incomplete")
"""What a response may be that another one continues."""


class UnknownPrevious(RequestError):
    """previous_response_id names a response that is not kept here."""

    code = "previous_response_not_found"


class Record(msgspec.Struct, frozen=True):
    """A response as clients see it, and the conversation that it answers."""

    response: dict[str, Any]
    items: list[dict[str, Any]]

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The items that a response which continues this one begins with."""
        return self.items + self.response["output"]


@dataclass(frozen=True)
class _Running:
    writing: Writing
    answers: Answers
    task: "asyncio.Task[None]"


class Kept:
    """The responses of one app."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running: dict[str, _Running] = {}

    async def keep(self, writing: Writing) -> None:
        """Store the response as it is, if its client wants it stored."""
        if writing.body.store:
            record = Record(writing.response(), writing.items)
            await self._store.put(writing.id, msgspec.json.encode(record))

    async def find(self, response_id: str) -> Record:
        """Raises HTTPException 404."""
        running = self._running.get(response_id)
        if running is not None:
            return Record(running.writing.response(), running.writing.items)
        stored = await self._store.get(response_id)
        if stored is None:
            raise _not_found(response_id)
        record = msgspec.json.decode(stored, type=Record)
        if record.response["status"] in UNFINISHED:
            error = failure("the server ended before this response was finished")
            return Record(record.response | {"status": "failed", "error": error}, record.items)
        return record

    async def conversation(self, response_id: str) -> list[dict[str, Any]]:
        """What a response continues that names this one as its previous. Raises RequestError."""
        parameter = "previous_response_id"
        try:
            record = await self.find(response_id)
        except HTTPException as error:
            raise UnknownPrevious(f"{parameter}: {error.detail}", parameter=parameter) from None
        status = record.response["status"]
        if status not in CONTINUED:
            raise RequestError(
                f"the response {response_id} is {status}; only what is {' or '.join(CONTINUED)} can be continued",
                parameter=parameter,
            )
        return record.conversation

    def write(self, writing: Writing, answers: Answers) -> "asyncio.Task[None]":
        """Write a response in the background; it is found from now on."""
        task = asyncio.create_task(self._write(writing, answers))
        self._running[writing.id] = _Running(writing, answers, task)
        return task

    async def cancel(self, response_id: str) -> Record:
        """End a response in the background; one that is finished stays as it is. Raises HTTPException 404."""
        await self._stop(response_id)
        record = await self.find(response_id)
        if not record.response["background"]:
            raise RequestError(
                "only a response in the background can be cancelled; of another, close the connection",
                parameter="response_id",
            )
        return record

    async def delete(self, response_id: str) -> None:
        """Raises HTTPException 404."""
        await self._stop(response_id)
        if not await self._store.delete(response_id):
            raise _not_found(response_id)

    async def _stop(self, response_id: str) -> None:
        running = self._running.get(response_id)
        if running is not None:
            running.answers.close()
            await asyncio.wait({running.task})

    async def _write(self, writing: Writing, answers: Answers) -> None:
        """Store it at once, so that it is known should the server end before it does, and as it ends."""
        try:
            await self.keep(writing)
            try:
                with answers:
                    async for output in answers:
                        writing.take(output)
                writing.end()
            except Exception as error:
                writing.fail(error)
            await self.keep(writing)
        except Exception:
            log.exception("response %s could not be stored", writing.id)
        finally:
            answers.close()
            del self._running[writing.id]


def _not_found(response_id: str) -> HTTPException:
    return HTTPException(404, f"there is no response {response_id!r:.200} here")
