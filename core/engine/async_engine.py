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
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, Self

from core.config import EngineConfig
from core.contracts.source import Progress
from core.contracts.telemetry import Observer
from core.engine import messages as m
from core.engine.answers import Answers
from core.engine.engine import EngineInfo, EngineStatistics
from core.engine.intake import Intake, Messages
from core.engine.link import EngineLink
from core.engine.observers import Observers
from core.engine.readers import Readers
from core.engine.request import Request
from core.engine.room import Room
from core.errors import EngineDead
from core.outputs import RequestOutput
from core.pooling_params import PoolingParams
from core.sampling_params import SamplingParams
from core.text.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger("core.engine")


class AsyncEngine:
    """Made by `start`. Methods are for the event loop's thread."""

    def __init__(self, link: EngineLink, intake: Intake, info: EngineInfo, room: Room) -> None:
        self.info = info
        self.room = room
        self.latest: EngineStatistics | None = None
        self._link = link
        self.intake = intake
        self._observers = Observers()
        self._readers = Readers(intake.tokenizer, room, self._observers)
        self._heard_at = self._stepped_at = monotonic()
        self._asked: deque[asyncio.Future[EngineStatistics]] = deque()
        self._death: str | None = None
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(
        cls, config: EngineConfig, *, progress: Progress | None = None, room: Room | None = None
    ) -> Self:
        """Start the engine process and wait for the model to be loaded.

        progress  called with one line whenever something slow begins
        room      how much may wait at once; QueueFull is raised for more

        Raises what `build_engine` raises, or EngineDead.
        """
        loading: list[asyncio.Future[Tokenizer]] = []

        def located(path: str) -> None:
            loading.append(asyncio.ensure_future(asyncio.to_thread(load_tokenizer, Path(path))))
            loading[0].add_done_callback(_forget)

        link, info = await EngineLink.start(config, progress or (lambda line: None), located)
        try:
            intake = Intake(info, await loading[0] if loading else None)
        except BaseException:
            await link.close(at_once=True)
            raise
        return cls(link, intake, info, room or Room())

    @property
    def is_alive(self) -> bool:
        return self._death is None and self._link.is_alive

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._link.pid

    @property
    def num_unfinished(self) -> int:
        return self.room.num_requests

    @property
    def silent_for(self) -> float:
        """Seconds since the engine last said something, while there is something that it owes; else 0."""
        return monotonic() - self._heard_at if self._owes else 0.0

    @property
    def stalled_for(self) -> float:
        """Seconds without a step while requests are unfinished, whatever else the engine says; else 0."""
        return monotonic() - self._stepped_at if self.is_alive and self._readers else 0.0

    @property
    def _owes(self) -> bool:
        return self.is_alive and bool(self._readers or self._asked)

    def observe(self, observer: Observer) -> None:
        """Tell this observer of everything from now on."""
        self._observers.add(observer)

    def say_stacks(self) -> None:
        """Have the engine's process write what its threads do to standard error, even while it hangs."""
        self._link.say_stacks()

    def kill(self, reason: str) -> None:
        """End the engine at once, because it hangs; whoever waits for it is told why."""
        self._die(reason)
        self._link.kill()

    def check_health(self) -> None:
        """Raises EngineDead when nothing can be asked of the engine any more."""
        if not self.is_alive:
            raise EngineDead(self._death or "the engine process is ending")

    async def request(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, **options: Any
    ) -> Request:
        """A checked request, tokenized off the event loop. Options are `Intake.request`'s.

        Raises RequestError, QueueFull, EngineDead.
        """
        return await self._prepare(self.intake.request, prompt, params, options)

    async def chat_request(
        self, messages: Messages, params: SamplingParams | None = None, **options: Any
    ) -> Request:
        """The same for a conversation; options are `Intake.chat_request`'s."""
        return await self._prepare(self.intake.chat_request, messages, params, options)

    async def pooling_request(
        self, prompt: str | Sequence[int], params: PoolingParams | None = None, **options: Any
    ) -> Request:
        """The same for a text that is pooled; options are `Intake.pooling_request`'s."""
        return await self._prepare(self.intake.pooling_request, prompt, params or PoolingParams(), options)

    def submit(self, requests: Sequence[Request], prompts: Sequence[str | None] = ()) -> Answers:
        """Send checked requests, all or none.

        prompts  their texts, for the outputs

        Raises QueueFull, EngineDead, and RequestError when a request id is in use.
        """
        self.check_health()
        self._expect()
        if not self._readers:
            self._stepped_at = monotonic()
        answers = self._readers.register(requests, prompts, self.drop)
        for request in requests:
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
            params = self.intake.default_params(max_tokens=None)
        request = await self.chat_request(messages, params, **options)
        with self.submit([request]) as answers:
            async for output in answers:
                yield output

    def abort(self, request_id: str) -> None:
        """End a request; its output finishes with "abort". Ids that are not under way are ignored."""
        if request_id in self._readers:
            self._link.send(m.Abort([request_id]))

    def drop(self, request_ids: Iterable[str]) -> None:
        """End requests whose answers nobody reads any more."""
        if known := self._readers.drop(request_ids):
            self._link.send(m.Abort(known))

    def fail_unfinished(self, error: Exception) -> None:
        """Abort everything under way; its readers get this error."""
        if known := self._readers.cut_off(error):
            self._link.send(m.Abort(known))

    async def statistics(self) -> EngineStatistics:
        """A snapshot, taken by the engine between two steps. Raises EngineDead."""
        self.check_health()
        return await self._ask()

    def ping(self) -> None:
        """Have the engine say something, so that `silent_for` tells whether it hangs; `latest` is renewed, too."""
        if self.is_alive and not self._asked:
            self._ask().add_done_callback(_forget)

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
        self.room.check()
        options.setdefault("request_id", uuid.uuid4().hex)
        arrived_at = monotonic()
        with self.room.preparing():
            made = await asyncio.to_thread(make, prompt, params or self.intake.default_params(), **options)
        return replace(made, arrived_at=arrived_at)

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
        if self._death is not None:  # it was killed, and said something before
            return
        self._heard_at = monotonic()
        match message:
            case m.Deltas(deltas, statistics):
                self._stepped_at = self._heard_at
                self._note(statistics)
                if stopped := self._readers.deliver(deltas):
                    self._link.send(m.Stop(stopped))
            case m.Failed(request_id=str(request_id)):
                self._readers.refuse(request_id, m.raised_again(message))
            case m.Statistics(statistics):
                self._note(statistics)
                waiting = self._asked.popleft()
                if not waiting.done():
                    waiting.set_result(statistics)
            case m.EngineFailed(text):
                self._die(text)
            case m.Progress() | m.Located() | m.Ready() | m.Failed():
                raise EngineDead(f"the engine said {type(message).__name__} out of turn")

    def _note(self, statistics: EngineStatistics) -> None:
        self.latest = statistics
        self._observers.stepped(statistics)

    def _ask(self) -> "asyncio.Future[EngineStatistics]":
        future: asyncio.Future[EngineStatistics] = asyncio.get_running_loop().create_future()
        self._expect()
        self._asked.append(future)
        self._link.send(m.AskStatistics())
        return future

    def _expect(self) -> None:
        """Something is going to be asked: if nothing was, silence counts from now."""
        if not self._owes:
            self._heard_at = monotonic()

    def _die(self, reason: str) -> None:
        """Remember the first reason, and tell everybody who waits."""
        if self._death is not None:
            return
        self._death = reason
        self._readers.die(reason)
        for waiting in self._asked:
            if not waiting.done():
                waiting.set_exception(EngineDead(reason))
        self._asked.clear()


def _forget(done: "asyncio.Future[Any]") -> None:
    """Its failure matters only to whoever awaits it."""
    if not done.cancelled():
        done.exception()
