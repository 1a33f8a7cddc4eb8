"""Groups of ranks, each rank a process of its own: started, heard, and ended. None of them outlives its team.

What a rank does with its job is `rank`'s business. To start a process takes seconds, so one whose group ended well is a
rank of the next group, too.
"""

import selectors
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.conformance.child import EXIT_SECONDS, START_SECONDS, Child, Said

_GRACE_SECONDS = 2.0  # for the others, once a rank has ended early: they may say why

Key = tuple[str, str, str]
"""One check of a group: subject, case, dtype."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a rank is told.

    platform  its name, or module:Class of one that is not installed
    device    the fields of a Device
    folder    that the ranks of a group share, for what they show one another
    seconds   how long a collective may take
    """

    platform: str
    device: dict[str, Any]
    rank: int
    size: int
    address: str
    dtypes: list[str]
    seed: int
    folder: str
    seconds: float


class Rank(Child):
    """A process, and what it has said of its job.

    ready   whether it has come as far as meeting the others
    begun   the checks that it has begun, in order
    told    of those that it has ended: what is wrong, and why it does not do it at all
    over    "through" or "stopped" by its own word, or "ended" without one; "" while it goes on
    """

    def __init__(self, errors: Path) -> None:
        # One thread each: more would fight for the cores.
        super().__init__("core.conformance.rank", errors, OMP_NUM_THREADS="1")
        self._forget()

    def give(self, job: Job) -> None:
        """Tell it what to do next."""
        self._forget()
        self.tell(asdict(job))

    def read(self) -> None:
        """Take in what it has said."""
        for line in self.heard():
            self._hear(line)
        if self.closed:
            self.over = self.over or "ended"

    def finish(self) -> None:
        """Wait for its exit if its job is over, and end it."""
        self.end(EXIT_SECONDS if self.over else 0.0)

    def fate(self, verb: str) -> str:
        """Why it did not `verb`: it took too long, or had ended."""
        return f"{self.ending}{self.complaint}" if self.ending else f"did not {verb} within {self.waited}"

    def _forget(self) -> None:
        self.begun: dict[Key, None] = {}
        self.told: dict[Key, tuple[str, str]] = {}
        self.ready, self.over, self.waited = False, "", f"{EXIT_SECONDS:g} s"

    def _hear(self, line: Said) -> None:
        self.ready |= "ready" in line
        self.over = line.get("over", self.over)
        if "begin" in line:
            subject, case, dtype = line["begin"]
            self.begun[subject, case, dtype] = None
        elif "end" in line:
            subject, case, dtype = line["end"]
            self.told[subject, case, dtype] = (line["problem"], line["unsupported"])


class Team:
    """Processes that are ranks, of one group after another. None of them lives once this context is left.

    folder  for what they write to standard error
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ranks: list[Rank] = []
        self._started = 0

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def run(self, jobs: Sequence[Job]) -> list[Rank]:
        """Ranks that did these jobs. Unless all of them came through, they have ended."""
        while len(self._ranks) < len(jobs):
            self._ranks.append(Rank(self._folder / f"errors-{self._started}"))
            self._started += 1
        ranks = self._ranks[: len(jobs)]
        for rank, job in zip(ranks, jobs, strict=True):
            rank.give(job)
        _listen(ranks, jobs[0].seconds)
        if any(rank.over != "through" for rank in ranks):
            self.end()
        return ranks

    def end(self) -> list[Rank]:
        """End every process: one whose job is over by itself, if it can. Returns them."""
        ranks, self._ranks = self._ranks, []
        with ExitStack() as stack:
            for rank in ranks:
                stack.callback(rank.finish)
            for rank in ranks:
                if rank.over:  # leaving takes time: all at once
                    rank.dismiss()
        return ranks


def ranks_in_words(size: int) -> str:
    """So many ranks: "1 rank", "2 ranks"."""
    return f"{size} rank{'s' if size > 1 else ''}"


def _listen(ranks: Sequence[Rank], seconds: float) -> None:
    """Until every rank's job is over, or none has said anything for too long."""
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            selector.register(rank, selectors.EVENT_READ, rank)
        while selector.get_map():
            limit, since = _patience(ranks, seconds)
            heard = selector.select(limit)
            for key, _ in heard:
                key.data.read()
                if key.data.over:
                    selector.unregister(key.fileobj)
            if not heard:
                for rank in ranks:
                    rank.waited = rank.waited if rank.over else f"{limit:g} s{since}"
                return


def _patience(ranks: Sequence[Rank], seconds: float) -> tuple[float, str]:
    """How many seconds of silence are too many, and since when, in words."""
    if any(rank.over not in ("", "through") for rank in ranks):
        return min(seconds, _GRACE_SECONDS), " of another rank's end"
    return (seconds if all(rank.ready for rank in ranks) else max(seconds, START_SECONDS)), ""
