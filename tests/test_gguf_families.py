"""Every family that GGUF names: its files, as llama.cpp's converter writes them, say what transformers says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import assert_same, write_tiny
from gguf import GGMLQuantizationType, quantize
from gguf_converter import Conversion, as_quantised, transpose, write_gguf
from gguf_models import FAMILIES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity import Reference
from safetensors.torch import load_file

from core import LLM, SamplingParams
from core.contracts.quantization import QuantizedWeight
from core.errors import BadCheckpoint, CoreError
from core.weights.checkpoint import Checkpoint, open_checkpoint
from core.weights.gguf_file import read_gguf
from core.weights.loader import CheckpointWeights
from models import core_architectures, gemma, llama

LENGTH = 8
ASKED = [[5 + (7 * n * i) % 311 for i in range(n)] for n in (1, 3, 17, 40, 90)]


def compare(reference: Reference, path: Path) -> None:
    """Raises AssertionError where the engine, given this file, and transformers differ."""
    params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True, detokenize=False, logprobs=20)
    with LLM(
        str(path),
        platform="cpu",
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=256,
        kv_cache_memory=8 << 20,
    ) as llm:
        assert_same(reference, ASKED, llm.generate(ASKED, params, use_tqdm=False), LENGTH)


@pytest.mark.parametrize("conversion", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_family_says_the_same_from_gguf(conversion: Conversion, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", conversion.architecture, conversion.changes)
    reference = Reference(folder, attention="eager")
    path = write_gguf(tmp_path / "model.gguf", conversion, folder)
    compare(reference, path)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "internlm2", "mixtral"])
@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0])
def test_quantised_blocks_are_rearranged_like_numbers(
    name: str, kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    """Widths are multiples of 32; a transposed matrix of GPT-2 is quantised as GGUF has it."""
    conversion = FAMILIES[name]
    folder = write_tiny(tmp_path / "model", conversion.architecture, conversion.changes)
    reference = Reference(folder, attention="eager")
    path = write_gguf(tmp_path / "model.gguf", conversion, folder, kind)
    as_quantised(reference.model, kind, transposed=conversion.weights is transpose)
    compare(reference, path)


@pytest.mark.parametrize(
    ("family", "name", "stored"),
    [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight", None),
        ("gpt2", "transformer.h.1.mlp.c_fc.weight", "transposed"),
    ],
)
def test_blocks_are_taken_as_the_file_has_them(
    family: str, name: str, stored: str | None, tmp_path: Path
) -> None:
    """One expert's, out of those of all; a matrix that GGUF turned before it was quantised."""
    conversion, kind = FAMILIES[family], GGMLQuantizationType.Q8_0
    folder = write_tiny(tmp_path / "model", conversion.architecture, conversion.changes)
    checkpoint = open_gguf(write_gguf(tmp_path / "model.gguf", conversion, folder, kind))
    weight = load_file(folder / "model.safetensors")[name]
    expected = (weight.t() if stored == "transposed" else weight).contiguous().numpy()

    weights = CheckpointWeights(checkpoint, "bfloat16", "cpu", "stored", frozenset({"q8_0"}))
    taken = weights.take_linear([name], [expected.shape[0]], expected.shape[1])

    assert isinstance(taken, QuantizedWeight)
    assert np.array_equal(taken.data.numpy(), quantize(expected, kind))


def open_gguf(path: Path) -> Checkpoint:
    return open_checkpoint(path, {architecture.name: architecture for architecture in core_architectures()})


def described(path: Path) -> None:
    """As far as a file is read before memory is taken."""
    config = open_gguf(path).config
    llama.PHI3.describe(config)


@pytest.fixture(scope="module")
def tiny_phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    conversion = FAMILIES["phi3 long"]
    return write_tiny(tmp_path_factory.mktemp("phi"), conversion.architecture, conversion.changes)


@pytest.fixture(scope="module")
def phi_file(tiny_phi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("file") / "sound.gguf", FAMILIES["phi3 long"], tiny_phi)


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        (
            "rope.scaling.type",
            "hyper",
            r"phi3\.rope\.scaling\.type is 'hyper'; known are none, linear, yarn, longrope",
        ),
        ("attention.head_count", None, r"lacks phi3\.attention\.head_count"),
        ("attention.layer_norm_rms_epsilon", None, r"lacks phi3\.attention\.layer_norm_rms_epsilon"),
        ("block_count", 2**31, r"block_count is 2147483648; the file has 17 tensors"),
        ("attention.head_count", 0, r"head_count is 0; a whole number above 0"),
        ("attention.head_count_kv", [2, 1], r"head_count_kv is \[2, 1\]; a whole number"),
        ("attention.value_length", 8, r"value_length is 8; 16, the length of keys, is expected"),
        ("rope.dimension_count", 7, r"dimension_count is 7; an even number, 16 at most"),
        ("rope.dimension_count", 8, r"rope_factors_long\.weight is \[8\], expected \[4\]"),
        ("expert_count", 4, r"phi3\.expert_count is 4; nobody here knows what that means"),
        ("attention.causal", False, r"attention\.causal is False; "),
    ],
)
def test_metadata_that_is_missing_wrong_or_unknown_is_named(
    key: str, value: Any, fact: str, tiny_phi: Path, tmp_path: Path
) -> None:
    sound = FAMILIES["phi3 long"]
    changed = replace(sound, metadata=lambda config: sound.metadata(config) | {key: value})
    with pytest.raises(BadCheckpoint, match=fact):
        described(write_gguf(tmp_path / "m.gguf", changed, tiny_phi))


def test_a_scaling_without_its_numbers_is_refused(tiny_phi: Path, tmp_path: Path) -> None:
    linear = replace(FAMILIES["phi3"], metadata=lambda config: {"rope.scaling.type": "linear"})
    with pytest.raises(BadCheckpoint, match=r"rope\.scaling\.type is 'linear'; the file lacks its factor"):
        described(write_gguf(tmp_path / "m.gguf", linear, tiny_phi))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_s22_damage_anywhere_in_a_header_is_an_error_or_harmless(phi_file: Path, data: st.DataObject) -> None:
    content = bytearray(phi_file.read_bytes())
    first = min(tensor.offset for tensor in read_gguf(phi_file).tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, first - 1))] = data.draw(st.integers(0, 255))
    damaged = phi_file.with_name("damaged.gguf")
    damaged.write_bytes(content)
    try:
        described(damaged)
    except CoreError:
        return


def test_the_largest_gemmas_scale_scores_by_a_heads_share_of_the_stream() -> None:
    mapping = gemma.GEMMA2.gguf
    assert mapping is not None
    metadata = {
        "embedding_length": 4608,
        "feed_forward_length": 36864,
        "context_length": 8192,
        "attention.head_count": 32,
        "attention.head_count_kv": 16,
        "attention.key_length": 128,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    for layers, scalar in ((46, 144), (42, 128)):
        given = {f"gemma2.{key}": value for key, value in (metadata | {"block_count": layers}).items()}
        assert mapping.config(given)["query_pre_attn_scalar"] == scalar
