"""Checkpoints of safetensors files: one, several with an index, or several without.

The header of each file is checked in full before a tensor is read: safetensors is an 8-byte length, that
much JSON, and a buffer that the JSON's tensors must fill without gap or overlap.
Source: the format section of the safetensors README.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from core.errors import BadCheckpoint
from core.weights.checkpoint import Checkpoint, read_json
from core.weights.mapped import MappedFile

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OTHERS = {
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
    **{"U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}
_DTYPES = _FLOATS | _OTHERS
_BYTES = {8: ("F64", "I64", "U64"), 4: ("F32", "I32", "U32"), 2: ("F16", "BF16", "I16", "U16")}
_ITEM_BYTES = {dtype: size for size, dtypes in _BYTES.items() for dtype in dtypes}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies. `offset` counts from the start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class SafetensorsCheckpoint(Checkpoint):
    """A folder in Hugging Face's layout."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        generation = path / "generation_config.json"
        self.generation_config = read_json(generation) if generation.is_file() else {}
        found = _indexed(path) if (path / INDEX).is_file() else _gathered(path)
        self._tensors = {_modern(name): stored for name, stored in found.items()}
        self._mapped: dict[Path, MappedFile] = {}

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """What a weight is stored in, by torch name."""
        return _DTYPES[self._tensors[name].dtype]

    def read(self, name: str, dtype: "torch.dtype | None" = None) -> "torch.Tensor":
        import torch

        if dtype is not None:
            return self.read_float(name).to(dtype)
        stored = self._tensors[name]
        if stored.file not in self._mapped:
            self._mapped[stored.file] = MappedFile(stored.file)
        as_stored: torch.dtype = getattr(torch, _DTYPES[stored.dtype])
        return self._mapped[stored.file].tensor(stored.offset, stored.num_bytes, as_stored, stored.shape)

    def read_float(self, name: str) -> "torch.Tensor":
        stored = self._tensors[name]
        if stored.dtype not in _FLOATS:
            raise BadCheckpoint(
                f"{stored.file}: {name} is stored as {stored.dtype}; {', '.join(_FLOATS)} are read. "
                "It is quantised in a way that its config.json does not tell"
            )
        return self.read(name)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file. Raises BadCheckpoint naming the file and what is wrong with it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if prefix.startswith(b"version "):
            raise BadCheckpoint(f"{path} is a Git LFS pointer; fetch the weights with  git lfs pull")
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise _damaged(path, f"has {size:,} bytes and claims a header of {length:,}")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise _damaged(path, f"has a header that is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "has a header that is no JSON object")
    entries = cast("dict[str, Any]", header)
    entries.pop("__metadata__", None)
    tensors = {name: _entry(path, name, entry, 8 + length) for name, entry in entries.items()}
    _check_filled(path, tensors, 8 + length, size)
    return tensors


def _entry(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    """One entry of the header, its size checked against its shape."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if dtype not in _DTYPES or any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _damaged(
            path, f"describes {name!r:.80} as {entry!r:.200}; known dtypes: {', '.join(_DTYPES)}"
        ) from None
    expected = math.prod(shape) * _ITEM_BYTES.get(dtype, 1)
    if end - begin != expected:
        raise _damaged(path, f"gives {name!r:.80} {end - begin:,} bytes; {dtype} {shape} needs {expected:,}")
    return StoredTensor(path, dtype, shape, start + begin, expected)


def _check_filled(path: Path, tensors: Mapping[str, StoredTensor], start: int, size: int) -> None:
    end = start
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if stored.offset != end:
            raise _damaged(path, f"puts {name!r:.80} at byte {stored.offset:,}, where byte {end:,} is next")
        end += stored.num_bytes
    if end != size:
        raise _damaged(path, f"has {size:,} bytes and its tensors end at byte {end:,}")


def _modern(name: str) -> str:
    """Norms of the first BERTs have a gamma and a beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _indexed(path: Path) -> dict[str, StoredTensor]:
    """The tensors that the index lists, each from the shard it names."""
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise BadCheckpoint(f"{path / INDEX} has no weight_map")
    listed = cast("dict[str, Any]", weight_map)
    for shard in set(map(str, listed.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise BadCheckpoint(
                f"{path / INDEX} names the shard {shard!r:.80}; expected a *.safetensors beside it"
            )
    missing = sorted({shard for shard in listed.values() if not (path / shard).is_file()})
    if missing:
        raise BadCheckpoint(f"{path} lacks {len(missing)} shards of its index: {', '.join(missing[:20])}")
    headers = {shard: read_header(path / shard) for shard in sorted(set(listed.values()))}
    absent = [name for name, shard in listed.items() if name not in headers[shard]]
    if absent:
        raise BadCheckpoint(
            f"{path / INDEX} names {len(absent)} weights that their shard lacks: {absent[:20]}"
        )
    return {name: headers[shard][name] for name, shard in listed.items()}


def _gathered(path: Path) -> dict[str, StoredTensor]:
    """model.safetensors, or without it the tensors of every file there is."""
    single = path / "model.safetensors"
    tensors: dict[str, StoredTensor] = {}
    for file in [single] if single.is_file() else sorted(path.glob("*.safetensors")):
        for name, stored in read_header(file).items():
            if name in tensors:
                raise BadCheckpoint(f"{path}: {name} is in {tensors[name].file.name} and in {file.name}")
            tensors[name] = stored
    return tensors


def _damaged(path: Path, fact: str) -> BadCheckpoint:
    return BadCheckpoint(f"{path} {fact}. It is truncated or damaged: download it again")
