"""What the scheduler decides, step by step, written down on one platform and compared with another's.

A script says which requests come and go at which step. Its answers have lengths that nobody's tokens can change, and no
two of them begin alike for longer than their prompts do, so that every platform must be asked for the very same steps:
the same sequences, counts and blocks. One that is not has limits or a cache that the scheduler saw otherwise.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.conformance.driver import MAX_STEPS, Session
from core.engine.engine import Engine, SequenceDelta
from core.engine.request import Sequence as EngineSequence
from core.errors import EngineError
from core.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Event:
    """Before step `step`, counted from 0, a request comes; without a prompt, the request of that name goes."""

    step: int
    name: str
    prompt: tuple[int, ...] = ()
    num_tokens: int = 1


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One running sequence: what of it is known, what of that is computed, and its blocks per cache group."""

    sequence_id: int
    num_tokens: int
    num_computed: int
    blocks: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """How things stand after a step.

    added  (request, answer, new tokens, why it ended or None) of whoever gained something
    """

    running: tuple[Placed, ...]
    waiting: tuple[int, ...]
    added: tuple[tuple[str, int, int, str | None], ...]
    num_preemptions: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A script's steps on one engine. num_blocks: of each cache group; steps compare only where these are equal."""

    num_blocks: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def num_preemptions(self) -> int:
        return self.steps[-1].num_preemptions if self.steps else 0


def record(engine: Engine, script: Iterable[Event]) -> Trace:
    """Play a script to its end. Raises EngineError when that does not come."""
    session, left = Session(engine), sorted(script, key=lambda event: event.step)
    steps: list[Step] = []
    while left or engine.has_work:
        if len(steps) == MAX_STEPS:
            raise EngineError(f"requests are unfinished after {MAX_STEPS:,} steps")
        while left and left[0].step <= len(steps):
            _play(session, left.pop(0))
        steps.append(_step(engine, session.step()))
    pools = engine.scheduler.cache.pools
    return Trace(num_blocks=tuple(pool.num_blocks for pool in pools), steps=tuple(steps))


def difference(expected: Trace, actual: Trace) -> str:
    """The first step that is another, or ""."""
    for number, (right, found) in enumerate(zip(expected.steps, actual.steps, strict=False)):
        if right != found:
            return f"step {number}: {_shown(found, right)}, expected {_shown(right, found)}"
    if len(expected.steps) != len(actual.steps):
        return f"{len(actual.steps)} steps, expected {len(expected.steps)}"
    return ""


def _play(session: Session, event: Event) -> None:
    if event.prompt:
        params = SamplingParams(temperature=0, max_tokens=event.num_tokens, ignore_eos=True)
        session.add(event.name, event.prompt, params)
    else:
        session.abort([event.name])


def _step(engine: Engine, deltas: Sequence[SequenceDelta]) -> Step:
    scheduler = engine.scheduler
    return Step(
        running=tuple(_placed(sequence) for sequence in scheduler.running),
        waiting=tuple(sequence.sequence_id for sequence in scheduler.waiting),
        added=tuple((d.request_id, d.index, len(d.token_ids), d.finish_reason) for d in deltas),
        num_preemptions=scheduler.statistics.num_preemptions,
    )


def _placed(sequence: EngineSequence) -> Placed:
    return Placed(
        sequence_id=sequence.sequence_id,
        num_tokens=len(sequence.token_ids),
        num_computed=sequence.num_computed,
        blocks=tuple(tuple(table) for table in sequence.blocks),
    )


def _shown(step: Step, other: Step) -> str:
    """The part of a step in which it differs."""
    for name in ("added", "num_preemptions", "waiting"):
        if getattr(step, name) != getattr(other, name):
            return f"{name} {getattr(step, name)}"
    odd = [placed for placed in step.running if placed not in other.running]
    return " and ".join(map(str, odd[:2])) or f"{len(step.running)} sequences run"
