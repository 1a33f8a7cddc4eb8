"""The reference's collectives, among real processes."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from core.contracts.communication import Group
from core.errors import ConfigError, PlatformError
from core.reference.communication import connect

RANK = """
import sys
import torch
from core.contracts.communication import Group
from core.errors import UnsupportedShape
from core.reference.communication import connect

torch.set_num_threads(1)
rank, size = int(sys.argv[1]), int(sys.argv[2])
group = connect(Group(rank=rank, size=size, address=sys.argv[3]))
assert group.group.rank == rank

for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64):
    def tensor(*values):
        return torch.tensor(values).to(dtype)

    total = sum(range(1, size + 1))
    assert group.all_reduce(tensor(rank + 1, 2 * rank + 2)).equal(tensor(total, 2 * total))
    rows = torch.full((2, 3), rank).to(dtype)
    in_order = torch.arange(size).repeat_interleave(2)[:, None].expand(-1, 3).to(dtype)
    assert group.all_gather(rows).equal(in_order)
    assert group.all_gather(rows.t()[:, :1]).shape == (3 * size, 1)
    kept = torch.arange(2 * size).to(dtype)
    assert group.reduce_scatter(kept).equal(tensor(2 * rank, 2 * rank + 1) * size)
    assert kept.equal(torch.arange(2 * size).to(dtype))
    assert group.broadcast(tensor(rank, 7), size - 1).equal(tensor(size - 1, 7))
    sent = torch.arange(size).to(dtype) + 10 * rank
    assert group.all_to_all(sent).equal(torch.arange(size).to(dtype) * 10 + rank)
    if rank == 0:
        group.send(tensor(5, 6), 1)
    if rank == 1:
        assert group.receive(tensor(0, 0), 0).equal(tensor(5, 6))
    assert group.all_reduce(torch.empty(0, 4, dtype=dtype)).shape == (0, 4)

try:
    group.reduce_scatter(torch.zeros(size + 1))
    raise SystemExit("an indivisible tensor was accepted")
except UnsupportedShape as error:
    assert f"multiple of {size}" in str(error)
group.barrier()
assert not torch.distributed.is_initialized()
group.close()
print("done")
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("size", [2, 4])
def test_collectives_among_processes_mean_what_they_mean_in_mpi(size: int) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(size), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]
    try:
        finished = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()

    assert [(out.strip(), rank.returncode) for rank, (out, _) in zip(ranks, finished, strict=True)] == [
        ("done", 0)
    ] * size, "\n".join(errors for _, errors in finished)


def test_a_group_of_one_needs_nobody() -> None:
    alone, tensor = connect(Group(rank=0, size=1)), torch.arange(6)

    for result in (
        alone.all_reduce(tensor),
        alone.all_gather(tensor),
        alone.reduce_scatter(tensor),
        alone.broadcast(tensor, 0),
        alone.all_to_all(tensor),
    ):
        assert result.equal(tensor)
    alone.barrier()
    alone.close()
    with pytest.raises(PlatformError, match="no rank 1"):
        alone.send(tensor, 1)
    with pytest.raises(PlatformError, match="no rank 1"):
        alone.broadcast(tensor, 1)


def test_an_impossible_group_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank 2 is outside a group of 2"):
        connect(Group(rank=2, size=2, address="tcp://127.0.0.1:29500"))
    with pytest.raises(ConfigError, match=r"'127\.0\.0\.1:29500'; expected tcp://HOST:PORT"):
        connect(Group(rank=0, size=2, address="127.0.0.1:29500"))


def test_ranks_that_do_not_meet_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    monkeypatch.setattr("core.reference.communication._MEET_TIMEOUT", timedelta(seconds=1))

    with pytest.raises(PlatformError, match="rank 0 of 2 did not meet the others"):
        connect(Group(rank=0, size=2, address=f"tcp://127.0.0.1:{free_port()}"))
