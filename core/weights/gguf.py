"""Checkpoints of one GGUF file, under the names, shapes and config of a safetensors folder.

An architecture's `GgufMapping` says how GGUF spells it; this module applies it. Quantised blocks are unpacked
when a weight is read, or handed out as they are.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.contracts.model import Architecture, GgufMapping
from core.contracts.quantization import QuantizedWeight, WeightFormat
from core.errors import BadCheckpoint, UnsupportedArchitecture
from core.weights.checkpoint import Checkpoint
from core.weights.gguf_file import DECLARED, F16, F32, GgufFile, GgufTensor, read_gguf
from core.weights.mapped import MappedFile

if TYPE_CHECKING:
    import torch

_HEAD = "output.weight"
_VOCABULARY = ("tokens", "merges", "scores", "token_type")
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


class GgufCheckpoint(Checkpoint):
    """One .gguf file."""

    def __init__(self, path: Path, architectures: Mapping[str, Architecture]) -> None:
        file = read_gguf(path)
        self.path = path
        if file.metadata.get("split.count", 1) not in (0, 1):
            raise BadCheckpoint(
                f"{path} is one of {file.metadata['split.count']} parts of a model; merge them first with  "
                "llama-gguf-split --merge FIRST_PART MERGED.gguf"
            )
        architecture, self._mapping = _find_architecture(path, file.metadata, architectures)
        self._mapped = MappedFile(path)
        self._tensors = _renamed(file.tensors, self._mapping)
        self.config = self._config(file, architecture)
        self.generation_config = _generation_config(file.metadata)

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str, dtype: "torch.dtype | None" = None) -> "torch.Tensor":
        import torch

        from core.weights.dequantize import PLAIN, dequantize

        stored = self._tensors[name]
        if stored.kind in PLAIN:
            tensor = self._mapped.tensor(stored.offset, stored.num_bytes, PLAIN[stored.kind], stored.shape)
            tensor = tensor if dtype is None else tensor.to(dtype)
        else:
            raw = self._mapped.tensor(stored.offset, stored.num_bytes, torch.uint8, (stored.num_bytes,))
            tensor = dequantize(raw, stored.kind, stored.shape, dtype or torch.float32)
        return self._ordered(name, tensor)

    def format(self, name: str) -> WeightFormat | None:
        stored = self._tensors[name]
        return DECLARED.get(stored.kind) if len(stored.shape) == 2 else None

    def blocks(self, name: str) -> QuantizedWeight:
        import torch

        stored, format = self._tensors[name], self.format(name)
        if format is None:
            return super().blocks(name)
        outputs, inputs = stored.shape
        rows = (outputs, format.bytes_per_row(inputs))
        data = self._mapped.tensor(stored.offset, stored.num_bytes, torch.uint8, rows)
        return QuantizedWeight(format=format, data=self._ordered(name, data), shape=(outputs, inputs))

    def _ordered(self, name: str, tensor: "torch.Tensor") -> "torch.Tensor":
        """Rows as a safetensors folder has them: from (head, pair, half) back to (head, half, pair)."""
        key = self._mapping.permuted.get(_LAYER.sub("{i}", name, count=1))
        if key is None:
            return tensor
        heads = self.config.get(key)
        if not isinstance(heads, int) or heads < 1 or tensor.shape[0] % (2 * heads):
            raise BadCheckpoint(f"{self.path}: {name} has {tensor.shape[0]} rows; {key} is {heads!r}")
        pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, -1)
        return pairs.transpose(1, 2).reshape(tensor.shape)

    def _config(self, file: GgufFile, architecture: Architecture) -> dict[str, Any]:
        """The mapping's config, completed by what only the tensors tell."""
        metadata = file.metadata
        told = {key: value for key, value in metadata.items() if not _is_vocabulary(key)}
        told["tensors"] = {name: tensor.shape for name, tensor in file.tensors.items()}
        told |= self._values()
        try:
            config = dict(self._mapping.config(told))
        except (KeyError, TypeError) as error:
            raise BadCheckpoint(f"{self.path}: its {self._mapping.name} metadata lacks {error}") from error
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{self.path}: {error}") from error
        config.setdefault("architectures", [architecture.name])
        config["dtype"] = _dtype(self._tensors.values())
        if "vocab_size" not in config and "tokenizer.ggml.tokens" in metadata:
            config["vocab_size"] = len(metadata["tokenizer.ggml.tokens"])
        if config.get("tie_word_embeddings") is None:
            config["tie_word_embeddings"] = _HEAD not in file.tensors
        return config

    def _values(self) -> dict[str, Any]:
        """What the tensors hold that are a part of the config; they are no weights any more."""
        numbers: dict[str, Any] = {}
        for name in self._mapping.values:
            if name in self._tensors:
                held: Any = self.read(name)
                numbers[name] = held.tolist()
                del self._tensors[name]
        return numbers


def _find_architecture(
    path: Path, metadata: Mapping[str, Any], architectures: Mapping[str, Architecture]
) -> tuple[Architecture, GgufMapping]:
    name = metadata.get("general.architecture")
    known = {a.gguf.name: (a, a.gguf) for a in reversed([*architectures.values()]) if a.gguf is not None}
    if not isinstance(name, str):
        raise BadCheckpoint(f"{path} does not say what model it is: general.architecture is {name!r:.80}")
    if name not in known:
        raise UnsupportedArchitecture(
            f"{path} is a GGUF of architecture {name!r:.80}, which no plugin brings; "
            f"supported: {', '.join(sorted(known))}"
        )
    return known[name]


def _renamed(tensors: Mapping[str, GgufTensor], mapping: GgufMapping) -> dict[str, GgufTensor]:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; unmapped names stay as they are."""
    ours = {theirs: ours for ours, theirs in mapping.weights.items()}
    renamed: dict[str, GgufTensor] = {}
    for name, tensor in tensors.items():
        layer = _LAYER.search(name)
        template = name if layer is None else name[: layer.start()] + "{i}" + name[layer.end() :]
        renamed |= _experts(ours.get(template, name).replace("{i}", layer[0] if layer else ""), tensor)
    return renamed


def _experts(name: str, tensor: GgufTensor) -> dict[str, GgufTensor]:
    """A tensor by its name; one of several experts' weights as each of them by its own."""
    if "{e}" not in name or len(tensor.shape) != 3:
        return {name: tensor}
    count, *shape = tensor.shape
    size = tensor.num_bytes // count
    return {
        name.replace("{e}", str(e)): replace(
            tensor, shape=tuple(shape), offset=tensor.offset + e * size, num_bytes=size
        )
        for e in range(count)
    }


def _dtype(tensors: Iterable[GgufTensor]) -> str:
    """What the weights are meant to be used in: the matrices' own dtype, bfloat16 when they are quantised."""
    kinds = {tensor.kind for tensor in tensors if len(tensor.shape) > 1}
    return {frozenset({F32}): "float32", frozenset({F16}): "float16"}.get(frozenset(kinds), "bfloat16")


def _generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens that begin and end a text, under the names of generation_config.json."""
    ids = {key: metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "eot", "eom")}
    known = {key: value for key, value in ids.items() if isinstance(value, int)}
    ends = list(dict.fromkeys(known[key] for key in ("eos", "eot", "eom") if key in known))
    config: dict[str, Any] = {"bos_token_id": known["bos"]} if "bos" in known else {}
    return config | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})


def _is_vocabulary(key: str) -> bool:
    return key.startswith("tokenizer.ggml.") and key.rpartition(".")[2] in _VOCABULARY
