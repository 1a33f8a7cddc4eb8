"""When requests are sent: in a closed loop, or at the random moments of a given rate."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from random import Random
from time import perf_counter

from cli.traffic.client import Ask
from cli.traffic.records import Record
from cli.traffic.settings import Load
from cli.traffic.texts import Question


def moments(load: Load, seed: int) -> Iterator[float]:
    """When each request is due, in seconds since the run began, for ever. Of a run with a rate."""
    source, now, rate = Random(seed), 0.0, load.request_rate or math.inf
    while True:
        yield now
        if math.isfinite(rate):
            now += source.gammavariate(load.burstiness, 1 / (rate * load.burstiness))


async def drive(
    load: Load,
    questions: Sequence[Question],
    ask: Ask,
    *,
    seed: int,
    finished: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Send every question as `load` says; what became of each, in their order.

    finished  called with each request when its answer has ended
    """
    began = perf_counter()
    room = asyncio.Semaphore(load.at_once or len(questions))
    drawn = None if load.request_rate is None else moments(load, seed)

    async def one(question: Question, due: float | None) -> Record:
        async with room:
            now = perf_counter() - began
            record = await ask(question, Record(now if due is None else due, sent=now), began)
        finished(record)
        return record

    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[Record]] = []
        for question in questions:
            due = None if drawn is None else next(drawn)
            if due is not None and (early := due - (perf_counter() - began)) > 0:
                await asyncio.sleep(early)
            tasks.append(group.create_task(one(question, due)))
    return [task.result() for task in tasks]
