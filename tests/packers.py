"""Models as GPTQ and AWQ write them, packed number by number with numpy, beside what their weights come to.

Written from the descriptions of the formats and from nothing of ours.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from core.conformance.tiny import write_tiny_model

Tensors = dict[str, NDArray[Any]]
Packer = Callable[[NDArray[Any], np.random.RandomState], tuple[Tensors, NDArray[Any]]]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SIZES = {"vocab_size": 160, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


def words(numbers: NDArray[Any], bits: int, order: tuple[int, ...] = tuple(range(8))) -> NDArray[Any]:
    """[n, m] -> [n, m * bits / 32], uint32: of each word's numbers, the one of place order[i] comes i-th."""
    count = 32 // bits
    packed = np.zeros((numbers.shape[0], numbers.shape[1] // count), np.uint32)
    for i in range(count):
        packed |= numbers[:, order[i] :: count].astype(np.uint32) << np.uint32(bits * i)
    return packed


def rounded(
    weight: NDArray[Any], zeros: NDArray[Any], groups: NDArray[Any], bits: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Numbers [in, out], scales [groups, out] and what they come to, [out, in]; zeros [groups, out]."""
    inputs = weight.T
    largest = np.stack([np.abs(inputs[groups == g]).max(axis=0) for g in range(len(zeros))])
    scales = (largest / (2 ** (bits - 1) - 1)).astype(np.float16)
    wide = scales.astype(np.float32)
    numbers = np.clip(np.round(inputs / wide[groups]) + zeros[groups], 0, 2**bits - 1).astype(np.int64)
    held = wide[groups] * (numbers - zeros[groups]).astype(np.float32)
    return numbers, scales, np.ascontiguousarray(held.T)


def gptq(
    *, bits: int = 4, group: int = 32, sym: bool = True, shuffled: bool = False, one_less: bool = True
) -> Packer:
    """one_less: zero points as the checkpoint_format "gptq" has them; shuffled: groups as desc_act makes them."""

    def pack(weight: NDArray[Any], source: np.random.RandomState) -> tuple[Tensors, NDArray[Any]]:
        outputs, inputs = weight.shape
        size = inputs if group == -1 else group
        groups = np.arange(inputs) // size
        if shuffled:
            groups = groups[source.permutation(inputs)]
        middle = 2 ** (bits - 1)
        shape = (-(-inputs // size), outputs)
        zeros = np.full(shape, middle) if sym else source.randint(0, 2**bits, shape)
        numbers, scales, held = rounded(weight, zeros, groups, bits)
        stored_zeros = words(zeros, bits)
        if one_less:
            stored_zeros = stored_zeros - np.uint32(0x11111111 if bits == 4 else 0x01010101)
        tensors = {
            "qweight": words(numbers.T, bits).T,
            "qzeros": stored_zeros,
            "scales": scales,
            "g_idx": groups.astype(np.int32),
        }
        return {name: as_stored(tensor) for name, tensor in tensors.items()}, held

    return pack


def awq(*, group: int = 32) -> Packer:
    def pack(weight: NDArray[Any], source: np.random.RandomState) -> tuple[Tensors, NDArray[Any]]:
        outputs, inputs = weight.shape
        size = inputs if group == -1 else group
        groups = np.arange(inputs) // size
        zeros = source.randint(0, 16, (inputs // size, outputs))
        numbers, scales, held = rounded(weight, zeros, groups, 4)
        tensors = {
            "qweight": words(numbers, 4, AWQ_ORDER),
            "qzeros": words(zeros, 4, AWQ_ORDER),
            "scales": scales,
        }
        return {name: as_stored(tensor) for name, tensor in tensors.items()}, held

    return pack


def as_stored(tensor: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.view(np.int32) if tensor.dtype == np.uint32 else tensor)


def write_packed(
    folder: Path, packer: Packer, quantization: Mapping[str, Any], **changes: Any
) -> tuple[Path, Path]:
    """A tiny model whose linear layers are packed, and its twin: the same weights in float32. The two folders."""
    twin = write_tiny_model(folder / "twin", **SIZES, **changes)
    packed = write_tiny_model(folder / "packed", quantization_config=quantization, **SIZES, **changes)
    tensors, held = load_file(packed / "model.safetensors"), load_file(twin / "model.safetensors")
    source = np.random.RandomState(7)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        parts, held[name] = packer(tensors.pop(name), source)
        tensors |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, packed / "model.safetensors")
    save_file(held, twin / "model.safetensors")
    return packed, twin


def change_tensors(folder: Path, change: Callable[[Tensors], None]) -> Path:
    """The same model, with `change` done to its tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def change_config(folder: Path, **quantization: Any) -> Path:
    """The same model, with other keys in its quantization_config."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder
