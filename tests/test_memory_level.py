"""Level "memory": what is right passes it, what is wrong is named. And what the contract says of saved blocks."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.conformance import Options, Result
from core.conformance.memory import check
from core.conformance.paging import padded, paged_batch
from core.contracts.attention import Attention, AttentionSpec, LayerCache
from core.contracts.memory import HostBlocks, Memory, MemoryStatistics
from core.contracts.platform import Capabilities, Device, Platform, Probe
from core.discovery import load_plugins
from core.errors import ContractViolation, OutOfDeviceMemory
from core.reference.memory import HostMemory

TOY = Path(__file__).parent / "toy_platform"
DEVICE = Device(name="it", torch_device="cpu")
SPEC = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, scale=0.35, dtype="float32", block_size=12)
SUBJECTS = {"statistics", "allocate", "copy_blocks", "restore_blocks", "discard_blocks"}


class Bench(Platform):
    """The reference's attention over one memory; None: the reference's memory, too."""

    contract, name, device_type = (2, 0), "bench", "cpu"

    def __init__(self, memory: Memory | None = None, alignment: int = 1) -> None:
        self._memory, self._alignment = memory, alignment

    def probe(self) -> Probe:
        return Probe(available=True, reason="always there", devices=(DEVICE,))

    def capabilities(self, device: Device) -> Capabilities:
        return Capabilities(
            dtypes=("float32", "bfloat16"),
            block_sizes=(8,),
            kv_cache_dtypes=frozenset({"int8"}),
            alignment_bytes=self._alignment,
        )

    def memory(self, device: Device) -> Memory | None:
        return self._memory


def wrong(platform: Platform) -> list[Result]:
    return [result for result in check(platform, DEVICE, Options(dtypes=("float32",))) if not result.passed]


# What is right


@pytest.mark.parametrize("name", ["cpu", "simulated"])
def test_our_platforms_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_SIMULATED", raising=False)
    platform, device = load_plugins().select_platform(name)

    results = list(check(platform, device, Options()))

    assert [str(result) for result in results if not result.passed] == []
    assert {result.level for result in results} == {"memory"}
    assert {result.subject for result in results} == SUBJECTS
    capabilities = platform.capabilities(device)
    assert {result.dtype for result in results} == {"", *capabilities.dtypes}
    cases = {result.case for result in results}
    for size in capabilities.block_sizes:
        assert {f"blocks of {size}", f"blocks of {size}, kept in int8"} <= cases


def test_a_platform_whose_memory_is_the_references_is_tried_just_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [str(TOY), *sys.path])
    platform: Platform = importlib.import_module("toy_platform").ToyPlatform()

    results = list(check(platform, platform.probe().devices[0], Options(quick=True)))

    assert [str(result) for result in results if not result.passed] == []
    assert {result.subject for result in results} == SUBJECTS


def test_dtypes_and_seed_are_as_asked_for() -> None:
    results = list(check(Bench(), DEVICE, Options(dtypes=("bfloat16",), seed=7)))

    assert {result.dtype for result in results} == {"", "bfloat16"}
    assert all(result.passed for result in results)


def test_caches_are_as_large_as_the_alignment_asks() -> None:
    assert wrong(Bench(HostMemory("cpu"), alignment=3 * 4096)) == []


# What is wrong


class Leaking(HostMemory):
    def _give_back(self, count: int) -> None:
        return


class Boastful(HostMemory):
    """Says that more is allocated than there is."""

    def statistics(self) -> MemoryStatistics:
        return replace(super().statistics(), allocated=super().statistics().total + 1)


class Generous(HostMemory):
    """Says that all of it is free, whatever was taken."""

    def statistics(self) -> MemoryStatistics:
        return replace(super().statistics(), free=super().statistics().total)


class Unlimited(HostMemory):
    """Has a limit, and does not keep to it."""

    def __init__(self, torch_device: str) -> None:
        super().__init__(torch_device, limit_bytes=2**24)

    def allocate(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        limit, self._limit = self._limit, None
        try:
            return super().allocate(shape, dtype)
        finally:
            self._limit = limit


class Taking(HostMemory):
    """Counts what it refuses."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        try:
            return super().allocate(shape, dtype)
        except OutOfDeviceMemory:
            self._allocated += 64
            raise


class Unlike(HostMemory):
    """Refuses by another error."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        try:
            return super().allocate(shape, dtype)
        except OutOfDeviceMemory as error:
            raise MemoryError("full") from error


class Sparse(HostMemory):
    """Every tensor is spread out."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        return super().allocate((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]


class Doubled(HostMemory):
    """Gives the same memory again and again."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        tensor = super().allocate(shape, dtype)
        if len(shape) > 1 or shape[0] > 5_000:
            return tensor
        self._same = getattr(self, "_same", torch.empty(5_000))
        return self._same[: shape[0]] if dtype == "float32" else tensor


class Backwards(HostMemory):
    def copy_blocks(self, caches: Sequence[LayerCache], pairs: Sequence[tuple[int, int]]) -> None:
        super().copy_blocks(caches, [(destination, source) for source, destination in pairs])


class ForgetsToCopy(HostMemory):
    """Copies in every layer but the last."""

    def copy_blocks(self, caches: Sequence[LayerCache], pairs: Sequence[tuple[int, int]]) -> None:
        super().copy_blocks(caches[:-1], pairs)


class ForgetsToRestore(HostMemory):
    """Restores every layer but the first."""

    def restore_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int], saved: HostBlocks) -> None:
        super().restore_blocks(caches[1:], blocks, replace(saved, layers=saved.layers[1:]))


class Stubborn(HostMemory):
    """Restores into the numbers that were saved, whatever it is told."""

    def save_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> HostBlocks:
        self._numbers = list(blocks)
        return super().save_blocks(caches, blocks)

    def restore_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int], saved: HostBlocks) -> None:
        super().restore_blocks(caches, self._numbers, saved)


class Late(HostMemory):
    """Saves when it restores: what is there by then."""

    def save_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> HostBlocks:
        self._numbers = list(blocks)
        return super().save_blocks(caches, blocks)

    def restore_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int], saved: HostBlocks) -> None:
        super().restore_blocks(caches, blocks, super().save_blocks(caches, self._numbers))


class Rounding(HostMemory):
    """Saves numbers, and not bits: every NaN becomes the same one."""

    def save_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> HostBlocks:
        saved = super().save_blocks(caches, blocks)
        for keys, values in saved.layers:
            for kept in (keys, values):
                if kept.is_floating_point():
                    kept[kept.isnan()] = float("nan")
        return saved


class Careless(HostMemory):
    """Restores as many blocks as it is told of."""

    def restore_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int], saved: HostBlocks) -> None:
        layers = tuple(
            (keys.narrow(cache.block_axis, 0, len(blocks)), values.narrow(cache.block_axis, 0, len(blocks)))
            for cache, (keys, values) in zip(caches, saved.layers, strict=True)
        )
        super().restore_blocks(caches, blocks, HostBlocks(count=len(blocks), layers=layers))


class Staging(HostMemory):
    """Keeps the room through which it saves blocks, every time."""

    def save_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> HostBlocks:
        self._rooms = [*getattr(self, "_rooms", []), self.allocate((64,), "float32")]
        return super().save_blocks(caches, blocks)


class Spilling(HostMemory):
    """Discards the blocks before, too."""

    def discard_blocks(self, caches: Sequence[LayerCache], blocks: Sequence[int]) -> None:
        for cache in caches:
            for storage in (cache.keys, cache.values):
                index = torch.tensor([*blocks, *(block - 1 for block in blocks)])
                storage.index_fill_(cache.block_axis, index, 0)


MUTANTS: Mapping[type[HostMemory], tuple[str, str, str]] = {
    Leaking: ("statistics", "what is allocated is counted", "once every tensor is gone"),
    Boastful: ("statistics", "figures fit together", "free + allocated <= total"),
    Generous: ("statistics", "figures fit together", "free + allocated <= total"),
    Staging: ("statistics", "blocks of 8, moved again and again", "allocated rose by 768 bytes"),
    Unlimited: ("allocate", "more than there is", "of 16,777,216 bytes in total"),
    Taking: ("allocate", "more than there is", "allocated is +64 bytes from where it was"),
    Unlike: ("allocate", "more than there is", "raised MemoryError: full; OutOfDeviceMemory is expected"),
    Sparse: ("allocate", "what was asked for", "is not dense"),
    Doubled: ("allocate", "tensors lie apart", "does not keep what is written into it"),
    Backwards: ("copy_blocks", "blocks of 8", "keys of layer 0 are not as expected in block"),
    ForgetsToCopy: ("copy_blocks", "blocks of 8, kept in int8", "keys of layer 2 are not as expected"),
    ForgetsToRestore: ("restore_blocks", "the same ones", "keys of layer 0 are not as expected"),
    Stubborn: ("restore_blocks", "blocks of 8, others", "are not as expected"),
    Late: ("restore_blocks", "blocks of 8, the same ones", "are not as expected"),
    Rounding: ("restore_blocks", "blocks of 8, the same ones", "are not as expected"),
    Careless: ("restore_blocks", "too few", "restored 3 saved blocks into 2"),
    Spilling: ("discard_blocks", "blocks of 8", "are not as expected"),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_memory_that_is_wrong_is_found(mutant: type[HostMemory]) -> None:
    subject, case, problem = MUTANTS[mutant]

    found = wrong(Bench(mutant("cpu")))

    assert any(r.subject == subject and case in r.case and problem in r.problem for r in found), found


def test_the_memory_without_mutations_is_right() -> None:
    assert wrong(Bench(HostMemory("cpu"))) == []


def test_a_platform_that_fails_to_make_its_memory_is_a_problem() -> None:
    class Failing(Bench):
        def memory(self, device: Device) -> Memory | None:
            raise RuntimeError("no driver")

    (result,) = wrong(Failing())
    assert (result.subject, result.problem) == ("memory", "raised RuntimeError: no driver")


# Saved blocks


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_saved_blocks_lie_as_the_cache_does_and_belong_to_the_host(axis: int, dtype: torch.dtype) -> None:
    shape = [3, 4, 6]
    shape[axis] = 5
    noise = torch.randint(0, 256, (*shape[:2], 6 * dtype.itemsize), dtype=torch.uint8)
    cache = LayerCache(noise.view(dtype), noise.clone().view(dtype), axis)
    before = cache.keys.clone()

    saved = HostMemory("cpu").save_blocks([cache], [4, 2])
    cache.keys.zero_()

    ((keys, values),) = saved.layers
    expected = before.index_select(axis, torch.tensor([4, 2]))
    assert saved.count == 2
    assert (keys.dtype, keys.shape) == (dtype, expected.shape)
    assert keys.view(torch.uint8).equal(expected.view(torch.uint8))
    assert values.view(torch.uint8).equal(expected.view(torch.uint8))


def test_no_blocks_are_saved_and_restored_as_well() -> None:
    memory, cache = HostMemory("cpu"), LayerCache(torch.ones(3, 2, 2), torch.ones(3, 2, 2), 0)

    saved = memory.save_blocks([cache], [])
    memory.restore_blocks([cache], [], saved)

    assert saved.count == 0
    assert cache.keys.equal(torch.ones(3, 2, 2))


def test_other_counts_than_were_saved_are_refused_with_the_numbers() -> None:
    memory, cache = HostMemory("cpu"), LayerCache(torch.ones(4, 2, 2), torch.ones(4, 2, 2), 0)
    saved = memory.save_blocks([cache], [1, 2, 3])
    cache.keys.zero_()

    with pytest.raises(ContractViolation, match=r"3 blocks of 1 layers were saved.*2 blocks of 1 layers"):
        memory.restore_blocks([cache], [1, 2], saved)
    with pytest.raises(ContractViolation, match="3 blocks of 2 layers; as many are expected"):
        memory.restore_blocks([cache, cache], [1, 2, 3], saved)
    assert not cache.keys.any()


# What is dead


def simulated() -> tuple[Memory, Attention, LayerCache]:
    platform, device = load_plugins().select_platform("simulated")
    memory, attention = platform.memory(device), platform.attention(SPEC, device)
    assert memory is not None and attention is not None
    layout = attention.layout(8)
    keys, values = (memory.allocate(layout.shape, SPEC.dtype) for _ in range(2))
    return memory, attention, LayerCache(keys, values, layout.block_axis)


def step(attention: Attention, cache: LayerCache, table: list[int], new: int) -> torch.Tensor:
    """The last `new` of a sequence's 20 tokens are written and attended to."""
    batch = paged_batch([table], [20], [new], block_size=12, token_multiple=8, torch_device="cpu")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(20, heads, 8, generator=generator)[-new:] for heads in (4, 2, 2)]
    query, key, value = (padded(part, len(batch.slot_mapping), "cpu") for part in rows)
    plan = attention.plan(batch)
    attention.write(key, value, cache, plan)
    return attention.attend(query, cache, plan)[:new]


def test_reading_a_discarded_block_is_a_violation_until_it_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LLM_SIMULATED", raising=False)
    memory, attention, cache = simulated()
    step(attention, cache, [3, 1], new=20)
    expected = step(attention, cache, [3, 1], new=4)
    saved = memory.save_blocks([cache], [3])

    memory.discard_blocks([cache], [3])
    with pytest.raises(ContractViolation, match="of block 3, which was discarded or never written"):
        step(attention, cache, [3, 1], new=4)
    memory.restore_blocks([cache], [5], saved)

    assert step(attention, cache, [5, 1], new=4).equal(expected)


def test_a_block_is_restored_with_the_slots_that_nobody_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_SIMULATED", raising=False)
    memory, attention, cache = simulated()
    step(attention, cache, [3, 1], new=20)
    before = cache.keys[1].view(torch.int32).clone()

    memory.restore_blocks([cache], [6], memory.save_blocks([cache], [1]))

    assert cache.keys[6].view(torch.int32).equal(before)
    assert [bool(slot.isnan().all()) for slot in cache.keys[6]] == [False] * 8 + [True] * 4


@pytest.mark.parametrize("ended", ["discarded", "never written"])
def test_saving_a_dead_block_is_a_violation(ended: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_SIMULATED", raising=False)
    memory, attention, cache = simulated()
    step(attention, cache, [3, 1], new=20)
    if ended == "discarded":
        memory.discard_blocks([cache], [3])
    dead = 3 if ended == "discarded" else 4

    with pytest.raises(ContractViolation, match=f"block {dead} is saved, which was discarded or never"):
        memory.save_blocks([cache], [1, dead])


def test_saves_and_restores_of_impossible_blocks_are_violations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_SIMULATED", raising=False)
    memory, attention, cache = simulated()
    step(attention, cache, [3, 1], new=20)
    saved = memory.save_blocks([cache], [3, 1])

    with pytest.raises(ContractViolation, match="block 8 is saved; blocks 1 to 7"):
        memory.save_blocks([cache], [3, 8])
    with pytest.raises(ContractViolation, match="block 0 is restored"):
        memory.restore_blocks([cache], [0, 1], saved)
    with pytest.raises(ContractViolation, match=r"blocks \[2, 2\] are restored, one of them twice"):
        memory.restore_blocks([cache], [2, 2], saved)
