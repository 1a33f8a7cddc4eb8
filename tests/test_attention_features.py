"""Soft caps and ALiBi: what they are, who serves them, and who refuses them."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bare_platform import CPU, Bare
from torch import Tensor

from core.config import EngineConfig
from core.conformance.paging import paged_batch, poisoned_cache
from core.contracts.attention import (
    Attention,
    AttentionBatch,
    AttentionShape,
    AttentionSpec,
    alibi_slopes,
)
from core.contracts.model import Architecture, ModelDescription
from core.contracts.platform import FEATURES, Capabilities, Defaults, Device, Platform, SchedulingLimits
from core.discovery import Plugins, load_plugins
from core.engine.budget import cache_groups
from core.engine.build import build_engine
from core.engine.engine import Engine
from core.engine.request import Request
from core.errors import UnsupportedShape
from core.execution.dispatch import resolve_attention
from core.ledger import Ledger
from core.native.attention import unsupported
from core.native.library import NativeLibrary
from core.reference.attention import ReferenceAttention
from core.resolution import resolve
from core.sampling_params import SamplingParams
from models.llama import LLAMA
from platforms.cpu.attention import TorchAttention
from platforms.cpu.platform import CpuPlatform
from platforms.simulated.attention import StrictAttention
from platforms.simulated.platform import SimulatedPlatform

SPEC = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=64, scale=0.125, dtype="float32", block_size=16)
ASKED: Mapping[str, dict[str, Any]] = {
    "a soft cap": {"soft_cap": 0.8},
    "ALiBi": {"alibi": True},
    "both": {"soft_cap": 0.8, "alibi": True},
    "a soft cap behind a window": {"soft_cap": 0.8, "sliding_window": 9},
    "ALiBi behind a window": {"alibi": True, "sliding_window": 9},
    "both behind a window": {"soft_cap": 0.8, "alibi": True, "sliding_window": 9},
}
ATTENTIONS: Mapping[str, Callable[[AttentionSpec], Attention]] = {
    "reference": ReferenceAttention,
    "simulated": lambda spec: StrictAttention(spec, CPU, SchedulingLimits()),
    "torch path of cpu": TorchAttention,
}
SLOPES = {4: (1 / 4, 1 / 16, 1 / 64, 1 / 256), 6: (1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What they are


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (1, [2.0**-8]),
        (8, [2.0**-i for i in range(1, 9)]),
        (16, [2.0 ** (-i / 2) for i in range(1, 17)]),
        (12, [2.0**-i for i in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]),
        (6, SLOPES[6]),
    ],
)
def test_slopes_are_the_published_ones(heads: int, slopes: list[float]) -> None:
    assert alibi_slopes(heads) == pytest.approx(tuple(slopes), rel=1e-12)


@dataclass(frozen=True)
class Told:
    """One sequence: its blocks, and all its queries, keys and values, [length, heads, head_dim]."""

    new: int
    length: int
    blocks: list[int]
    query: Tensor
    key: Tensor
    value: Tensor


def told(spec: AttentionSpec) -> list[Told]:
    """Two decodes, a chunk and a prompt, at no edge in particular."""
    generator, owned, sequences = torch.Generator().manual_seed(5), 1, list[Told]()
    for new, length in ((1, 21), (1, 5), (6, 19), (13, 13)):
        blocks = list(range(owned, owned + -(-length // spec.block_size)))
        heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        rows = [torch.randn(length, count, spec.head_dim, generator=generator) for count in heads]
        sequences.append(Told(new, length, blocks, *rows))
        owned += len(blocks)
    return sequences


def attended(attention: Attention, sequences: list[Told]) -> Tensor:
    """[new tokens of all, Hq, D]: the last step, after one for what each sequence had before."""

    def batch_of(some: list[Told], lengths: list[int], new: list[int]) -> AttentionBatch:
        size, blocks = attention.spec.block_size, [each.blocks for each in some]
        return paged_batch(blocks, lengths, new, block_size=size, token_multiple=1, torch_device="cpu")

    cache = poisoned_cache(attention, 1 + sum(len(each.blocks) for each in sequences), "cpu")
    for each in sequences:
        if context := each.length - each.new:
            plan = attention.plan(batch_of([each], [context], [context]))
            attention.write(each.key[:context], each.value[:context], cache, plan)
    plan = attention.plan(
        batch_of(sequences, [each.length for each in sequences], [each.new for each in sequences])
    )
    query, key, value = (
        torch.cat([getattr(each, part)[each.length - each.new :] for each in sequences])
        for part in ("query", "key", "value")
    )
    attention.write(key, value, cache, plan)
    return attention.attend(query, cache, plan)


def by_hand(sequences: list[Told], spec: AttentionSpec) -> Tensor:
    """The same in loops over plain numbers, float64."""
    group, rows = spec.num_heads // spec.num_kv_heads, list[list[list[float]]]()
    for each in sequences:
        query, key, value = each.query.tolist(), each.key.tolist(), each.value.tolist()
        for at in range(each.length - each.new, each.length):
            heads = list[list[float]]()
            for head in range(spec.num_heads):
                keys, values = ([row[head // group] for row in part] for part in (key, value))
                heads.append(one_head(query[at][head], keys, values, at, SLOPES[spec.num_heads][head], spec))
            rows.append(heads)
    return torch.tensor(rows, dtype=torch.float64)


def one_head(
    query: list[float],
    keys: list[list[float]],
    values: list[list[float]],
    position: int,
    slope: float,
    spec: AttentionSpec,
) -> list[float]:
    weights: dict[int, float] = {}
    for at in range(position + 1):
        if spec.sliding_window is not None and at <= position - spec.sliding_window:
            continue
        score = spec.scale * sum(a * b for a, b in zip(query, keys[at], strict=True))
        if spec.soft_cap is not None:
            score = spec.soft_cap * math.tanh(score / spec.soft_cap)
        if spec.alibi:
            score += slope * (at - position)
        weights[at] = math.exp(score)
    total = sum(weights.values())
    return [sum(w * values[at][d] for at, w in weights.items()) / total for d in range(len(query))]


def small_spec(heads: int, asked: str) -> AttentionSpec:
    """Scores of order 3, so that a cap shows."""
    shape = {"num_heads": heads, "num_kv_heads": 2, "head_dim": 8, "scale": 1.0}
    return AttentionSpec(**shape, **ASKED[asked], dtype="float32", block_size=8)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_computes_what_a_loop_over_numbers_computes(name: str, asked: str) -> None:
    for heads in SLOPES:
        spec = small_spec(heads, asked)
        sequences = told(spec)

        output = attended(ATTENTIONS[name](spec), sequences)

        assert float((output.double() - by_hand(sequences, spec)).abs().max()) < 2e-5


@pytest.mark.parametrize("name", ATTENTIONS)
def test_what_is_computed_in_pieces_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small_spec(6, "both behind a window")
    whole = attended(ATTENTIONS[name](spec), told(spec))
    for module in ("core.reference.attention", "platforms.cpu.attention"):
        monkeypatch.setattr(f"{module}._AT_ONCE", 50)

    pieces = attended(ATTENTIONS[name](spec), told(spec))

    assert float((pieces - whole).abs().max()) < 1e-5


def test_settings_pass_them_on_and_layers_that_differ_in_nothing_else_share_their_blocks() -> None:
    plain = AttentionShape(num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25)
    bent = replace(plain, soft_cap=50.0, alibi=True)
    model = ModelDescription(
        architecture="TinyForCausalLM",
        vocab_size=320,
        hidden_size=64,
        context=512,
        dtype="float32",
        layers=(plain, bent),
        num_parameters=1000,
    )

    spec = resolve(EngineConfig(), model, Capabilities(), Defaults()).attention_spec(bent)

    assert (spec.soft_cap, spec.alibi) == (50.0, True)
    assert [group.layers for group in cache_groups(model)] == [(0, 1)]


# Who serves them, and who does not


def test_the_cpp_kernels_refuse_them_by_name() -> None:
    assert unsupported(SPEC) is None
    assert "soft_cap is 30" in str(unsupported(replace(SPEC, soft_cap=30.0)))
    assert "alibi" in str(unsupported(replace(SPEC, alibi=True)))


def test_on_cpu_torch_operations_stand_in_for_the_cpp_kernels_and_in_int8_the_reference(
    library: NativeLibrary,
) -> None:
    platform, ledger = CpuPlatform(), Ledger()
    (device,), bent = platform.probe().devices, replace(SPEC, soft_cap=30.0)

    assert isinstance(resolve_attention(platform, device, bent, Ledger()), TorchAttention)
    kept = resolve_attention(platform, device, replace(bent, cache_dtype="int8"), ledger)

    assert isinstance(kept, ReferenceAttention)
    assert "soft_cap is 30" in ledger.choices[0].rejected[0].reason


@pytest.mark.parametrize(("feature", "asked"), [("soft_cap", {"soft_cap": 30.0}), ("alibi", {"alibi": True})])
def test_a_platform_that_does_not_declare_one_is_refused_for_layers_that_ask_for_it(
    feature: str, asked: dict[str, Any]
) -> None:
    declares = frozenset(FEATURES) - {feature}
    for features in (declares, Capabilities().features):
        with pytest.raises(UnsupportedShape, match=f"platform bare has no {feature} among its features"):
            resolve_attention(Bare(features=features), CPU, replace(SPEC, **asked, block_size=8), Ledger())


@dataclass(frozen=True, kw_only=True)
class Only(Plugins):
    """One platform, and one architecture."""

    platform: Platform

    def select_platform(self, name: str) -> tuple[Platform, Device]:
        return self.platform, self.platform.probe().devices[0]


def bent_llama() -> Architecture:
    """Llama, but for a soft cap in its first layer and ALiBi in its second."""

    def describe(config: Mapping[str, Any]) -> ModelDescription:
        plain = LLAMA.describe(config)
        first, second = plain.layers
        return replace(plain, layers=(replace(first, soft_cap=0.5), replace(second, alibi=True)))

    return replace(LLAMA, describe=describe)


def engine_of(model: Path, platform: Platform, architecture: Architecture) -> Engine:
    sources = {"sources": load_plugins().sources, "architectures": {architecture.name: architecture}}
    config = EngineConfig(
        model=str(model),
        platform=platform.name,
        dtype="float32",
        max_model_len=128,
        max_num_batched_tokens=16,
        skip_tokenizer_init=True,
    )
    return build_engine(config, plugins=Only(platform=platform, **sources))


def greedy(engine: Engine) -> list[int]:
    """A prompt that takes several chunks, and what follows."""
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    prompt, token_ids = [3 + 7 * i % 300 for i in range(40)], list[int]()
    engine.add(Request(request_id="only", prompt_token_ids=prompt, params=params))
    while engine.has_work:
        for delta in engine.step():
            token_ids += delta.token_ids
    engine.close()
    return token_ids


def test_a_model_that_asks_for_them_gets_the_same_answers_from_everybody(tiny_llama: Path) -> None:
    platforms = (CpuPlatform(), SimulatedPlatform(), Bare(block_sizes=(16,)))
    plain = greedy(engine_of(tiny_llama, platforms[0], LLAMA))
    on_cpu, simulated, reference = (greedy(engine_of(tiny_llama, each, bent_llama())) for each in platforms)

    assert len(on_cpu) == 16
    assert on_cpu == simulated == reference
    assert on_cpu != plain


def test_the_decoder_layer_of_such_a_model_is_composed_and_the_ledger_says_why(
    tiny_llama: Path, library: NativeLibrary
) -> None:
    engine = engine_of(tiny_llama, CpuPlatform(), bent_llama())
    engine.close()

    (layer,) = [choice for choice in engine.ledger.choices if choice.what == "decoder_layer"]
    attention = {choice.provider for choice in engine.ledger.choices if choice.what == "attention"}

    assert layer.provider == "composed"
    assert "soft_cap is 0.5" in layer.rejected[0].reason
    assert attention == {"cpu"}


def test_a_model_is_refused_on_a_platform_that_lacks_what_it_asks_for(tiny_llama: Path) -> None:
    with pytest.raises(UnsupportedShape, match="has no soft_cap among its features"):
        engine_of(tiny_llama, Bare(block_sizes=(16,), features=frozenset({"alibi"})), bent_llama())
