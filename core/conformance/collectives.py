"""What every collective must return, in plain torch, from what every rank gives.

Each rank knows what the others give: whole numbers that follow from rank and place, small enough that sums of them are
exact in every dtype. So results are compared exactly, and a slice in the wrong place shows.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

from core.conformance.compare import difference
from core.conformance.group import Key, ranks_in_words
from core.contracts.communication import Communication, Group
from core.contracts.kernels import Tolerance
from core.errors import UnsupportedShape

_SHAPES: Mapping[str, tuple[int, ...]] = {"1 number": (1,), "4,096 numbers": (4096,), "[1501, 3]": (1501, 3)}
_LARGEST = 30  # four times this is a whole number in bfloat16, and so is every sum on the way
_ROUNDS = 2
_TURNS = 5  # of each rank: one that passes early may by chance not be seen to
_EXACT = Tolerance(relative=0.0, absolute=0.0)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank is: among whom, on which device, and in which folder they show each other how far they are."""

    group: Group
    torch_device: str
    folder: Path
    seed: int

    @property
    def ranks(self) -> str:
        return ranks_in_words(self.group.size)

    def given(self, shape: Sequence[int], salt: int = 0) -> list[Tensor]:
        """What each rank gives, int64 on the host: other numbers for each rank, place and salt."""
        places = torch.arange(math.prod(shape)).view(*shape)
        turn = 5 * (self.seed + salt)
        return [
            (11 * places + 17 * rank + turn) % (2 * _LARGEST + 1) - _LARGEST
            for rank in range(self.group.size)
        ]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check, on one rank. `run` returns what is wrong, or "". Every rank runs the same ones in the same order."""

    key: Key
    run: Callable[[Communication], str]


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective, seen from one rank.

    call       the collective itself
    expected   what it must return, from what every rank gives
    sliced     whether the tensor has a slice for each rank
    overwrites whether it may write into the tensor that it is given
    """

    name: str
    call: Callable[[Communication, Tensor], Tensor]
    expected: Callable[[list[Tensor]], Tensor]
    case: str = ""
    sliced: bool = False
    overwrites: bool = False


def collectives(group: Group) -> list[Collective]:
    """All of them but the barrier; a rank that is alone has nobody to send to."""
    rank, size = group.rank, group.size

    def own_slice(tensor: Tensor) -> Tensor:
        return tensor.chunk(size)[rank]

    found = [
        Collective(name="all_reduce", call=lambda c, t: c.all_reduce(t), expected=_summed, overwrites=True),
        Collective(
            name="all_gather", call=lambda c, t: c.all_gather(t), expected=lambda given: torch.cat(given)
        ),
        Collective(
            name="reduce_scatter",
            call=lambda c, t: c.reduce_scatter(t),
            expected=lambda given: own_slice(_summed(given)),
            sliced=True,
        ),
        Collective(
            name="all_to_all",
            call=lambda c, t: c.all_to_all(t),
            expected=lambda given: torch.cat([own_slice(each) for each in given]),
            sliced=True,
        ),
        *(
            Collective(
                name="broadcast", case=f" from rank {i}", call=partial(_broadcast, i), expected=itemgetter(i)
            )
            for i in range(size)
        ),
    ]
    if size > 1:
        before = itemgetter((rank - 1) % size)
        found.append(Collective(name="send, receive", case=" in a ring", call=_ring, expected=before))
    return found


def checks(place: Place, dtypes: Sequence[str]) -> Iterator[Check]:
    """Every check of a group, in order: each collective in each dtype, then all together, then the barrier."""
    every = collectives(place.group)
    for dtype in dtypes:
        for collective in every:
            for name, shape in _SHAPES.items():
                key = (collective.name, f"{place.ranks}{collective.case}, {name}", dtype)
                yield Check(key=key, run=partial(_alone, place, collective, shape, dtype))
        for collective in every:
            if collective.sliced and place.group.size > 1:
                key = (collective.name, f"{place.ranks}, no equal slices", dtype)
                yield Check(key=key, run=partial(_refuses, place, collective, dtype))
        key = ("in order", f"{place.ranks}, one after another", dtype)
        yield Check(key=key, run=partial(_in_order, place, every, dtype))
    key = ("barrier", f"{place.ranks}, each of them last", "")
    yield Check(key=key, run=partial(_barrier, place))


def _summed(given: list[Tensor]) -> Tensor:
    return torch.stack(given).sum(dim=0)


def _broadcast(source: int, communication: Communication, tensor: Tensor) -> Tensor:
    return communication.broadcast(tensor, source)


def _ring(communication: Communication, tensor: Tensor) -> Tensor:
    """To the next rank and from the one before. Sending may wait for the other: every second rank receives first."""
    rank, size = communication.group.rank, communication.group.size
    following, previous = (rank + 1) % size, (rank - 1) % size
    room = torch.zeros_like(tensor)
    if rank % 2:
        received = communication.receive(room, previous)
        communication.send(tensor, following)
        return received
    communication.send(tensor, following)
    return communication.receive(room, previous)


def _whole(place: Place, collective: Collective, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (place.group.size * shape[0], *shape[1:]) if collective.sliced else shape


def _on_device(place: Place, numbers: Tensor, dtype: str) -> Tensor:
    torch_dtype: torch.dtype = getattr(torch, dtype)
    return numbers.to(torch_dtype).to(place.torch_device)


def _alone(
    place: Place, collective: Collective, shape: tuple[int, ...], dtype: str, communication: Communication
) -> str:
    given = place.given(_whole(place, collective, shape))
    own = given[place.group.rank]
    tensor = _on_device(place, own, dtype)
    returned = collective.call(communication, tensor)
    if problem := _problem(returned, tensor, collective.expected(given)):
        return problem
    changed = "" if collective.overwrites else _problem(tensor, tensor, own)
    return f"wrote into the tensor that it was given: {changed}" if changed else ""


def _problem(returned: Tensor, like: Tensor, expected: Tensor) -> str:
    if returned.device != like.device:
        return f"returned a tensor on {returned.device}, expected one on {like.device}"
    return difference(returned, expected.to(like.dtype), _EXACT)


def _refuses(place: Place, collective: Collective, dtype: str, communication: Communication) -> str:
    size = place.group.size
    for shape in ((size + 1,), (2 * size - 1, 3), ()):
        tensor = _on_device(place, torch.ones(shape), dtype)
        try:
            collective.call(communication, tensor)
        except UnsupportedShape as refusal:
            if not str(refusal):
                return f"refused a tensor of shape {list(shape)} without a reason"
        except Exception as error:
            return f"raised {type(error).__name__}: {error}; UnsupportedShape is expected for {list(shape)}"
        else:
            return f"took a tensor of shape {list(shape)}, which has no {size} equal slices"
    return ""


def _in_order(place: Place, every: Sequence[Collective], dtype: str, communication: Communication) -> str:
    """All collectives with nothing in between. Results are looked at last: no call may change an earlier one's."""
    returned: list[tuple[Collective, Tensor, Tensor, Tensor]] = []
    for salt in range(1, _ROUNDS + 1):
        for shape in _SHAPES.values():
            for collective in every:
                given = place.given(_whole(place, collective, shape), salt)
                tensor = _on_device(place, given[place.group.rank], dtype)
                result = collective.call(communication, tensor)
                returned.append((collective, result, tensor, collective.expected(given)))
    for number, (collective, result, tensor, expected) in enumerate(returned, 1):
        if problem := _problem(result, tensor, expected):
            return f"call {number} of {len(returned)}, {collective.name}{collective.case}: {problem}"
    return ""


def _barrier(place: Place, communication: Communication) -> str:
    """Each rank is the last one in turn: it comes once it has seen that the others are about to wait for it."""
    rank, size, passed = place.group.rank, place.group.size, ""
    for turn in range(_TURNS * size):
        last, arrived = turn % size, place.folder / f"arrived-{turn}"
        if rank == last:
            others = [place.folder / f"waiting-{turn}-{other}" for other in range(size) if other != last]
            while not all(path.exists() for path in others):
                time.sleep(0.005)
            arrived.touch()
            communication.barrier()
            continue
        (place.folder / f"waiting-{turn}-{rank}").touch()
        communication.barrier()
        if not arrived.exists():
            passed = passed or f"passed before rank {last} had arrived"
    return passed
