"""The GGUF container: metadata and the table of tensors.

Knows the file format and no model. Every count, length and offset is checked against the size of the file
before it is used, so that a truncated or lying file costs one error and never memory.
Source: the GGUF specification in the ggml repository, versions 2 and 3.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from core.contracts import quantization
from core.errors import BadCheckpoint

F32, F16, Q4_0, Q4_1, Q8_0, F64, BF16 = 0, 1, 2, 3, 8, 28, 30

DECLARED = {Q4_0: quantization.Q4_0, Q4_1: quantization.Q4_1, Q8_0: quantization.Q8_0}
"""Tensor types that are declared formats of weights."""

_PLAIN_BLOCKS = {F64: (1, 8), F32: (1, 4), F16: (1, 2), BF16: (1, 2)}
_COMMON_BLOCKS = _PLAIN_BLOCKS | {Q4_0: (32, 18), Q4_1: (32, 20), Q8_0: (32, 34)}
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {kind: struct.Struct("<" + code) for kind, code in _CODES.items()}
_STRING, _ARRAY = 8, 9
_UINT32, _UINT64 = _SCALARS[4], _SCALARS[10]
_MAX_DIMENSIONS = 4
_MAX_NESTING = 4
_SMALLEST_VALUE = 13
_SMALLEST_TENSOR = 24


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table: `shape` in torch's order, `offset` from the start of the file."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file whose header is sound: every tensor lies inside the file and overlaps no other."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read metadata and tensor table. Raises BadCheckpoint naming the file and what is wrong with it."""
    with _open(path) as mapped:
        header = _Header(mapped, path)
        tensor_count, metadata = header.metadata()
        return GgufFile(path=path, metadata=metadata, tensors=header.tensors(tensor_count, metadata))


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """The metadata alone. Raises BadCheckpoint naming the file and what is wrong with it."""
    with _open(path) as mapped:
        return _Header(mapped, path).metadata()[1]


def block_layout(kind: int) -> tuple[int, int]:
    """(elements, bytes) of one block of a tensor type. Raises KeyError for a type that nobody here knows."""
    if kind in _COMMON_BLOCKS:
        return _COMMON_BLOCKS[kind]
    from gguf.constants import GGML_QUANT_SIZES

    return {int(known): sizes for known, sizes in GGML_QUANT_SIZES.items()}[kind]


def _open(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < 24:
            raise BadCheckpoint(f"{path} has {size} bytes, too few for a GGUF file; download it again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _Header:
    """Reads forward through the header; `position` is always within the file."""

    def __init__(self, mapped: mmap.mmap, path: Path) -> None:
        self.bytes = mapped
        self.path = path
        self.size = len(mapped)
        self.position = 0

    def metadata(self) -> tuple[int, dict[str, Any]]:
        """The number of tensors, and every key with its value as plain Python."""
        if self.take(4) != b"GGUF":
            self.fail(f"is not a GGUF file: it begins with {self.bytes[:4]!r}, not with b'GGUF'")
        version = self.number(_UINT32)
        if version not in (2, 3):
            order = "; its byte order looks big-endian" if version % 2**16 == 0 else ""
            self.fail(f"is GGUF version {version}{order}; versions 2 and 3, little-endian, are read")
        tensor_count, value_count = self.number(_UINT64), self.number(_UINT64)
        self.check_room("tensors", tensor_count, _SMALLEST_TENSOR)
        self.check_room("metadata values", value_count, _SMALLEST_VALUE)
        metadata: dict[str, Any] = {}
        for _ in range(value_count):
            key = self.string()
            if key in metadata:
                self.fail(f"has the metadata key {key!r:.80} twice")
            metadata[key] = self.value(self.number(_UINT32))
        return tensor_count, metadata

    def tensors(self, count: int, metadata: dict[str, Any]) -> dict[str, GgufTensor]:
        """The tensor table, with offsets resolved and checked."""
        rows = [self.tensor() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self.fail(f"has general.alignment {alignment!r:.40}; a power of two is expected")
        start = -(-self.position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        end, previous = start, "the header"
        for name, kind, shape, offset, num_bytes in sorted(rows, key=lambda row: row[3]):
            if name in tensors:
                self.fail(f"has the tensor {name!r:.80} twice")
            if offset % alignment:
                self.fail(f"puts {name!r:.80} at offset {offset:,}, which is no multiple of {alignment}")
            if start + offset < end:
                self.fail(f"lets {name!r:.80} overlap {previous!r:.80}")
            end, previous = start + offset + num_bytes, name
            if end > self.size:
                self.fail(f"has {self.size:,} bytes, and {name!r:.80} would end at byte {end:,}")
            tensors[name] = GgufTensor(name, kind, shape, start + offset, num_bytes)
        return tensors

    def tensor(self) -> tuple[str, int, tuple[int, ...], int, int]:
        name = self.string()
        num_dimensions = self.number(_UINT32)
        if num_dimensions > _MAX_DIMENSIONS:
            self.fail(f"gives {name!r:.80} {num_dimensions} dimensions; at most {_MAX_DIMENSIONS} exist")
        shape = tuple(self.number(_UINT64) for _ in range(num_dimensions))[::-1]
        kind, offset = self.number(_UINT32), self.number(_UINT64)
        try:
            per_block, block_bytes = block_layout(kind)
        except KeyError:
            self.fail(f"stores {name!r:.80} as type {kind}, which the gguf package does not know")
        elements = 1
        for length in shape:
            elements *= length
        if elements == 0 or (shape[-1] if shape else 1) % per_block:
            self.fail(f"gives {name!r:.80} the shape {shape}, which blocks of {per_block} cannot fill")
        return name, kind, shape, offset, elements // per_block * block_bytes

    def value(self, kind: int, nesting: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or nesting == _MAX_NESTING:
            self.fail(f"has a value of type {kind}, nested {nesting} deep, at byte {self.position:,}")
        item_kind, count = self.number(_UINT32), self.number(_UINT64)
        if item_kind in _SCALARS:
            item = _SCALARS[item_kind]
            self.check_room("array items", count, item.size)
            return list(struct.unpack(f"<{count}{item.format[-1]}", self.take(count * item.size)))
        self.check_room("array items", count, 8)
        if item_kind == _STRING:
            return self.strings(count)
        return [self.value(item_kind, nesting + 1) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """As `count` calls of string(), flat, because vocabularies have 10^5 entries."""
        found: list[str] = []
        data, size, position, length_at = self.bytes, self.size, self.position, _UINT64.unpack_from
        try:
            for _ in range(count):
                (length,) = length_at(data, position)
                position += 8
                if length > size - position:
                    self.fail(f"ends inside a text of {length:,} bytes at byte {position:,}")
                found.append(str(data[position : position + length], "utf-8"))
                position += length
        except (struct.error, UnicodeDecodeError) as error:
            self.fail(f"has a damaged text at byte {position:,} ({error})")
        self.position = position
        return found

    def string(self) -> str:
        return self.strings(1)[0]

    def number(self, kind: struct.Struct) -> Any:
        return kind.unpack(self.take(kind.size))[0]

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            self.fail(f"ends at byte {self.size:,}, inside its header")
        self.position += count
        return self.bytes[self.position - count : self.position]

    def check_room(self, what: str, count: int, smallest: int) -> None:
        if count > (self.size - self.position) // smallest:
            self.fail(f"claims {count:,} {what}, more than its {self.size:,} bytes can hold")

    def fail(self, fact: str) -> NoReturn:
        raise BadCheckpoint(f"{self.path} {fact}. It is truncated or damaged: download it again")
