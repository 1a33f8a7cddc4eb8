"""Host memory: what it counts, what it refuses, and that blocks move whole."""

import pytest
import torch

from core.contracts.attention import LayerCache
from core.errors import OutOfDeviceMemory
from core.reference.memory import HostMemory

MIB = 2**20


def test_allocations_are_counted_until_the_last_view_of_them_is_gone() -> None:
    memory = HostMemory("cpu", limit_bytes=4 * MIB)

    tensor = memory.allocate((MIB // 2,), "bfloat16")
    view = tensor[1:]
    del tensor

    assert (memory.statistics().total, memory.statistics().allocated, memory.statistics().free) == (
        4 * MIB,
        MIB,
        3 * MIB,
    )
    assert view.dtype is torch.bfloat16
    del view
    assert memory.statistics().allocated == 0


def test_what_does_not_fit_is_refused_with_the_numbers_and_takes_nothing() -> None:
    memory = HostMemory("cpu", limit_bytes=4 * MIB)
    kept = memory.allocate((3 * MIB,), "int8")

    with pytest.raises(OutOfDeviceMemory, match=r"2\.0 MiB do not fit .*1\.0 MiB of 4\.0 MiB are free"):
        memory.allocate((2 * MIB,), "int8")

    assert memory.statistics().allocated == kept.nbytes


def test_more_than_the_machine_has_is_refused_rather_than_promised() -> None:
    with pytest.raises(OutOfDeviceMemory):
        HostMemory("cpu").allocate((2**50,), "float32")


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_are_copied_whole_in_every_layer(axis: int) -> None:
    shape = [2, 2, 3]
    shape[axis] = 5
    caches = [LayerCache(torch.randn(shape), torch.randn(shape), axis) for _ in range(2)]
    before = [(cache.keys.clone(), cache.values.clone()) for cache in caches]

    HostMemory("cpu").copy_blocks(caches, [(1, 4), (1, 2)])

    for cache, (keys, values) in zip(caches, before, strict=True):
        for now, then in ((cache.keys, keys), (cache.values, values)):
            order = torch.tensor([0, 1, 1, 3, 1])
            assert now.equal(then.index_select(axis, order))


def test_no_pairs_copy_nothing() -> None:
    cache = LayerCache(torch.randn(4, 2, 3), torch.randn(4, 2, 3), 0)
    keys, values = cache.keys.clone(), cache.values.clone()

    HostMemory("cpu").copy_blocks([cache], [])

    assert cache.keys.equal(keys)
    assert cache.values.equal(values)
