"""Where a reader waits for the outputs of its requests."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Self

from core.outputs import RequestOutput


class Answers(AsyncIterator[RequestOutput]):
    """The outputs of some requests, each as it grows; ends when all are finished.

    A slow reader misses steps and not text: an output holds everything since its beginning. Leaving the
    `with` block aborts what is unfinished. Iteration raises EngineDead when the engine died before the end.
    """

    def __init__(self, request_ids: Iterable[str], drop: Callable[[Iterable[str]], None]) -> None:
        self.request_ids = tuple(request_ids)
        self._drop = drop
        self._unfinished = set(self.request_ids)
        self._cut_off = False
        self._changed: dict[str, RequestOutput] = {}
        self._error: Exception | None = None
        self._event = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __anext__(self) -> RequestOutput:
        while not self._changed:
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                raise StopAsyncIteration
            self._event.clear()
            await self._event.wait()
        return self._changed.pop(next(iter(self._changed)))

    @property
    def complete(self) -> bool:
        """Whether every request finished by itself, and nothing was cut off by `close` or a failure."""
        return not (self._unfinished or self._cut_off)

    def close(self) -> None:
        """Abort what is unfinished; iteration ends after what has arrived."""
        self._cut_off = self._cut_off or bool(self._unfinished)
        unfinished, self._unfinished = self._unfinished, set[str]()
        self._drop(unfinished)
        self._end()

    def end_at(self, when: float, error: Exception) -> None:
        """`end` what is unfinished by then, on the event loop's clock."""
        self._timer = asyncio.get_running_loop().call_at(when, self.end, error)

    def end(self, error: Exception) -> None:
        """Abort what is unfinished; iteration raises this error."""
        self.close()
        self.fail(error)

    def put(self, output: RequestOutput) -> None:
        """For the engine: this output has grown."""
        self._changed[output.request_id] = output
        if output.finished:
            self._unfinished.discard(output.request_id)
        if not self._unfinished:
            self._end()
        self._event.set()

    def fail(self, error: Exception) -> None:
        """For the engine: nothing more will come."""
        self._error = error
        self._cut_off = True
        self._unfinished.clear()
        self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._event.set()
