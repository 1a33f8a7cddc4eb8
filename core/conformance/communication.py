"""Collectives among ranks, each a process of its own, over groups of several sizes.

What collectives must return stands in `collectives`. Here the ranks' words become results, and so does their silence:
one that hangs or dies is a problem like any other.
"""

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from core.conformance import Options, Result
from core.conformance.group import Job, Key, Rank, Team, ranks_in_words
from core.conformance.ops import tried_dtypes
from core.contracts.platform import Device, Platform
from core.discovery import load_plugins

SECONDS = 30.0
"""How long a group may say nothing before it is ended."""


def check(platform: Platform, device: Device, options: Options) -> Iterator[Result]:
    """Every collective over 1, 2 and 4 ranks, in each dtype."""
    yield from check_groups(platform, device, options, (1, 2, 4))


def check_groups(
    platform: Platform, device: Device, options: Options, sizes: Sequence[int], seconds: float = SECONDS
) -> Iterator[Result]:
    """Every collective over groups of these sizes. Ranks share devices where there are fewer of them."""
    dtypes = list(tried_dtypes(platform.capabilities(device), options))
    devices = [device, *(other for other in platform.probe().devices if other != device)]
    name = spelled(platform)
    with TemporaryDirectory(prefix="core-communication-") as folder, Team(Path(folder)) as team:
        for size in sizes:
            shared, address = Path(folder, f"{size}"), f"tcp://127.0.0.1:{_free_port()}"
            shared.mkdir()
            jobs = [
                Job(
                    platform=name,
                    device=asdict(devices[rank % len(devices)]),
                    rank=rank,
                    size=size,
                    address=address,
                    dtypes=dtypes,
                    seed=options.seed,
                    folder=str(shared),
                    seconds=seconds,
                )
                for rank in range(size)
            ]
            yield from _results(team.run(jobs))
        yield from _ends(team.end())


def spelled(platform: Platform) -> str:
    """How another process finds this platform: its name where it is installed, else module:Class."""
    cls = type(platform)
    for found in load_plugins().platforms:
        if type(found.platform) is cls:
            return found.name
    return f"{cls.__module__}:{cls.__qualname__}"


def _results(ranks: Sequence[Rank]) -> Iterator[Result]:
    """One result for each check that any rank has begun, and one for the processes themselves."""
    for key in dict.fromkeys(key for rank in ranks for key in rank.begun):
        yield _result(key, ranks)
    yield _processes(ranks_in_words(len(ranks)), [_course(rank) for rank in ranks])


def _ends(ranks: Sequence[Rank]) -> Iterator[Result]:
    """How processes ended that came through every group; those of a group that went wrong are told of with it."""
    if ranks:
        yield _processes("exit", [rank.fate("exit") if rank.ended_badly else "" for rank in ranks])


def _processes(case: str, said: Sequence[str]) -> Result:
    problem = _together({number: text for number, text in enumerate(said) if text}, len(said))
    return Result(level="communication", subject="processes", case=case, problem=problem)


def _course(rank: Rank) -> str:
    """What is wrong with how a rank began and went on, beside what its checks say."""
    if not rank.ready:
        return rank.fate("start")
    if rank.over in ("through", "stopped"):
        return rank.fate("exit") if rank.ended_badly else ""
    return rank.fate("go on") if rank.begun.keys() == rank.told.keys() else ""


def _result(key: Key, ranks: Sequence[Rank]) -> Result:
    problems: dict[int, str] = {}
    refusals: dict[int, str] = {}
    for number, rank in enumerate(ranks):
        problem, refusal = rank.told.get(key, ("", ""))
        if key in rank.begun and key not in rank.told:
            problem = f"{rank.fate('return')}; what follows was not tried"
        if problem:
            problems[number] = problem
        if refusal:
            refusals[number] = refusal
    if refusals and (problems or len(refusals) < len(ranks)):
        problems |= {number: f"refuses what others do: {reason}" for number, reason in refusals.items()}
        refusals = {}
    return Result(
        level="communication",
        subject=key[0],
        case=key[1],
        dtype=key[2],
        problem=_together(problems, len(ranks)),
        unsupported=_together(refusals, len(ranks)),
    )


def _together(said: Mapping[int, str], size: int) -> str:
    """What ranks said, each with the ranks that said it; what all said alike, once."""
    alike: dict[str, list[int]] = {}
    for number, text in said.items():
        alike.setdefault(text, []).append(number)
    if len(said) == size and len(alike) == 1:
        return next(iter(alike))
    return "; ".join(
        f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: {text}"
        for text, numbers in alike.items()
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
