"""The engine for asyncio: a client of the engine process. The HTTP server is built on it; others may be.

    engine = await AsyncEngine.start(EngineConfig(model="smollm2-135m"))
    async for output in engine.generate("The capital of France is", SamplingParams(max_tokens=8)):
        print(output.outputs[0].text)
    await engine.close()

Prompts are tokenized and outputs detokenized here; the process computes. It belongs to the event loop that
started it, installs no signal handlers, and imports no torch.
"""

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from core.config import EngineConfig
from core.contracts.source import Progress
from core.engine import messages as m
from core.engine.answers import Answers
from core.engine.delivery import Delivery
from core.engine.engine import EngineInfo, EngineStatistics
from core.engine.intake import Intake, Messages
from core.engine.link import EngineLink
from core.engine.request import Request
from core.errors import CoreError, EngineDead, QueueFull, RequestError
from core.outputs import RequestOutput
from core.pooling_params import PoolingParams
from core.sampling_params import SamplingParams
from core.text.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger("core.engine")

DEFAULT_MAX_QUEUED = 1024


class AsyncEngine:
    """Made by `start`. Methods are for the event loop's thread."""

    def __init__(self, link: EngineLink, intake: Intake, info: EngineInfo, max_queued: int) -> None:
        self.info = info
        self._link = link
        self._intake = intake
        self._delivery = Delivery(intake.tokenizer)
        self._max_queued = max_queued
        self._answers: dict[str, Answers] = {}
        self._preparing = 0
        self._asked: deque[asyncio.Future[EngineStatistics]] = deque()
        self._death: str | None = None
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(
        cls, config: EngineConfig, *, progress: Progress | None = None, max_queued: int = DEFAULT_MAX_QUEUED
    ) -> Self:
        """Start the engine process and wait for the model to be loaded.

        progress    called with one line whenever something slow begins
        max_queued  requests that may be unfinished at once; QueueFull is raised for more

        Raises what `build_engine` raises, or EngineDead.
        """
        loading: list[asyncio.Future[Tokenizer]] = []

        def located(path: str) -> None:
            loading.append(asyncio.ensure_future(asyncio.to_thread(load_tokenizer, Path(path))))
            loading[0].add_done_callback(_forget)

        link, info = await EngineLink.start(config, progress or _silent, located)
        try:
            intake = Intake(info, await loading[0] if loading else None)
        except BaseException:
            await link.close(at_once=True)
            raise
        return cls(link, intake, info, max_queued)

    @property
    def intake(self) -> Intake:
        return self._intake

    @property
    def is_alive(self) -> bool:
        return self._death is None and self._link.is_alive

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._link.pid

    @property
    def num_unfinished(self) -> int:
        return len(self._answers) + self._preparing

    def check_health(self) -> None:
        """Raises EngineDead when nothing can be asked of the engine any more."""
        if not self.is_alive:
            raise EngineDead(self._death or "the engine process is ending")

    def check_room(self, num_requests: int = 1) -> None:
        """Raises QueueFull when so many more requests cannot be taken now, RequestError when never."""
        if num_requests > self._max_queued:
            raise RequestError(
                f"{num_requests:,} requests at once; at most {self._max_queued:,} are taken (max_queued)",
                parameter="prompt",
            )
        if self.num_unfinished + num_requests > self._max_queued:
            raise QueueFull(
                f"{self.num_unfinished:,} requests are unfinished and at most {self._max_queued:,} may be "
                "(max_queued); send this one again later"
            )

    async def request(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, **options: Any
    ) -> Request:
        """A checked request, tokenized off the event loop. Options are `Intake.request`'s.

        Raises RequestError, QueueFull, EngineDead.
        """
        return await self._prepare(self._intake.request, prompt, params, options)

    async def chat_request(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> Request:
        """The same for a conversation; options are `Intake.chat_request`'s."""
        return await self._prepare(self._intake.chat_request, messages, params, options)

    async def pooling_request(
        self, prompt: str | Sequence[int], params: PoolingParams | None = None, **options: Any
    ) -> Request:
        """The same for a text that is pooled; options are `Intake.pooling_request`'s."""
        return await self._prepare(self._intake.pooling_request, prompt, params or PoolingParams(), options)

    def submit(self, requests: Sequence[Request], prompts: Sequence[str | None] = ()) -> Answers:
        """Send checked requests, all or none; `prompts` are their texts, for the outputs.

        Raises QueueFull, EngineDead, and RequestError when a request id is in use.
        """
        self.check_health()
        self.check_room(len(requests))
        ids = [request.request_id for request in requests]
        taken = self._answers.keys() & ids
        if taken or len(set(ids)) < len(ids):
            raise RequestError(f"request id {', '.join(taken) or ids[0]} is in use", parameter="request_id")
        answers = Answers(ids, self.drop)
        for i, request in enumerate(requests):
            self._delivery.register(request, prompts[i] if prompts else None)
            self._answers[request.request_id] = answers
            self._link.send(m.AddRequest(request))
        return answers

    async def encode(
        self, prompt: str | Sequence[int], params: PoolingParams | None = None, **options: Any
    ) -> RequestOutput:
        """The finished output of a text that is pooled: its numbers are in `pooled`.

        Cancelling the task aborts the request. Raises RequestError, QueueFull, EngineDead.
        """
        request = await self.pooling_request(prompt, params, **options)
        with self.submit([request], [prompt if isinstance(prompt, str) else None]) as answers:
            return [output async for output in answers][-1]

    async def generate(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[RequestOutput]:
        """Answer a prompt: the same output again and again as it grows, until it is `finished`.

        Abandoning the iterator aborts the request. Raises RequestError, QueueFull, EngineDead.
        """
        request = await self.request(prompt, params, **options)
        with self.submit([request], [prompt if isinstance(prompt, str) else None]) as answers:
            async for output in answers:
                yield output

    async def chat(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[RequestOutput]:
        """`generate` for a conversation. Without `params` the answer may fill the context."""
        if params is None:
            params = self._intake.default_params(max_tokens=None)
        request = await self.chat_request(messages, params, **options)
        with self.submit([request]) as answers:
            async for output in answers:
                yield output

    def abort(self, request_id: str) -> None:
        """End a request; its output finishes with "abort". Ids that are not under way are ignored."""
        if request_id in self._answers:
            self._link.send(m.Abort([request_id]))

    def drop(self, request_ids: Iterable[str]) -> None:
        """End requests whose answers nobody reads any more."""
        known = [request_id for request_id in request_ids if self._answers.pop(request_id, None) is not None]
        for request_id in known:
            self._delivery.forget(request_id)
        if known:
            self._link.send(m.Abort(known))

    def fail_unfinished(self, error: Exception) -> None:
        """Abort everything under way; its readers get this error."""
        open_answers = set(self._answers.values())
        self.drop(list(self._answers))
        for answers in open_answers:
            answers.fail(error)

    async def statistics(self) -> EngineStatistics:
        """A snapshot, taken by the engine between two steps. Raises EngineDead."""
        self.check_health()
        future = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self._link.send(m.AskStatistics())
        return await future

    async def wait_until_dead(self) -> str:
        """Returns the reason once the engine is gone, closed or not."""
        await asyncio.wait({self._listener})
        return self._death or ""

    async def close(self) -> None:
        """End the process; whatever is under way gets EngineDead. May be called twice."""
        self._die("the engine was closed")
        self._listener.cancel()
        await asyncio.wait({self._listener})
        await self._link.close()

    async def _prepare(
        self,
        make: Callable[..., Request],
        prompt: Any,
        params: SamplingParams | PoolingParams | None,
        options: dict[str, Any],
    ) -> Request:
        self.check_health()
        self.check_room()
        options.setdefault("request_id", uuid.uuid4().hex)
        self._preparing += 1
        try:
            return await asyncio.to_thread(make, prompt, params or self._intake.default_params(), **options)
        finally:
            self._preparing -= 1

    async def _listen(self) -> None:
        try:
            while True:
                self._take(await self._link.receive())
        except EngineDead as death:
            self._die(str(death))
        except Exception as error:
            log.exception("the engine's client failed")
            self._die(f"the engine's client failed: {type(error).__name__}: {error}")

    def _take(self, message: m.FromEngine) -> None:
        match message:
            case m.Deltas(deltas):
                outputs, stopped = self._delivery.apply(deltas)
                if stopped:
                    self._link.send(m.Stop(stopped))
                for output in outputs:
                    self._answers[output.request_id].put(output)
                    if output.finished:
                        del self._answers[output.request_id]
            case m.Failed(request_id=str(request_id)):
                self._refuse(request_id, m.raised_again(message))
            case m.Statistics(statistics):
                waiting = self._asked.popleft()
                if not waiting.done():
                    waiting.set_result(statistics)
            case m.EngineFailed(text):
                self._die(text)
            case m.Progress() | m.Located() | m.Ready() | m.Failed():
                raise EngineDead(f"the engine said {type(message).__name__} out of turn")

    def _refuse(self, request_id: str, error: CoreError) -> None:
        answers = self._answers.get(request_id)
        if answers is not None:
            answers.close()
            answers.fail(error)

    def _die(self, reason: str) -> None:
        """Remember the first reason, and tell everybody who waits."""
        if self._death is not None:
            return
        self._death = reason
        for answers in set(self._answers.values()):
            answers.fail(EngineDead(reason))
        for request_id in self._answers:
            self._delivery.forget(request_id)
        self._answers.clear()
        for waiting in self._asked:
            if not waiting.done():
                waiting.set_exception(EngineDead(reason))
        self._asked.clear()


def _forget(loading: "asyncio.Future[Tokenizer]") -> None:
    """A tokenizer that fails matters only if the engine comes up; then it is awaited."""
    if not loading.cancelled():
        loading.exception()


def _silent(line: str) -> None:
    return
