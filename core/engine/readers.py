"""Who waits for which request: from what the engine says to the outputs of those who asked."""

from collections.abc import Callable, Iterable, Sequence

from core.contracts.telemetry import Observer
from core.engine.answers import Answers
from core.engine.delivery import Delivery
from core.engine.engine import SequenceDelta
from core.engine.request import Request
from core.engine.room import Room
from core.errors import CoreError, EngineDead, RequestError
from core.text.tokenizer import Tokenizer


class Readers:
    """The requests that are under way, and their answers. Belongs to one event loop."""

    def __init__(self, tokenizer: Tokenizer | None, room: Room, observer: Observer) -> None:
        self._delivery = Delivery(tokenizer, observer)
        self._answers: dict[str, Answers] = {}
        self._room = room

    def __bool__(self) -> bool:
        return bool(self._answers)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._answers

    @property
    def request_ids(self) -> list[str]:
        return list(self._answers)

    def register(
        self,
        requests: Sequence[Request],
        prompts: Sequence[str | None],
        drop: Callable[[Iterable[str]], None],
    ) -> Answers:
        """Expect answers to checked requests, all or none; `drop` is called when nobody reads them any more.

        Raises QueueFull, and RequestError when a request id is in use.
        """
        self._room.check(len(requests), sum(len(request.prompt_token_ids) for request in requests))
        ids = [request.request_id for request in requests]
        taken = self._answers.keys() & ids
        if taken or len(set(ids)) < len(ids):
            raise RequestError(f"request id {', '.join(taken) or ids[0]} is in use", parameter="request_id")
        answers = Answers(ids, drop)
        for i, request in enumerate(requests):
            self._room.enter(request)
            self._delivery.register(request, prompts[i] if prompts else None)
            self._answers[request.request_id] = answers
        return answers

    def deliver(self, deltas: Sequence[SequenceDelta]) -> list[tuple[str, int]]:
        """Hand out what a step added; returns the answers, by request id and index, that reached a stop string."""
        outputs, stopped = self._delivery.apply(deltas)
        for output in outputs:
            self._room.begin(output.request_id)
            answers = self._answers[output.request_id]
            if output.finished:
                self._room.leave(output.request_id)
                del self._answers[output.request_id]
            answers.put(output)
        return stopped

    def drop(self, request_ids: Iterable[str]) -> list[str]:
        """Expect nothing more for these; returns those that were under way."""
        known = [request_id for request_id in request_ids if self._answers.pop(request_id, None) is not None]
        for request_id in known:
            self._room.leave(request_id)
            self._delivery.forget(request_id)
        return known

    def refuse(self, request_id: str, error: CoreError) -> None:
        """The engine does not take this request; its reader gets the error."""
        answers = self._answers.get(request_id)
        if answers is not None:
            answers.end(error)

    def cut_off(self, error: Exception) -> list[str]:
        """Every reader gets this error; returns the requests that were under way."""
        open_answers = set(self._answers.values())
        dropped = self.drop(self.request_ids)
        for answers in open_answers:
            answers.fail(error)
        return dropped

    def die(self, reason: str) -> None:
        """The engine is gone: every request has failed, and every reader gets EngineDead."""
        self._delivery.fail(reason)
        self.cut_off(EngineDead(reason))
