"""`python -m core.conformance.rank`: one rank of a group whose collectives are checked, started by `group`.

It says what it begins and how that ended. Should it be stuck where it cannot notice that its parent is gone, an alarm
ends it.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path

from core.conformance.child import START_SECONDS, Parent
from core.conformance.group import Job, Key
from core.contracts.adapters import adapt
from core.contracts.communication import Communication, Group
from core.contracts.platform import Device, Platform
from core.discovery import load_plugins
from core.errors import UnsupportedShape
from core.ledger import Ledger


def main() -> int:
    """Be one rank; returns its exit code. What is wrong with the platform is said, and ends with 0."""
    with Parent() as parent:
        for job in parent.jobs(Job):
            parent.expect(max(job.seconds, START_SECONDS))
            through = _run(job, parent)
            parent.say(over="through" if through else "stopped")
            parent.rest()
            if not through:  # it could not be done to its end
                break
    return 0


def _tried(parent: Parent, key: Key, check: Callable[[], str]) -> bool:
    """Whether the group can go on: what a check raises leaves the ranks in no common order."""
    parent.say(begin=key)
    problem, unsupported, raised = "", "", False
    try:
        problem = check()
    except UnsupportedShape as error:
        unsupported = str(error) or "refused without a reason"
    except Exception as error:
        problem, raised = f"raised {type(error).__name__}: {error}", True
    parent.say(end=key, problem=problem, unsupported=unsupported)
    return not raised


def _run(job: Job, parent: Parent) -> bool:
    """Meet the others, try everything, and leave. False when something had to be left out."""
    from core.conformance.collectives import Place, checks
    from core.execution.dispatch import resolve_communication

    device = Device(**job.device)
    platform = _platform(job.platform, device)
    group = Group(rank=job.rank, size=job.size, address=job.address if job.size > 1 else "")
    place = Place(group=group, torch_device=device.torch_device, folder=Path(job.folder), seed=job.seed)
    parent.say(ready=True)
    met: list[Communication] = []

    def connect() -> str:
        met.append(resolve_communication(platform=platform, group=group, device=device, ledger=Ledger()))
        return "" if met[0].group == group else f"its group is {met[0].group}, expected {group}"

    def close() -> str:
        met[0].close()
        return ""

    sound = _tried(parent, ("connect", place.ranks, ""), connect)
    if not met:
        return sound
    every = [(check.key, partial(check.run, met[0])) for check in checks(place, job.dtypes)]
    return all(_tried(parent, key, run) for key, run in [*every, (("close", place.ranks, ""), close)])


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


if __name__ == "__main__":
    sys.exit(main())
