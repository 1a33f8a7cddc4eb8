"""Quantised weights: the formats, what the loader makes of a checkpoint, and the setting from end to end."""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize as reference_dequantize
from gguf.quants import quantize as reference_quantize
from gguf_files import interleaved, never, write_to_disk
from safetensors.torch import load_file, save_file

from core.config import EngineConfig
from core.contracts.model import Architecture, GgufMapping
from core.contracts.quantization import FORMATS, INT4, INT8, MADE, Q4_0, STORED, QuantizedWeight, WeightFormat
from core.discovery import Plugins, collect
from core.engine.build import build_engine
from core.engine.engine import Engine
from core.engine.request import Request
from core.errors import BadCheckpoint, ConfigError
from core.hookspecs import GROUP
from core.reference.linear import linear
from core.sampling_params import SamplingParams
from core.weights.checkpoint import Checkpoint, open_checkpoint
from core.weights.dequantize import dequantized
from core.weights.formats import WeightFormats
from core.weights.loader import CheckpointWeights
from core.weights.quantize import quantize, stacked

EVERY = frozenset(FORMATS)
HEADS, HIDDEN, ROWS = 4, 64, 32
KINDS = {
    "q4_0": GGMLQuantizationType.Q4_0,
    "q4_1": GGMLQuantizationType.Q4_1,
    "q8_0": GGMLQuantizationType.Q8_0,
}


PREFIX = "model.layers.0.self_attn"
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
    **{f"blk.0.attn_{letter}.weight": f"{PREFIX}.{letter}_proj.weight" for letter in "qkv"},
}
LLAMA = Architecture(
    name="LlamaForCausalLM",
    family="llama",
    describe=never,
    build=never,
    gguf=GgufMapping(
        name="llama",
        config=lambda metadata: {"vocab_size": ROWS, "num_attention_heads": HEADS},
        weights={
            ours.replace(".0.", ".{i}."): theirs.replace(".0.", ".{i}.") for theirs, ours in NAMES.items()
        },
        permuted={
            f"model.layers.{{i}}.self_attn.{letter}_proj.weight": "num_attention_heads" for letter in "qk"
        },
    ),
)


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write_gguf(path: Path, kinds: Mapping[str, GGMLQuantizationType]) -> dict[str, np.ndarray]:
    """A file of random weights, [32, 64] each, in these types; returns what they hold, in our row order."""
    writer = GGUFWriter(path, "llama")
    held: dict[str, np.ndarray] = {}
    for seed, (name, kind) in enumerate(kinds.items()):
        array = weight(ROWS, HIDDEN, seed=seed).numpy()
        rows = interleaved(array, HEADS) if name[-len("q.weight") :] in ("q.weight", "k.weight") else array
        writer.add_tensor(name, reference_quantize(rows, kind), raw_dtype=kind)
        held[NAMES[name]] = reference_dequantize(reference_quantize(array, kind), kind).reshape(ROWS, HIDDEN)
    write_to_disk(writer)
    return held


def open_gguf(path: Path) -> Checkpoint:
    return open_checkpoint(path, {LLAMA.name: LLAMA})


def write_folder(path: Path, tensors: Mapping[str, torch.Tensor], config: str = "{}") -> Checkpoint:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config)
    save_file(dict(tensors), path / "model.safetensors")
    return open_checkpoint(path, {})


def quantized(found: Any) -> QuantizedWeight:
    assert isinstance(found, QuantizedWeight)
    return found


def tensor(found: Any) -> torch.Tensor:
    assert isinstance(found, torch.Tensor)
    return found


class TestFormats:
    def test_blocks_are_as_large_as_in_gguf(self) -> None:
        assert {name: known.bytes_per_row(64) for name, known in STORED.items()} == {
            "q4_0": 2 * 18,
            "q4_1": 2 * 20,
            "q8_0": 2 * 34,
        }

    def test_sizes_of_the_formats_that_are_made(self) -> None:
        assert {name: known.bytes_per_row(256) for name, known in MADE.items()} == {
            "int8": 4 + 256,
            "int4": 8 * (2 + 16),
            "int4-g64": 4 * (2 + 32),
            "int4-g128": 2 * (2 + 64),
        }

    def test_a_format_fits_rows_that_its_groups_fill(self) -> None:
        assert [INT4.fits(inputs) for inputs in (0, 31, 32, 33, 96)] == [False, False, True, False, True]
        assert INT8.fits(33)

    def test_data_of_another_size_is_no_weight_of_the_format(self) -> None:
        with pytest.raises(AssertionError):
            QuantizedWeight(format=INT8, data=torch.zeros(2, 36, dtype=torch.uint8), shape=(2, 33))


class TestUnpacking:
    @pytest.mark.parametrize("name", STORED)
    def test_every_byte_pattern_gives_what_the_gguf_package_gives(self, name: str) -> None:
        known, kind = FORMATS[name], KINDS[name]
        random = np.random.default_rng(0)
        raw = random.integers(0, 256, (96, known.bytes_per_row(320)), dtype=np.uint8)
        with np.errstate(all="ignore"):
            expected = torch.from_numpy(reference_dequantize(raw, kind))
        held = QuantizedWeight(format=known, data=torch.from_numpy(raw), shape=(96, 320))
        torch.testing.assert_close(dequantized(held, torch.float32), expected, rtol=0, atol=0, equal_nan=True)

    def test_int4_is_q4_0_under_another_name(self) -> None:
        made = quantize(weight(8, 64), INT4)
        same = QuantizedWeight(format=Q4_0, data=made.data, shape=made.shape)
        assert torch.equal(dequantized(made, torch.float32), dequantized(same, torch.float32))

    def test_halves_of_a_longer_group_are_its_first_and_second_half(self) -> None:
        steps = torch.cat([torch.full((64,), -8.0), torch.full((64,), 4.0)])[None]
        for name in ("int4-g128", "int4-g64"):
            assert torch.equal(dequantized(quantize(steps, FORMATS[name]), torch.float32), steps)

    def test_the_dtype_is_the_one_asked_for(self) -> None:
        held = quantize(weight(8, 64), INT8)
        wide = dequantized(held, torch.float32)
        assert torch.equal(dequantized(held, torch.bfloat16), wide.to(torch.bfloat16))


class TestQuantizing:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_int8_is_at_most_half_a_step_off(self, dtype: torch.dtype) -> None:
        rows = weight(40, 100).to(dtype)
        error = (dequantized(quantize(rows, INT8), torch.float32) - rows.float()).abs()
        step = rows.float().abs().amax(dim=1, keepdim=True) / 127
        assert bool((error <= step * 0.5001).all())

    @pytest.mark.parametrize("name", ["int4", "int4-g64", "int4-g128"])
    def test_int4_errs_less_than_scales_that_cover_the_extremes(self, name: str) -> None:
        known, rows = FORMATS[name], weight(64, 256)
        groups = rows.view(-1, known.group_of(256))
        step = groups.abs().amax(dim=1, keepdim=True) / 7
        naive = ((groups / step).round() * step - groups).square().sum()
        ours = (dequantized(quantize(rows, known), torch.float32) - rows).square().sum()
        assert ours < 0.75 * naive

    @pytest.mark.parametrize("known", MADE.values(), ids=MADE)
    def test_what_a_format_can_hold_it_holds_exactly(self, known: WeightFormat) -> None:
        held = torch.randint(-7, 8, (16, 256), generator=torch.Generator().manual_seed(1)).float()
        held[:, :: known.group_of(256)] = -8 if known.bits == 4 else 127
        assert torch.equal(dequantized(quantize(held * 0.25, known), torch.float32), held * 0.25)

    @pytest.mark.parametrize("known", MADE.values(), ids=MADE)
    def test_zeros_stay_zeros(self, known: WeightFormat) -> None:
        rows = weight(3, 256)
        rows[1] = 0
        found = dequantized(quantize(rows, known), torch.float32)
        assert bool((found[1] == 0).all())
        assert bool(found.isfinite().all()) and bool((found[0] != 0).any())

    @pytest.mark.parametrize("known", MADE.values(), ids=MADE)
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_weights_that_are_not_finite_do_not_become_numbers(self, known: WeightFormat, bad: float) -> None:
        rows = weight(2, 256)
        rows[1, 77] = bad
        found = dequantized(quantize(rows, known), torch.float32)
        assert bool(found[0].isfinite().all())
        assert not bool(found[1].isfinite().all())

    def test_many_slices_give_what_one_gives(self) -> None:
        rows = weight(700, 640)
        whole = dequantized(quantize(rows, INT4), torch.float32)
        pieces = [dequantized(quantize(part, INT4), torch.float32) for part in rows.split(33)]
        assert torch.equal(whole, torch.cat(pieces))

    def test_the_weight_that_was_given_is_not_written_to(self) -> None:
        rows = weight(8, 128)
        for known in MADE.values():
            quantize(rows, known)
        assert torch.equal(rows, weight(8, 128))

    def test_stacking_keeps_rows_in_order(self) -> None:
        parts = [quantize(weight(rows, 64, seed=rows), INT4) for rows in (5, 1, 3)]
        both = stacked(parts)
        assert both.shape == (9, 64)
        expected = torch.cat([dequantized(part, torch.float32) for part in parts])
        assert torch.equal(dequantized(both, torch.float32), expected)


class TestReferenceLinear:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_quantised_weight_is_multiplied_as_it_unpacks(self, dtype: torch.dtype) -> None:
        held, x, bias = quantize(weight(48, 64), INT8), weight(3, 64, seed=1).to(dtype), weight(48).to(dtype)
        expected = torch.nn.functional.linear(x, dequantized(held, dtype), bias)
        assert torch.equal(linear(held, bias)(x), expected)


def qkv(weights: CheckpointWeights) -> Any:
    names = [f"{PREFIX}.{letter}_proj.weight" for letter in "qkv"]
    return weights.take_linear(names, [ROWS] * 3, HIDDEN)


def same_type(kind: GGMLQuantizationType) -> dict[str, GGMLQuantizationType]:
    return {f"blk.0.attn_{letter}.weight": kind for letter in "qkv"}


class TestTakingFromGguf:
    @pytest.mark.parametrize("name", STORED)
    def test_blocks_of_one_format_are_stacked_as_they_are(self, tmp_path: Path, name: str) -> None:
        held = write_gguf(tmp_path / "m.gguf", same_type(KINDS[name]))
        weights = CheckpointWeights(open_gguf(tmp_path / "m.gguf"), "bfloat16", "cpu", "stored", EVERY)
        found = quantized(qkv(weights))
        weights.finish()
        expected = np.concatenate([held[f"{PREFIX}.{letter}_proj.weight"] for letter in "qkv"])
        assert (found.format.name, found.shape) == (name, (3 * ROWS, HIDDEN))
        assert torch.equal(dequantized(found, torch.float32), torch.from_numpy(expected))
        assert weights.summary() == f"3 as {name}"

    def test_one_weight_is_the_file_itself(self, tmp_path: Path) -> None:
        write_gguf(tmp_path / "m.gguf", same_type(KINDS["q4_0"]))
        checkpoint = open_gguf(tmp_path / "m.gguf")
        first, again = (
            quantized(
                CheckpointWeights(checkpoint, "bfloat16", "cpu", "stored", EVERY).take_linear(
                    [f"{PREFIX}.v_proj.weight"], [ROWS], HIDDEN
                )
            )
            for _ in range(2)
        )
        assert first.data.data_ptr() == again.data.data_ptr()

    @pytest.mark.parametrize(
        ("quantization", "accepted"),
        [("none", EVERY), ("stored", frozenset()), ("stored", frozenset({"q8_0"}))],
    )
    def test_what_the_device_does_not_take_is_unpacked(
        self, tmp_path: Path, quantization: str, accepted: frozenset[str]
    ) -> None:
        held = write_gguf(tmp_path / "m.gguf", same_type(KINDS["q4_1"]))
        weights = CheckpointWeights(open_gguf(tmp_path / "m.gguf"), "float32", "cpu", quantization, accepted)
        expected = np.concatenate([held[f"{PREFIX}.{letter}_proj.weight"] for letter in "qkv"])
        assert torch.equal(tensor(qkv(weights)), torch.from_numpy(expected))
        assert weights.summary() == "3 in float32"

    def test_stacked_weights_of_different_formats_are_unpacked(self, tmp_path: Path) -> None:
        kinds = same_type(KINDS["q4_1"]) | {"blk.0.attn_v.weight": KINDS["q8_0"]}
        write_gguf(tmp_path / "m.gguf", kinds)
        weights = CheckpointWeights(open_gguf(tmp_path / "m.gguf"), "bfloat16", "cpu", "stored", EVERY)
        assert tensor(qkv(weights)).dtype == torch.bfloat16
        single = weights.take_linear([f"{PREFIX}.q_proj.weight"], [ROWS], HIDDEN)
        assert quantized(single).format.name == "q4_1"

    def test_a_table_that_is_the_head_too_is_taken_in_both_ways(self, tmp_path: Path) -> None:
        held = write_gguf(tmp_path / "m.gguf", {"token_embd.weight": KINDS["q8_0"]})
        name = "model.embed_tokens.weight"
        weights = CheckpointWeights(open_gguf(tmp_path / "m.gguf"), "float32", "cpu", "stored", EVERY)
        table, head = weights.take(name, ROWS, HIDDEN), weights.take_linear([name], [ROWS], HIDDEN)
        weights.finish()
        assert torch.equal(table, torch.from_numpy(held[name]))
        assert torch.equal(dequantized(quantized(head), torch.float32), table)

    def test_what_is_not_stored_in_a_declared_format_has_no_blocks(self, tmp_path: Path) -> None:
        kinds = {"token_embd.weight": GGMLQuantizationType.F16, "output.weight": GGMLQuantizationType.Q5_0}
        write_gguf(tmp_path / "m.gguf", kinds)
        folder = write_folder(tmp_path / "folder", {"lm_head.weight": weight(8, 64)})
        file = open_gguf(tmp_path / "m.gguf")
        for checkpoint, name in (
            (file, NAMES["token_embd.weight"]),
            (file, "lm_head.weight"),
            (folder, "lm_head.weight"),
        ):
            assert checkpoint.format(name) is None
            with pytest.raises(BadCheckpoint, match=f"{name} is not stored in a declared format"):
                checkpoint.blocks(name)

    def test_stored_blocks_are_quantised_again_when_that_is_asked_for(self, tmp_path: Path) -> None:
        held = write_gguf(tmp_path / "m.gguf", same_type(KINDS["q4_1"]))
        weights = CheckpointWeights(open_gguf(tmp_path / "m.gguf"), "bfloat16", "cpu", "int8", EVERY)
        found = quantized(weights.take_linear([f"{PREFIX}.v_proj.weight"], [ROWS], HIDDEN))
        expected = quantize(torch.from_numpy(held[f"{PREFIX}.v_proj.weight"]), INT8)
        assert torch.equal(found.data, expected.data)


class TestTakingFromSafetensors:
    @pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
    def test_weights_are_quantised_from_the_dtype_they_are_stored_in(
        self, tmp_path: Path, stored: torch.dtype
    ) -> None:
        parts = {"a": weight(8, 64, seed=1).to(stored), "b": weight(24, 64, seed=2).to(stored)}
        weights = CheckpointWeights(write_folder(tmp_path, parts), "bfloat16", "cpu", "int8", EVERY)
        found = quantized(weights.take_linear(["a", "b"], [8, 24], 64))
        weights.finish()
        assert torch.equal(found.data, quantize(torch.cat([*parts.values()]), INT8).data)
        assert weights.summary() == "2 as int8"

    @pytest.mark.parametrize(
        ("asked", "accepted", "inputs", "held"),
        [
            ("int4", EVERY, 64, "int4"),
            ("int4-g128", EVERY, 256, "int4-g128"),
            ("int4-g128", EVERY, 64, "int4-g64"),
            ("int4-g128", EVERY, 96, "int4"),
            ("int4-g128", EVERY, 50, "int8"),
            ("int4-g128", frozenset({"int4-g128"}), 64, "bfloat16"),
            ("int4", frozenset({"int4"}), 50, "bfloat16"),
            ("int8", EVERY, 50, "int8"),
        ],
    )
    def test_rows_that_the_groups_do_not_fill_are_held_in_the_next_best(
        self, tmp_path: Path, asked: str, accepted: frozenset[str], inputs: int, held: str
    ) -> None:
        checkpoint = write_folder(tmp_path, {"a": weight(8, inputs)})
        weights = CheckpointWeights(checkpoint, "bfloat16", "cpu", asked, accepted)
        weights.take_linear(["a"], [8], inputs)
        assert weights.summary() == f"1 {'in' if held == 'bfloat16' else 'as'} {held}"

    @pytest.mark.parametrize(("accepted", "held"), [(EVERY, "int8"), (frozenset({"int4"}), "int4")])
    def test_the_head_keeps_eight_bits(self, tmp_path: Path, accepted: frozenset[str], held: str) -> None:
        checkpoint = write_folder(tmp_path, {"lm_head.weight": weight(320, 64)}, '{"vocab_size": 320}')
        weights = CheckpointWeights(checkpoint, "bfloat16", "cpu", "int4", accepted)
        found = quantized(weights.take_linear(["lm_head.weight"], [320], 64))
        assert found.format.name == held

    def test_a_tied_table_is_one_tensor_while_nothing_is_quantised(self, tmp_path: Path) -> None:
        weights = CheckpointWeights(write_folder(tmp_path, {"a": weight(8, 64)}), "bfloat16", "cpu")
        table = weights.take("a", 8, 64)
        assert weights.take_linear(["a"], [8], 64) is table
        assert weights.summary() == "1 in bfloat16"

    def test_missing_and_misshaped_weights_are_told_together(self, tmp_path: Path) -> None:
        checkpoint = write_folder(tmp_path, {"a": weight(8, 64), "b": weight(8, 32), "d": weight(8, 64)})
        weights = CheckpointWeights(checkpoint, "bfloat16", "cpu", "int8", EVERY)
        found = weights.take_linear(["a", "b", "c"], [8, 8, 8], 64)
        assert tuple(tensor(found).shape) == (24, 64)
        with pytest.raises(BadCheckpoint) as caught:
            weights.finish()
        assert "1 missing: c" in str(caught.value)
        assert "b is [8, 32], expected [8, 64]" in str(caught.value)
        assert "1 left over: d" in str(caught.value)

    def test_integers_are_no_weights_to_quantise(self, tmp_path: Path) -> None:
        checkpoint = write_folder(tmp_path, {"a": torch.ones(8, 64, dtype=torch.int8)})
        with pytest.raises(BadCheckpoint, match="a is stored as I8"):
            CheckpointWeights(checkpoint, "bfloat16", "cpu", "int8", EVERY).take_linear(["a"], [8], 64)


class TestCounting:
    CONFIG = '{"vocab_size": 320, "tie_word_embeddings": true}'
    TENSORS = {"embed": weight(320, 64), "mlp": weight(96, 64), "norm": weight(64)}

    @pytest.mark.parametrize(
        ("quantization", "count"),
        [
            ("none", 2 * (320 * 64 + 96 * 64 + 64)),
            ("int8", 2 * (320 * 64 + 64) + (320 + 96) * 68),
            ("int4", 2 * (320 * 64 + 64) + 320 * 68 + 96 * 36),
        ],
    )
    def test_the_budget_counts_a_tied_table_twice_when_its_head_is_quantised(
        self, tmp_path: Path, quantization: str, count: int
    ) -> None:
        checkpoint = write_folder(tmp_path, self.TENSORS, self.CONFIG)
        formats = WeightFormats(
            checkpoint=checkpoint, dtype="bfloat16", quantization=quantization, accepted=EVERY
        )
        assert formats.weight_bytes() == count

    def test_the_budget_is_what_the_loader_holds(self, tmp_path: Path) -> None:
        checkpoint = write_folder(tmp_path, self.TENSORS, self.CONFIG)
        weights = CheckpointWeights(checkpoint, "bfloat16", "cpu", "int4", EVERY)
        held = weights.take("embed", 320, 64).nbytes + weights.take("norm", 64).nbytes
        for name, outputs in (("embed", 320), ("mlp", 96)):
            held += quantized(weights.take_linear([name], [outputs], 64)).data.nbytes
        formats = WeightFormats(checkpoint=checkpoint, dtype="bfloat16", quantization="int4", accepted=EVERY)
        assert formats.weight_bytes() == held


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    own = EntryPoint(name="quantized_platform", value="quantized_platform", group=GROUP)
    found = collect([*entry_points(group=GROUP), own])
    assert found.failures == ()
    return found


Start = Callable[..., Engine]


@pytest.fixture
def start(plugins: Plugins) -> Iterator[Start]:
    engines: list[Engine] = []

    def start(model: Path, **settings: Any) -> Engine:
        chosen: dict[str, Any] = {"platform": "every-format", "kv_cache_memory": "64MiB"} | settings
        engines.append(build_engine(EngineConfig(model=str(model), **chosen), plugins=plugins))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def answer(engine: Engine, prompt: list[int]) -> tuple[list[int], list[list[float]]]:
    """Greedy tokens, and the log-probabilities of the likeliest at each step."""
    params = SamplingParams(temperature=0, max_tokens=16, logprobs=5, ignore_eos=True)
    engine.add(Request(request_id="0", prompt_token_ids=prompt, params=params))
    tokens: list[int] = []
    logprobs: list[list[float]] = []
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None
            tokens += delta.token_ids
            logprobs += [entry.logprobs for entry in delta.logprobs]
    return tokens, logprobs


def said(engine: Engine, what: str) -> str:
    return next(choice.detail for choice in engine.ledger.choices if choice.what == what)


PROMPT = [(31 * i) % 300 + 10 for i in range(40)]


class TestTheSetting:
    @pytest.mark.parametrize(
        ("quantization", "weights"),
        [
            ("int8", "15 as int8, 6 in bfloat16"),
            ("int4", "14 as int4, 6 in bfloat16, 1 as int8"),
            ("int4-g64", "12 as int4-g64, 6 in bfloat16, 2 as int4, 1 as int8"),
        ],
    )
    def test_the_model_computes_with_the_weights_it_was_rounded_to(
        self, start: Start, tiny_llama: Path, tmp_path: Path, quantization: str, weights: str
    ) -> None:
        engine = start(tiny_llama, quantization=quantization, dtype="bfloat16")
        assert (engine.info.quantization, said(engine, "weights")) == (quantization, weights)
        rounded = load_file(tiny_llama / "model.safetensors")
        for name, held in rounded.items():
            if held.ndim == 2 and "embed" not in name:
                asked = INT8 if "lm_head" in name else MADE[quantization]
                fitting = asked if asked.fits(held.shape[1]) else INT4
                rounded[name] = dequantized(quantize(held, fitting), torch.float32)
        write_folder(tmp_path / "rounded", rounded, (tiny_llama / "config.json").read_text())

        other = start(tmp_path / "rounded", dtype="bfloat16", skip_tokenizer_init=True)

        assert other.info.quantization == "none"
        assert answer(engine, PROMPT) == answer(other, PROMPT)
        assert answer(engine, PROMPT) != answer(start(tiny_llama, dtype="bfloat16"), PROMPT)

    def test_stored_blocks_run_as_they_are_and_float32_unpacks_them(
        self, start: Start, smollm2: Path
    ) -> None:
        as_stored = start(smollm2, dtype="bfloat16")
        assert as_stored.info.quantization == "q4_1, q8_0"
        assert said(as_stored, "weights") == "210 as q4_1, 62 in bfloat16, 1 as q8_0"
        unpacked = start(smollm2, dtype="bfloat16", quantization="none")
        assert unpacked.info.quantization == "none"
        assert said(unpacked, "weights") == "272 in bfloat16"
        assert answer(as_stored, PROMPT) == answer(unpacked, PROMPT)
        assert start(smollm2, dtype="float32").info.quantization == "none"

    def test_a_platform_that_takes_no_stored_format_gets_tensors(self, start: Start, smollm2: Path) -> None:
        engine = start(smollm2, dtype="bfloat16", platform="only-int8")
        assert (engine.info.quantization, said(engine, "weights")) == ("none", "272 in bfloat16")

    def test_a_platform_that_cannot_says_what_it_accepts(self, start: Start, tiny_llama: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"quantization is int4; this device accepts auto, none, int8$"
        ) as e:
            start(tiny_llama, platform="only-int8", quantization="int4")
        assert e.value.setting == "quantization"
        with pytest.raises(ConfigError, match=r"this device accepts auto, none$"):
            start(tiny_llama, platform="simulated", quantization="int8")

    def test_an_unknown_name_is_refused_before_anything_is_loaded(self) -> None:
        with pytest.raises(
            ConfigError, match="quantization is 'int3'; accepted: auto, none, int8, int4"
        ) as e:
            EngineConfig(quantization="int3")
        assert e.value.setting == "quantization"
