"""Files as tensors: their pages come and go with the tensors."""

import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from core.weights.mapped import MappedFile

MIB = 1 << 20
SIZE = 32 * MIB
linux = pytest.mark.skipif(sys.platform != "linux", reason="counts a process's pages as Linux does")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(torch.arange(2 * SIZE // 8).numpy().tobytes())
    return path


def grown(action: Callable[[], object]) -> tuple[object, float]:
    """What an action returns, and by how many MiB this process's resident memory grew."""
    process = psutil.Process()
    before = process.memory_info().rss
    result = action()
    return result, (process.memory_info().rss - before) / MIB


def numbers(file: MappedFile, offset: int = 0) -> torch.Tensor:
    return file.tensor(offset, SIZE, torch.int64, (SIZE // 8,))


@linux
def test_pages_come_with_a_tensor_and_go_with_its_last_view(path: Path) -> None:
    file = MappedFile(path)
    tensor, more = grown(lambda: numbers(file))
    assert 28 < more < 40
    assert isinstance(tensor, torch.Tensor)
    held = [tensor.view(2, -1)[1]]
    del tensor
    assert held[0][0] == SIZE // 16
    _, more = grown(held.clear)
    assert -40 < more < -28


@linux
def test_a_tensor_that_stays_keeps_its_pages_when_its_neighbour_goes(path: Path) -> None:
    file = MappedFile(path)
    first, second = numbers(file, 8), numbers(file, 8 + SIZE - 8)
    second[0] = -1
    del first
    assert second[0] == -1
    assert torch.equal(second[1:], torch.arange(SIZE // 8 + 1, 2 * SIZE // 8))


def test_what_is_written_to_one_reading_is_not_lost_with_another(path: Path) -> None:
    file = MappedFile(path)
    first, second = numbers(file), numbers(file)
    first[100_000] = -1
    del second
    assert first[100_000] == -1


@linux
def test_what_is_written_never_reaches_the_file_or_a_later_reading(path: Path) -> None:
    file = MappedFile(path)
    tensor = numbers(file)
    tensor[100_000] = -1
    del tensor
    assert numbers(file)[100_000] == 100_000
    assert numbers(MappedFile(path))[100_000] == 100_000


def test_a_tensor_of_nothing_and_one_at_an_odd_place_can_be_read(path: Path) -> None:
    file = MappedFile(path)
    assert file.tensor(5, 0, torch.float32, (0, 3)).shape == (0, 3)
    expected = torch.frombuffer(bytearray(path.read_bytes()[3:11]), dtype=torch.int32)
    assert torch.equal(file.tensor(3, 8, torch.int32, (2,)), expected)
