"""Safetensors folders, the kinds of checkpoint that are refused, and the loader's one error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from core.errors import BadCheckpoint, CoreError, ModelError, ModelNotFound, UnsafeCheckpoint
from core.weights.checkpoint import open_checkpoint
from core.weights.formats import WeightFormats
from core.weights.loader import CheckpointWeights

TENSORS = {
    "model.embed_tokens.weight": torch.randn(12, 4),
    "model.norm.weight": torch.randn(4).to(torch.bfloat16),
    "lm_head.weight": torch.randn(12, 4).to(torch.float16),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_config(tmp_path)
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def write_config(folder: Path, **values: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["TinyForCausalLM"], **values}))


def split_in_two(folder: Path) -> None:
    names = sorted(TENSORS)
    shards = {"model-00001-of-00002.safetensors": names[:1], "model-00002-of-00002.safetensors": names[1:]}
    for shard, members in shards.items():
        save_file({name: TENSORS[name] for name in members}, folder / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def take_all(folder: Path, dtype: str = "float32") -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder, {})
    weights = CheckpointWeights(checkpoint, dtype, "cpu")
    taken = {name: weights.take(name, *checkpoint.shape(name)) for name in checkpoint.names()}
    weights.finish()
    return taken


def test_takes_every_weight_in_the_dtype_asked_for(folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        taken = take_all(folder, str(dtype).removeprefix("torch."))
        assert taken.keys() == TENSORS.keys()
        for name, tensor in taken.items():
            assert torch.equal(tensor, TENSORS[name].to(dtype))


def test_reads_a_weight_in_the_dtype_it_is_stored_in_when_none_is_asked_for(folder: Path) -> None:
    checkpoint = open_checkpoint(folder, {})
    for name, tensor in TENSORS.items():
        assert checkpoint.read(name).dtype == tensor.dtype
        assert torch.equal(checkpoint.read(name), tensor)


def test_reads_shards_by_their_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    split_in_two(folder)
    assert take_all(folder).keys() == TENSORS.keys()


def test_reads_every_file_when_several_have_no_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    split_in_two(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert take_all(folder).keys() == TENSORS.keys()


def test_a_weight_in_two_files_without_an_index_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file(TENSORS, folder / "b.safetensors")
    with pytest.raises(BadCheckpoint, match=r"is in a\.safetensors and in b\.safetensors"):
        open_checkpoint(folder, {})


def test_config_and_generation_config_are_read(folder: Path) -> None:
    write_config(folder, hidden_size=4)
    assert open_checkpoint(folder, {}).generation_config == {}
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    checkpoint = open_checkpoint(folder, {})
    assert checkpoint.config["hidden_size"] == 4
    assert checkpoint.generation_config == {"eos_token_id": 2}


def test_weight_bytes_count_what_is_loaded_and_no_tied_head(folder: Path) -> None:
    assert WeightFormats(checkpoint=open_checkpoint(folder, {}), dtype="float32").weight_bytes() == 4 * (
        48 + 4 + 48
    )
    write_config(folder, tie_word_embeddings=True)
    assert WeightFormats(checkpoint=open_checkpoint(folder, {}), dtype="bfloat16").weight_bytes() == 2 * (
        48 + 4
    )


def test_finish_lists_everything_wrong_in_one_error(folder: Path) -> None:
    write_config(folder, tie_word_embeddings=False)
    weights = CheckpointWeights(open_checkpoint(folder, {}), "float32", "cpu")
    assert weights.take("model.norm.weight", 5).shape == (5,)
    assert weights.take("model.layers.0.weight", 2, 3).shape == (2, 3)
    assert not weights.has("model.layers.0.weight")
    with pytest.raises(BadCheckpoint) as caught:
        weights.finish()
    message = str(caught.value)
    assert "1 missing: model.layers.0.weight" in message
    assert "1 misshaped: model.norm.weight is [4], expected [5]" in message
    assert "2 left over: lm_head.weight, model.embed_tokens.weight" in message


def test_a_long_list_of_problems_is_cut_and_counted(folder: Path) -> None:
    weights = CheckpointWeights(open_checkpoint(folder, {}), "float32", "cpu")
    for index in range(50):
        weights.take(f"absent.{index}", 1)
    with pytest.raises(BadCheckpoint, match=r"50 missing: .*absent\.19 and 30 more"):
        weights.finish()


def test_weights_that_nobody_needs_are_not_left_over(tmp_path: Path) -> None:
    write_config(tmp_path, tie_word_embeddings=True)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    save_file(TENSORS | extra, tmp_path / "model.safetensors")
    weights = CheckpointWeights(open_checkpoint(tmp_path, {}), "float32", "cpu")
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        weights.take(name, *TENSORS[name].shape)
    weights.finish()


def test_writing_to_a_weight_never_reaches_the_file(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    open_checkpoint(folder, {}).read("model.norm.weight").zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_weights_that_are_no_floating_point_are_refused_not_converted(tmp_path: Path) -> None:
    write_config(tmp_path)
    save_file({"packed": torch.zeros(4, dtype=torch.int32)}, tmp_path / "model.safetensors")
    weights = CheckpointWeights(open_checkpoint(tmp_path, {}), "float32", "cpu")
    with pytest.raises(BadCheckpoint, match=r"packed is stored as I32; F64, F32, F16, BF16 are read"):
        weights.take("packed", 4)


def test_a_quantised_folder_is_refused_by_its_method(folder: Path) -> None:
    write_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match=r"quantised \(gptq\)"):
        open_checkpoint(folder, {})


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"nowhere does not exist"):
        open_checkpoint(tmp_path / "nowhere", {})


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"looked for config\.json .* found nothing"):
        open_checkpoint(tmp_path, {})


def test_weights_without_a_config_are_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"no config\.json"):
        open_checkpoint(folder, {})


def test_a_config_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"config\.json but no weights"):
        open_checkpoint(folder, {})


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "model.pkl"])
def test_pickle_checkpoints_are_refused_with_the_reason(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    for path in (folder, folder / name):
        with pytest.raises(UnsafeCheckpoint, match=r"can run code .* Convert it to safetensors"):
            open_checkpoint(path, {})


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "\x00"])
def test_a_config_that_is_no_json_object_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        open_checkpoint(folder, {})


def test_a_missing_shard_is_named(folder: Path) -> None:
    split_in_two(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"lacks 1 shards of its index: model-00002-of-00002"):
        open_checkpoint(folder, {})


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "model.bin", ""])
def test_an_index_cannot_lead_out_of_its_folder(folder: Path, shard: str) -> None:
    index = {"weight_map": {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match=r"names the shard"):
        open_checkpoint(folder, {})


def test_an_index_that_names_a_weight_its_shard_lacks_is_refused(folder: Path) -> None:
    index = {"weight_map": {"model.nothing": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match=r"model\.nothing"):
        open_checkpoint(folder, {})


def rewritten(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A sound file whose header was changed."""
    header: dict[str, Any] = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    header = change(header) or header
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(24)


LIES: dict[str, bytes] = {
    "empty file": b"",
    "seven bytes": b"\x01" * 7,
    "header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "header longer than all memory": (2**63).to_bytes(8, "little") + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"nope",
    "JSON array": (2).to_bytes(8, "little") + b"[]",
    "nested without end": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "offsets past the end": rewritten(lambda h: h["w"].update(shape=[20, 3], data_offsets=[0, 240])),
    "size unlike shape": rewritten(lambda h: h["w"].update(shape=[2, 4])),
    "huge shape": rewritten(lambda h: h["w"].update(shape=[2**40, 2**40])),
    "negative length": rewritten(lambda h: h["w"].update(shape=[-2, -3])),
    "offsets the wrong way round": rewritten(lambda h: h["w"].update(data_offsets=[24, 0])),
    "fraction": rewritten(lambda h: h["w"].update(shape=[2.0, 3])),
    "unknown dtype": rewritten(lambda h: h["w"].update(dtype="F3")),
    "overlap": rewritten(lambda h: {**h, "v": {"dtype": "F32", "shape": [3], "data_offsets": [12, 24]}}),
    "gap": rewritten(lambda h: h["w"].update(shape=[5], data_offsets=[4, 24])),
    "tail that nobody owns": rewritten(lambda h: h["w"].update(shape=[5], data_offsets=[0, 20])),
    "entry that is no object": rewritten(lambda h: {"w": 7}),
    "entry without offsets": rewritten(lambda h: h["w"].pop("data_offsets") and None),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES.keys())
def test_a_lying_safetensors_header_is_one_error_naming_the_file(tmp_path: Path, content: bytes) -> None:
    write_config(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors .*download it again"):
        open_checkpoint(tmp_path, {})


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(BadCheckpoint, match=r"git lfs pull"):
        open_checkpoint(tmp_path, {})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_anywhere_in_a_safetensors_file_is_an_error_or_harmless(
    folder: Path, data: st.DataObject
) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = folder / "damaged"
    damaged.mkdir(exist_ok=True)
    write_config(damaged)
    (damaged / "model.safetensors").write_bytes(
        content[: data.draw(st.integers(len(content) // 2, len(content)))]
    )
    try:
        taken = take_all(damaged)
    except CoreError:
        return
    assert all(tensor.dtype is torch.float32 for tensor in taken.values())
