"""`python -m core.conformance.rank`: one rank of a group whose collectives are checked, started by `group`.

It reads jobs from its standard input, and says on its standard output what it begins and how that ended, a line of
JSON each. When its standard input ends it leaves; in the middle of a job that means that the parent is gone, and the
process with it. Should it be stuck where it cannot notice that, an alarm ends it.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from core.conformance.group import START_SECONDS, Job, Key
from core.contracts.adapters import adapt
from core.contracts.communication import Communication, Group
from core.contracts.platform import Device, Platform
from core.discovery import load_plugins
from core.errors import UnsupportedShape
from core.ledger import Ledger

_LEAVE_SECONDS = 1.0  # once its standard input has ended


def main() -> int:
    """Be one rank; returns its exit code. What is wrong with the platform is said, and ends with 0."""
    # Standard output is for answers alone; whatever else is printed goes where errors go.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    orders, leaving = SimpleQueue[bytes](), threading.Event()
    threading.Thread(target=_read, args=(orders, leaving), daemon=True).start()
    try:
        return _work(orders, answers)
    finally:
        leaving.set()


def _work(orders: "SimpleQueue[bytes]", answers: TextIO) -> int:
    """One job after another, until there are none or one could not be done to its end."""
    while order := orders.get():
        try:
            job = Job(**json.loads(order))
        except (ValueError, TypeError) as error:
            print(f"this program is started by core.conformance.group, not by hand: {error}", file=sys.stderr)
            return 2
        speaker = _Speaker(answers, job.seconds)
        through = _run(job, speaker)
        speaker.end("through" if through else "stopped")
        if not through:
            break
    return 0


class _Speaker:
    """Tells the parent, and lives on for as long as the parent may be willing to wait for the next word."""

    def __init__(self, answers: TextIO, seconds: float) -> None:
        self._answers = answers
        self._limit = int(max(seconds, START_SECONDS)) + 10
        signal.alarm(self._limit)

    def say(self, **words: Any) -> None:
        signal.alarm(self._limit)
        self._answers.write(json.dumps(words) + "\n")

    def end(self, over: str) -> None:
        """The last word on a job. The next one may be long in coming."""
        self.say(over=over)
        signal.alarm(0)

    def tried(self, key: Key, check: Callable[[], str]) -> bool:
        """Whether the group can go on: what a check raises leaves the ranks in no common order."""
        self.say(begin=key)
        problem, unsupported, raised = "", "", False
        try:
            problem = check()
        except UnsupportedShape as error:
            unsupported = str(error) or "refused without a reason"
        except Exception as error:
            problem, raised = f"raised {type(error).__name__}: {error}", True
        self.say(end=key, problem=problem, unsupported=unsupported)
        return not raised


def _run(job: Job, speaker: _Speaker) -> bool:
    """Meet the others, try everything, and leave. False when something had to be left out."""
    from core.conformance.collectives import Place, checks
    from core.execution.dispatch import resolve_communication

    device = Device(**job.device)
    platform = _platform(job.platform, device)
    group = Group(rank=job.rank, size=job.size, address=job.address if job.size > 1 else "")
    place = Place(group=group, torch_device=device.torch_device, folder=Path(job.folder), seed=job.seed)
    speaker.say(ready=True)
    met: list[Communication] = []

    def connect() -> str:
        met.append(resolve_communication(platform=platform, group=group, device=device, ledger=Ledger()))
        return "" if met[0].group == group else f"its group is {met[0].group}, expected {group}"

    def close() -> str:
        met[0].close()
        return ""

    sound = speaker.tried(("connect", place.ranks, ""), connect)
    if not met:
        return sound
    every = [(check.key, partial(check.run, met[0])) for check in checks(place, job.dtypes)]
    return all(speaker.tried(key, run) for key, run in [*every, (("close", place.ranks, ""), close)])


@cache
def _platform(spelled: str, device: Device) -> Platform:
    """By name where it is installed, or module:Class. The process is set up for it."""
    from core.execution.dispatch import resolve_execution

    module, colon, name = spelled.partition(":")
    if colon:
        platform = adapt(attrgetter(name)(import_module(module)))()
    else:
        platform, _ = load_plugins().select_platform(spelled)
    resolve_execution(platform, device, Ledger()).set_up()
    return platform


def _read(orders: "SimpleQueue[bytes]", leaving: threading.Event) -> None:
    """Standard input, line by line, and b"" at its end. Whoever does not leave then is made to."""
    with open(0, "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            orders.put(line)
    orders.put(b"")
    if not leaving.wait(_LEAVE_SECONDS):
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
