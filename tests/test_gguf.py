"""GGUF files: the container, unpacking, and being read under the names of a safetensors folder."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize as reference_dequantize
from gguf.quants import quantize
from gguf_files import interleaved, never, write_to_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.contracts.model import Architecture, GgufMapping
from core.errors import BadCheckpoint, CoreError, UnsupportedArchitecture
from core.weights.checkpoint import Checkpoint, open_checkpoint
from core.weights.dequantize import dequantize
from core.weights.formats import WeightFormats
from core.weights.gguf_file import block_layout, read_gguf, read_gguf_metadata
from core.weights.loader import CheckpointWeights

HEADS, KV_HEADS, HIDDEN, ROWS = 4, 2, 32, 64


def config_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": metadata["llama.embedding_length"],
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "seen": sorted(metadata),
    }


LLAMA = Architecture(
    name="LlamaForCausalLM",
    family="llama",
    describe=never,
    build=never,
    gguf=GgufMapping(
        name="llama",
        config=config_of,
        weights={
            "model.embed_tokens.weight": "token_embd.weight",
            "lm_head.weight": "output.weight",
            "model.layers.{i}.self_attn.q_proj.weight": "blk.{i}.attn_q.weight",
            "model.layers.{i}.self_attn.k_proj.weight": "blk.{i}.attn_k.weight",
            "model.layers.{i}.self_attn.q_proj.bias": "blk.{i}.attn_q.bias",
        },
        permuted={
            "model.layers.{i}.self_attn.q_proj.weight": "num_attention_heads",
            "model.layers.{i}.self_attn.k_proj.weight": "num_key_value_heads",
            "model.layers.{i}.self_attn.q_proj.bias": "num_attention_heads",
        },
    ),
)
ARCHITECTURES = {LLAMA.name: LLAMA}


def write(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    change: Callable[[GGUFWriter], None] = lambda writer: None,
    architecture: str = "llama",
) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_embedding_length(HIDDEN)
    change(writer)
    for name, tensor in tensors.items():
        if tensor.ndim == 1 or kind is GGMLQuantizationType.F32:
            writer.add_tensor(name, tensor.astype(np.float32))
        else:
            writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)
    write_to_disk(writer)
    return path


def open_gguf(path: Path) -> Checkpoint:
    return open_checkpoint(path, ARCHITECTURES)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (ROWS, HIDDEN), "blk.0.attn_q.weight": (HEADS * 8, HIDDEN)}
    shapes |= {"blk.0.attn_k.weight": (KV_HEADS * 8, HIDDEN), "blk.11.attn_q.bias": (HEADS * 8,)}
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.fixture
def small(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    stored = dict(arrays)
    for name, heads in (
        ("blk.0.attn_q.weight", HEADS),
        ("blk.0.attn_k.weight", KV_HEADS),
        ("blk.11.attn_q.bias", HEADS),
    ):
        stored[name] = interleaved(arrays[name], heads)
    return write(tmp_path / "small.gguf", stored)


def test_weights_have_the_names_shapes_and_row_order_of_a_safetensors_folder(
    small: Path, arrays: dict[str, np.ndarray]
) -> None:
    checkpoint = open_gguf(small)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
        "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
        "model.layers.11.self_attn.q_proj.bias": "blk.11.attn_q.bias",
    }
    assert checkpoint.names() == names.keys()
    for ours, theirs in names.items():
        assert checkpoint.shape(ours) == arrays[theirs].shape
        assert torch.equal(checkpoint.read(ours), torch.from_numpy(arrays[theirs]))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16), ("Q8_0", torch.float32)],
)
def test_plain_types_keep_their_dtype_and_quantised_ones_unpack_to_float32(
    tmp_path: Path, arrays: dict[str, np.ndarray], kind: str, dtype: torch.dtype
) -> None:
    quant = GGMLQuantizationType[kind]
    path = write(tmp_path / "m.gguf", {"token_embd.weight": arrays["token_embd.weight"]}, quant)
    tensor = open_gguf(path).read("model.embed_tokens.weight")
    assert tensor.dtype == dtype
    stored = quantize(arrays["token_embd.weight"], quant)
    assert torch.equal(
        tensor.float(), torch.from_numpy(reference_dequantize(stored, quant).copy()).view(ROWS, HIDDEN)
    )


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q4_0", "bfloat16")]
)
def test_the_config_says_in_what_dtype_the_weights_are_meant_to_be_used(
    tmp_path: Path, arrays: dict[str, np.ndarray], kind: str, dtype: str
) -> None:
    tensors = {name: arrays[name] for name in ("token_embd.weight", "blk.11.attn_q.bias")}
    path = write(tmp_path / "m.gguf", tensors, GGMLQuantizationType[kind])
    assert open_gguf(path).config["dtype"] == dtype


@pytest.mark.parametrize(
    "kind",
    [k for k in gguf.GGML_QUANT_SIZES if k.name[0] in "QIMT" and k.name not in ("I8", "I16", "I32", "I64")],
)
def test_unpacking_equals_the_gguf_package_to_the_bit(kind: GGMLQuantizationType) -> None:
    """Of every type that the package unpacks; ours for the common ones, its own for the others."""
    per_block, block_bytes = block_layout(kind)
    num_blocks = 3 * 2**15 // per_block + 1
    generator = torch.Generator().manual_seed(int(kind))
    blocks = torch.randint(0, 256, (num_blocks, block_bytes), dtype=torch.uint8, generator=generator)
    try:
        with np.errstate(all="ignore"):
            expected = reference_dequantize(blocks.numpy(), kind)
    except NotImplementedError:
        with pytest.raises(BadCheckpoint, match=f"{kind.name} cannot be unpacked"):
            dequantize(blocks.view(-1), kind, (num_blocks, per_block), torch.float32)
        return
    actual = dequantize(blocks.view(-1), kind, (num_blocks, per_block), torch.float32).numpy()
    assert np.array_equal(np.nan_to_num(actual), np.nan_to_num(expected))
    assert np.array_equal(np.isnan(actual), np.isnan(expected))


def test_unpacking_into_a_narrower_dtype_rounds_the_same_as_unpacking_first() -> None:
    stored = torch.from_numpy(
        quantize(np.random.default_rng(1).standard_normal((64, 64), np.float32), GGMLQuantizationType.Q4_1)
    )
    arguments = (stored.view(-1), GGMLQuantizationType.Q4_1, (64, 64))
    assert torch.equal(
        dequantize(*arguments, torch.bfloat16), dequantize(*arguments, torch.float32).bfloat16()
    )


def test_config_gets_metadata_but_no_vocabulary(small: Path, tmp_path: Path) -> None:
    def vocabulary(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"token{i}" for i in range(ROWS)])
        writer.add_token_types([1] * ROWS)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_eot_token_id(7)

    checkpoint = open_gguf(
        write(tmp_path / "m.gguf", {"token_embd.weight": np.zeros((ROWS, HIDDEN))}, change=vocabulary)
    )
    assert checkpoint.config["hidden_size"] == HIDDEN
    assert "tokenizer.ggml.bos_token_id" in checkpoint.config["seen"]
    assert not any("tokens" in key or "token_type" in key for key in checkpoint.config["seen"])
    assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]
    assert checkpoint.config["vocab_size"] == ROWS
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": [2, 7]}


def test_the_head_is_tied_when_the_file_has_none(small: Path, tmp_path: Path) -> None:
    assert open_gguf(small).config["tie_word_embeddings"] is True
    head = write(tmp_path / "head.gguf", {"output.weight": np.zeros((ROWS, HIDDEN))})
    assert open_gguf(head).config["tie_word_embeddings"] is False


def test_tensors_that_the_mapping_does_not_know_are_left_over(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": np.zeros((ROWS, HIDDEN)), "blk.0.strange.weight": np.zeros((2, 2))}
    tensors["rope_freqs.weight"] = np.ones(4)
    checkpoint = open_gguf(write(tmp_path / "m.gguf", tensors))
    weights = CheckpointWeights(checkpoint, "float32", "cpu")
    weights.take("model.embed_tokens.weight", ROWS, HIDDEN)
    with pytest.raises(BadCheckpoint, match=r"1 left over: blk\.0\.strange\.weight"):
        weights.finish()


def test_a_folder_with_one_gguf_is_that_file(small: Path, tmp_path: Path) -> None:
    assert open_gguf(tmp_path).path == small
    small.with_name("other.gguf").write_bytes(small.read_bytes())
    with pytest.raises(BadCheckpoint, match=r"2 GGUF files; name the one to load: other\.gguf, small\.gguf"):
        open_gguf(tmp_path)


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {}, architecture="mamba9")
    with pytest.raises(UnsupportedArchitecture, match=r"'mamba9', which no plugin brings; supported: llama"):
        open_gguf(path)


def test_metadata_that_the_mapping_misses_is_named(tmp_path: Path) -> None:
    write_to_disk(GGUFWriter(tmp_path / "m.gguf", "llama"))
    with pytest.raises(BadCheckpoint, match=r"lacks 'llama\.embedding_length'"):
        open_gguf(tmp_path / "m.gguf")


def test_one_part_of_a_split_model_is_refused_with_the_way_to_merge(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", {}, change=lambda writer: writer.add_uint16("split.count", 3))
    with pytest.raises(BadCheckpoint, match=r"one of 3 parts .* llama-gguf-split --merge"):
        open_gguf(path)


def test_rows_that_the_heads_cannot_divide_are_refused(tmp_path: Path) -> None:
    checkpoint = open_gguf(write(tmp_path / "m.gguf", {"blk.0.attn_q.weight": np.zeros((HEADS + 1, HIDDEN))}))
    with pytest.raises(BadCheckpoint, match=r"has 5 rows; num_attention_heads is 4"):
        checkpoint.read("model.layers.0.self_attn.q_proj.weight")


def test_metadata_of_every_type_is_read(tmp_path: Path) -> None:
    values: dict[str, tuple[str, Any]] = {
        **{
            f"x.{t}": (t, 3)
            for t in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
        },
        **{"x.float32": ("float32", 0.5), "x.float64": ("float64", 0.1), "x.bool": ("bool", True)},
        **{
            "x.string": ("string", "héllo"),
            "x.array": ("array", [1, 2, 3]),
            "x.strings": ("array", ["a", "", "ü"]),
        },
    }

    def add(writer: GGUFWriter) -> None:
        for key, (kind, value) in values.items():
            getattr(writer, f"add_{kind}")(key, value)

    metadata = read_gguf_metadata(write(tmp_path / "m.gguf", {}, change=add))
    assert {key: metadata[key] for key in values} == {key: value for key, (_, value) in values.items()}


def header(tensors: int, values: int, rest: bytes = b"", magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, values) + rest + bytes(64)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes = b"t", dimensions: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(dimensions))
        + b"".join(struct.pack("<Q", d) for d in dimensions)
        + struct.pack("<IQ", kind, offset)
    )


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too few"),
    "wrong magic": (header(0, 0, magic=b"GGML"), "not a GGUF file"),
    "version 1": (header(0, 0, version=1), "GGUF version 1;"),
    "other byte order": (header(0, 0, version=3 << 24), "big-endian"),
    "absurd number of tensors": (header(2**62, 0), "claims 4,611,686,018,427,387,904 tensors"),
    "absurd number of values": (header(0, 2**62), "metadata values, more than"),
    "name longer than the file": (header(0, 1, struct.pack("<Q", 2**60)), "ends inside a text"),
    "name that is no text": (header(0, 1, text(b"\xff\xfe")), "damaged text"),
    "value of unknown type": (header(0, 1, text(b"k") + struct.pack("<I", 99)), "a value of type 99"),
    "absurd array": (header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 4, 2**60)), "array items, more than"),
    "absurd array of texts": (
        header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, 2**60)),
        "array items, more than",
    ),
    "arrays without end": (
        header(0, 1, text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50),
        "nested",
    ),
    "a key twice": (header(0, 2, (text(b"k") + struct.pack("<IB", 0, 1)) * 2), "'k' twice"),
    "a tensor twice": (header(2, 0, tensor() + tensor(offset=32)), "'t' twice"),
    "five dimensions": (header(1, 0, tensor(dimensions=(1,) * 5)), "5 dimensions"),
    "no elements": (header(1, 0, tensor(dimensions=(0,))), "the shape"),
    "row that blocks cannot fill": (
        header(1, 0, tensor(dimensions=(33,), kind=2)),
        "blocks of 32 cannot fill",
    ),
    "unknown tensor type": (header(1, 0, tensor(kind=12345)), "as type 12345"),
    "data past the end": (header(1, 0, tensor(dimensions=(2**20,))), "would end at byte"),
    "data past all memory": (header(1, 0, tensor(dimensions=(2**60, 2**60))), "would end at byte"),
    "offset past the end": (header(1, 0, tensor(offset=2**40)), "would end at byte"),
    "offset that is not aligned": (header(1, 0, tensor(offset=3)), "no multiple of 32"),
    "overlap": (header(2, 0, tensor(dimensions=(12,)) + tensor(b"u", offset=32)), "overlap 't'"),
    "alignment of zero": (
        header(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 0)),
        "a power of two",
    ),
}


@pytest.mark.parametrize(("content", "fact"), LIES.values(), ids=LIES.keys())
def test_s22_a_lying_gguf_header_is_one_error_naming_the_file_and_the_fact(
    tmp_path: Path, content: bytes, fact: str
) -> None:
    path = tmp_path / "liar.gguf"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)
    assert fact in str(caught.value)


def test_s22_a_file_cut_anywhere_is_refused(small: Path) -> None:
    content = small.read_bytes()
    cut = small.with_name("cut.gguf")
    for length in range(0, len(content) - 32, 97):
        cut.write_bytes(content[:length])
        with pytest.raises(BadCheckpoint, match=r"cut\.gguf"):
            open_gguf(cut)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_s22_damage_anywhere_in_a_gguf_header_is_an_error_or_harmless(
    small: Path, data: st.DataObject
) -> None:
    content = bytearray(small.read_bytes())
    header_bytes = min(info.offset for info in read_gguf(small).tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header_bytes - 1))] = data.draw(st.integers(0, 255))
    damaged = small.with_name("damaged.gguf")
    damaged.write_bytes(content)
    try:
        checkpoint = open_gguf(damaged)
        tensors = [checkpoint.read(name, torch.float32) for name in checkpoint.names()]
    except CoreError:
        return
    assert all(tensor.dtype is torch.float32 for tensor in tensors)


def test_the_default_models_weights_equal_those_that_transformers_reads(
    smollm2: Path, smollm2_hf: Path
) -> None:
    from models.llama import LLAMA as REAL

    ours, theirs = open_checkpoint(smollm2, {REAL.name: REAL}), open_checkpoint(smollm2_hf, {})
    assert ours.names() == theirs.names()
    for checkpoint in (ours, theirs):
        assert WeightFormats(checkpoint=checkpoint, dtype="bfloat16").weight_bytes() == 2 * 134_515_008
    for name in sorted(theirs.names()):
        assert torch.equal(ours.read(name, torch.float32), theirs.read(name, torch.float32)), name
