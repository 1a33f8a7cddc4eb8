"""Levels in a process of their own: a kernel that ends its process, or hangs, ends its level, and others go on.

`python -m core.conformance.apart` is that process, which runs one level after another. Where one ended it, the next
level gets a new one: starting costs a second or two.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.conformance import Options, Result
from core.conformance.child import EXIT_SECONDS, START_SECONDS, Child, Parent
from core.conformance.levels import ENDED, LEVELS
from core.discovery import load_plugins
from core.errors import CoreError


@dataclass(frozen=True, kw_only=True)
class Job:
    """A level to run. options: the fields of `Options`; seconds: how long whoever listens is patient."""

    platform: str
    level: str
    options: dict[str, Any]
    seconds: float


class Apart:
    """Runs levels on an installed platform, by its name. No process is left once this context is.

    seconds  how long a level may report nothing before it is ended
    """

    def __init__(self, platform: str, seconds: float) -> None:
        self._platform, self._seconds = platform, seconds
        self._child: Child | None = None
        self._folder = TemporaryDirectory(prefix="conformance-")

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._end(0.0 if error else EXIT_SECONDS)
        self._folder.cleanup()

    def check(self, level: str, options: Options) -> Iterator[Result]:
        """Everything the level finds, as it comes; and if that ended it, what happened after which check."""
        child = self._child = self._child or Child(
            "core.conformance.apart", Path(self._folder.name, "errors")
        )
        job = Job(platform=self._platform, level=level, options=asdict(options), seconds=self._seconds)
        child.tell(asdict(job))
        limit, last, through = max(self._seconds, START_SECONDS), "", False
        try:
            while not through and (said := child.listen(limit)):
                limit = self._seconds
                for line in said:
                    through = "over" in line
                    if "result" in line:
                        result = Result(**line["result"])
                        last = ", ".join(filter(None, (result.name, result.dtype)))
                        yield result
        finally:
            if not through:
                self._end(EXIT_SECONDS if child.closed else 0.0)
        if not through:
            after = f"after {last}" if last else "before its first check was through"
            silent = f"said nothing for {limit:g} s {after}"
            problem = f"{child.ending} {after}{child.complaint}" if child.ending else silent
            yield Result(level=level, subject=ENDED, case=level, problem=problem)

    def _end(self, seconds: float) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end(seconds)


def main() -> int:
    """Run levels for whoever started this process; returns its exit code."""
    with Parent() as parent:
        for job in parent.jobs(Job):
            parent.expect(max(job.seconds, START_SECONDS))
            try:
                platform, device = load_plugins().select_platform(job.platform)
            except CoreError as error:
                sys.exit(" ".join(str(error).split()))
            parent.say(begin=job.level)
            for result in LEVELS[job.level].check(platform, device, Options(**job.options)):
                parent.say(result=asdict(result))
            parent.say(over=True)
            parent.rest()
    return 0


if __name__ == "__main__":
    sys.exit(main())
