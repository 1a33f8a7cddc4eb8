"""GPTQ and AWQ checkpoints: every weight is what was packed, in whatever variant, and what does not fit is refused."""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packers import Tensors, awq, change_config, change_tensors, gptq, write_packed

from core.config import EngineConfig
from core.contracts.quantization import FORMATS
from core.discovery import Plugins, collect, load_plugins
from core.engine.build import build_engine
from core.engine.engine import Engine
from core.engine.request import Request
from core.errors import BadCheckpoint, CoreError, ModelError
from core.hookspecs import GROUP
from core.sampling_params import SamplingParams
from core.weights.checkpoint import Checkpoint, open_checkpoint
from core.weights.dequantize import dequantized
from core.weights.formats import WeightFormats
from core.weights.loader import CheckpointWeights

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
LAYER = "model.layers.1.mlp.down_proj"
DOWN = f"{LAYER}.weight"
PROMPT = [(31 * i) % 100 + 10 for i in range(40)]


def opened(folder: Path) -> Checkpoint:
    plugins = load_plugins()
    return open_checkpoint(folder, plugins.architectures, plugins.quantizations)


def gptq_model(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """A GPTQ model and its twin; changes of its quantization_config."""
    config = GPTQ | changes
    packer = gptq(
        bits=config["bits"],
        group=config["group_size"],
        sym=config["sym"],
        shuffled=config["desc_act"],
        one_less=config.get("checkpoint_format") != "gptq_v2",
    )
    return write_packed(folder, packer, config)


def awq_model(folder: Path, **changes: Any) -> tuple[Path, Path]:
    config = AWQ | changes
    return write_packed(folder, awq(group=config["group_size"]), config)


def check_equal(packed: Path, twin: Path) -> Checkpoint:
    """Every weight of the one is the other's, number for number; returns the first."""
    ours, theirs = opened(packed), opened(twin)
    assert ours.names() == theirs.names()
    for name in theirs.names():
        assert ours.shape(name) == theirs.shape(name)
        assert torch.equal(ours.read(name), theirs.read(name)), name
        assert torch.equal(ours.read(name, torch.bfloat16), theirs.read(name, torch.bfloat16)), name
        assert ours.read(name).is_contiguous()
    return ours


class TestGptq:
    @pytest.mark.parametrize("one_less", [True, False], ids=["gptq", "gptq_v2"])
    @pytest.mark.parametrize("sym", [True, False], ids=["sym", "asym"])
    @pytest.mark.parametrize("group", [32, 64, 128, -1])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_weights_are_those_that_were_packed(
        self, tmp_path: Path, bits: int, group: int, sym: bool, one_less: bool
    ) -> None:
        version = "gptq" if one_less else "gptq_v2"
        packed, twin = gptq_model(tmp_path, bits=bits, group_size=group, sym=sym, checkpoint_format=version)
        ours = check_equal(packed, twin)
        exact = bits == 4 and sym and group != -1
        name = {32: "int4", 64: "int4-g64", 128: "int4-g128"}.get(group, "")
        assert ours.formats() == (frozenset({name}) if exact else frozenset())

    @pytest.mark.parametrize(("group", "held"), [(32, "int4"), (64, "int4-g64"), (128, "int4-g128")])
    def test_in_the_cores_format_they_are_the_same_numbers(
        self, tmp_path: Path, group: int, held: str
    ) -> None:
        packed, twin = gptq_model(tmp_path, group_size=group)
        ours, theirs = opened(packed), opened(twin)
        names = [name for name in ours.names() if name.endswith("_proj.weight")]
        assert len(names) == 14
        for name in names:
            assert ours.format(name) == FORMATS[held]
            assert torch.equal(dequantized(ours.blocks(name), torch.float32), theirs.read(name))

    def test_rows_that_groups_do_not_fill_end_in_a_smaller_one(self, tmp_path: Path) -> None:
        packed, twin = gptq_model(tmp_path, group_size=96)
        assert check_equal(packed, twin).formats() == frozenset()

    @pytest.mark.parametrize("sym", [True, False])
    def test_groups_that_are_not_consecutive_are_followed(self, tmp_path: Path, sym: bool) -> None:
        packed, twin = gptq_model(tmp_path, desc_act=True, sym=sym)
        assert check_equal(packed, twin).formats() == frozenset()

    def test_a_symmetric_model_may_be_written_in_either_format_whatever_it_says(self, tmp_path: Path) -> None:
        packed, twin = gptq_model(tmp_path, checkpoint_format="gptq_v2")
        check_equal(change_config(packed, checkpoint_format="gptq"), twin)

    @pytest.mark.parametrize("written", ["absent", "zeros"])
    def test_without_an_order_of_groups_they_are_consecutive(self, tmp_path: Path, written: str) -> None:
        packed, twin = gptq_model(tmp_path)

        def change(tensors: Tensors) -> None:
            for name in [name for name in tensors if name.endswith(".g_idx")]:
                tensors[name] = np.zeros_like(tensors[name])
                if written == "absent":
                    del tensors[name]

        ours = check_equal(change_tensors(packed, change), twin)
        assert torch.equal(dequantized(ours.blocks(DOWN), torch.float32), ours.read(DOWN))

    def test_scales_in_another_dtype_than_the_formats_are_unpacked(self, tmp_path: Path) -> None:
        packed, twin = gptq_model(tmp_path)

        def change(tensors: Tensors) -> None:
            for name in [name for name in tensors if name.endswith(".scales")]:
                tensors[name] = tensors[name].astype(np.float32)

        assert check_equal(change_tensors(packed, change), twin).formats() == frozenset()

    def test_settings_of_some_layers_that_only_leave_them_out_change_nothing(self, tmp_path: Path) -> None:
        packed, twin = gptq_model(tmp_path)
        check_equal(change_config(packed, dynamic={"-:.*mlp.*": {}}), twin)


class TestAwq:
    @pytest.mark.parametrize("group", [32, 64, 128, -1])
    def test_weights_are_those_that_were_packed(self, tmp_path: Path, group: int) -> None:
        packed, twin = awq_model(tmp_path, group_size=group)
        assert check_equal(packed, twin).formats() == frozenset()


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    own = EntryPoint(name="quantized_platform", value="quantized_platform", group=GROUP)
    return collect([*entry_points(group=GROUP), own])


def answers(plugins: Plugins, folder: Path, **settings: Any) -> tuple[Engine, list[int], list[list[float]]]:
    """The engine, closed, its greedy tokens, and the log-probabilities of the likeliest at each step."""
    given: dict[str, Any] = {"platform": "every-format", "skip_tokenizer_init": True} | settings
    engine = build_engine(EngineConfig(model=str(folder), kv_cache_memory="16MiB", **given), plugins=plugins)
    params = SamplingParams(temperature=0, max_tokens=16, logprobs=5, ignore_eos=True)
    engine.add(Request(request_id="0", prompt_token_ids=PROMPT, params=params))
    deltas = [delta for _ in range(40) if engine.has_work for delta in engine.step()]
    engine.close()
    tokens = [token for delta in deltas for token in delta.token_ids]
    assert len(tokens) == 16
    return engine, tokens, [entry.logprobs for delta in deltas for entry in delta.logprobs]


def said(engine: Engine, what: str) -> str:
    return next(f"{line.provider}: {line.detail}" for line in engine.ledger.choices if line.what == what)


MODELS: Mapping[str, Callable[[Path], tuple[Path, Path]]] = {
    "gptq": gptq_model,
    "gptq, reordered": lambda folder: gptq_model(folder, desc_act=True, sym=False),
    "awq": awq_model,
}


class TestRunning:
    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_packed_model_answers_as_its_twin(
        self, tmp_path: Path, plugins: Plugins, name: str, dtype: str
    ) -> None:
        packed, twin = MODELS[name](tmp_path)
        engine, tokens, logprobs = answers(plugins, packed, dtype=dtype)
        _, expected, of_them = answers(plugins, twin, dtype=dtype)
        assert tokens == expected
        # Equal weights at other addresses: a product's last bit depends on how its memory is aligned.
        np.testing.assert_allclose(logprobs, of_them, atol=1e-5 if dtype == "float32" else 1e-2)
        as_stored = (name, dtype) == ("gptq", "bfloat16")
        assert engine.info.quantization == ("int4" if as_stored else "none")
        held = "14 as int4, 7 in bfloat16" if as_stored else f"21 in {dtype}"
        assert said(engine, "weights") == f"core: {held}"

    def test_the_ledger_says_how_it_was_quantised(self, tmp_path: Path, plugins: Plugins) -> None:
        engine, *_ = answers(plugins, gptq_model(tmp_path / "a")[0])
        assert said(engine, "checkpoint") == "gptq: 14 weights, 14 as int4"
        engine, *_ = answers(plugins, awq_model(tmp_path / "b")[0])
        assert said(engine, "checkpoint") == "awq: 14 weights, 14 in no declared format"

    def test_it_can_be_quantised_again(self, tmp_path: Path, plugins: Plugins) -> None:
        engine, *_ = answers(plugins, awq_model(tmp_path)[0], dtype="bfloat16", quantization="int8")
        assert said(engine, "weights") == "core: 15 as int8, 6 in bfloat16"

    @pytest.mark.parametrize("quantization", ["none", "stored", "int8"])
    def test_the_budget_is_what_the_loader_holds(self, tmp_path: Path, quantization: str) -> None:
        checkpoint, accepted = opened(gptq_model(tmp_path)[0]), frozenset(FORMATS)
        weights = CheckpointWeights(checkpoint, "bfloat16", "cpu", quantization, accepted)
        held = 0
        for name in checkpoint.names():
            outputs, *inputs = checkpoint.shape(name)
            taken = weights.take(name, outputs, *inputs)
            if inputs and "embed" not in name:
                taken = weights.take_linear([name], [outputs], inputs[0])
            held += (taken if isinstance(taken, torch.Tensor) else taken.data).nbytes
        weights.finish()
        formats = WeightFormats(
            checkpoint=checkpoint, dtype="bfloat16", quantization=quantization, accepted=accepted
        )
        assert formats.weight_bytes() == held


class TestBiases:
    def built(self, plugins: Plugins, folder: Path, value: float) -> str:
        """What is wrong with a model that has a bias of so much where its architecture has none."""

        def change(tensors: Tensors) -> None:
            tensors[f"{LAYER}.bias"] = np.full(128, value, np.float16)

        try:
            answers(plugins, change_tensors(gptq_model(folder)[0], change))
        except CoreError as error:
            return str(error)
        return ""

    def test_one_that_programs_write_for_every_layer_is_not_left_over(
        self, tmp_path: Path, plugins: Plugins
    ) -> None:
        assert self.built(plugins, tmp_path, 0.0) == ""

    def test_one_that_is_not_zero_is(self, tmp_path: Path, plugins: Plugins) -> None:
        assert f"1 left over: {LAYER}.bias" in self.built(plugins, tmp_path, 0.1)


REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "bits": ({"bits": 3}, r"bits is 3; accepted: 4, 8"),
    "no bits": ({"bits": None}, r"bits is None; accepted"),
    "bits as text": ({"bits": "4"}, r"bits is '4'; accepted"),
    "group": ({"group_size": 0}, r"group_size is 0; a whole number above 0, or -1"),
    "no group": ({"group_size": None}, r"group_size is None"),
    "sym": ({"sym": "yes"}, r"sym is 'yes'; accepted: True, False"),
    "format": (
        {"checkpoint_format": "marlin"},
        r"checkpoint_format is 'marlin'; accepted: 'gptq', 'gptq_v2'",
    ),
    "words": ({"pack_dtype": "int16"}, r"pack_dtype is 'int16'; accepted: 'int32'"),
    "marlin": ({"is_marlin_format": True}, r"is_marlin_format is True"),
    "dynamic": ({"dynamic": {".*mlp.*": {"bits": 8}}}, r"dynamic gives some layers settings of their own"),
}
AWQ_REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "bits": ({"bits": 8}, r"bits is 8; accepted: 4"),
    "version": ({"version": "gemv"}, r"version is 'gemv'; accepted: 'gemm'"),
    "zeros": ({"zero_point": False}, r"zero_point is False; accepted: True"),
    "group": ({"group_size": "32"}, r"group_size is '32'"),
}


class TestConfigs:
    @pytest.mark.parametrize("case", REFUSED)
    def test_a_gptq_config_that_cannot_be_read_is_refused_by_its_key(self, tmp_path: Path, case: str) -> None:
        changes, said = REFUSED[case]
        with pytest.raises(ModelError, match=f"packed: quantization_config of config.json: {said}"):
            opened(change_config(gptq_model(tmp_path)[0], **changes))

    @pytest.mark.parametrize("case", AWQ_REFUSED)
    def test_an_awq_config_too(self, tmp_path: Path, case: str) -> None:
        changes, said = AWQ_REFUSED[case]
        with pytest.raises(ModelError, match=f"quantization_config of config.json: {said}"):
            opened(change_config(awq_model(tmp_path)[0], **changes))


def removed(part: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[f"{LAYER}.{part}"]

    return change


def replaced(part: str, value: np.ndarray) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({f"{LAYER}.{part}": value})


def int32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)


WRONG: Mapping[str, tuple[Callable[[Tensors], None], str]] = {
    "no scales": (removed("scales"), r"down_proj\.scales is missing; \[8, 128\] in float16 or"),
    "no zeros": (removed("qzeros"), r"down_proj\.qzeros is missing; \[8, 16\] in int32"),
    "fewer groups": (
        replaced("scales", np.ones((4, 128), np.float16)),
        r"down_proj\.scales is \[4, 128\] in float16; \[8, 128\]",
    ),
    "integer scales": (replaced("scales", int32(8, 128)), r"scales is \[8, 128\] in int32; .* in float16"),
    "zeros": (replaced("qzeros", int32(8, 128)), r"qzeros is \[8, 128\] in int32; \[8, 16\]"),
    "order": (replaced("g_idx", int32(8)), r"g_idx is \[8\] in int32; \[256\]"),
    "a vector": (replaced("qweight", int32(32)), r"qweight is int32 \[32\]; a matrix in int32"),
    "floats": (
        replaced("qweight", np.ones((32, 128), np.float16)),
        r"qweight is float16 .* int32 is expected",
    ),
}


class TestTensors:
    @pytest.mark.parametrize("case", WRONG)
    def test_those_that_do_not_fit_together_are_named(self, tmp_path: Path, case: str) -> None:
        change, said = WRONG[case]
        packed, _ = gptq_model(tmp_path)
        with pytest.raises(BadCheckpoint, match=rf"packed, quantised by gptq: .*{said}"):
            opened(change_tensors(packed, change))

    def test_a_weight_of_another_size_than_the_config_says_is_misshaped_as_any_other(
        self, tmp_path: Path, plugins: Plugins
    ) -> None:
        def change(tensors: Tensors) -> None:
            tensors[f"{LAYER}.qweight"] = int32(16, 128)
            tensors[f"{LAYER}.qzeros"] = int32(4, 16)
            tensors[f"{LAYER}.scales"] = np.ones((4, 128), np.float16)
            tensors[f"{LAYER}.g_idx"] = int32(128)

        packed = change_tensors(gptq_model(tmp_path)[0], change)
        with pytest.raises(
            BadCheckpoint, match=r"1 misshaped: .*down_proj\.weight is \[128, 128\], expected \[128, 256\]"
        ):
            answers(plugins, packed)

    def test_what_no_layer_needs_is_left_over_and_a_missing_layer_missing(
        self, tmp_path: Path, plugins: Plugins
    ) -> None:
        def change(tensors: Tensors) -> None:
            for part in ("qweight", "qzeros", "scales"):
                del tensors[f"{LAYER}.{part}"]

        packed = change_tensors(gptq_model(tmp_path)[0], change)
        with pytest.raises(BadCheckpoint) as wrong:
            answers(plugins, packed)
        assert f"1 missing: {DOWN}" in str(wrong.value)
        assert f"1 left over: {LAYER}.g_idx" in str(wrong.value)

    def test_zero_points_beside_the_middle_of_a_symmetric_model_are_refused(self, tmp_path: Path) -> None:
        packed, _ = gptq_model(tmp_path)
        ours = opened(change_tensors(packed, replaced("qzeros", int32(8, 16) + 5)))
        for read in (ours.read, ours.blocks):
            with pytest.raises(
                BadCheckpoint, match=r"gptq: .*qzeros has zero points beside 8 though sym is true"
            ):
                read(DOWN)

    def test_groups_that_do_not_exist_are_refused(self, tmp_path: Path) -> None:
        packed, _ = gptq_model(tmp_path, desc_act=True)
        ours = opened(change_tensors(packed, replaced("g_idx", np.full(256, 8, np.int32))))
        with pytest.raises(BadCheckpoint, match=r"g_idx names groups from 8 to 8; there are 8"):
            ours.read(DOWN)

    def test_an_order_that_the_config_denies_is_read_and_not_multiplied_as_it_is(
        self, tmp_path: Path
    ) -> None:
        packed, twin = gptq_model(tmp_path, desc_act=True)
        ours = opened(change_config(packed, desc_act=False))
        assert torch.equal(ours.read(DOWN), opened(twin).read(DOWN))
        with pytest.raises(BadCheckpoint, match="g_idx reorders the groups though desc_act is false"):
            ours.blocks(DOWN)

    def test_an_order_that_the_config_promises_has_to_be_there(self, tmp_path: Path) -> None:
        packed, _ = gptq_model(tmp_path, desc_act=True)
        with pytest.raises(BadCheckpoint, match=r"g_idx is missing; \[256\] in int32"):
            opened(change_tensors(packed, removed("g_idx")))

    def test_of_awq_too(self, tmp_path: Path) -> None:
        packed, _ = awq_model(tmp_path / "a")
        with pytest.raises(BadCheckpoint, match=r"quantised by awq: .*scales is missing"):
            opened(change_tensors(packed, removed("scales")))
        packed, _ = awq_model(tmp_path / "b")
        with pytest.raises(BadCheckpoint, match=r"has 128 inputs, which groups of 96 do not fill"):
            opened(change_config(packed, group_size=96))
