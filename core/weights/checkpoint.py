"""A model's files, opened and checked: config, names, shapes, tensors.

Decides what kind of checkpoint a path is and refuses the kinds that can run code. Knows no model: which
weights are wanted is said by the architecture that takes them.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from core.contracts.model import Architecture
from core.contracts.packing import Quantization
from core.contracts.quantization import QuantizedWeight, WeightFormat
from core.errors import BadCheckpoint, ConfigError, ModelError, ModelNotFound, UnsafeCheckpoint

if TYPE_CHECKING:
    import torch

_ADAPTER = "adapter_config.json"
_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_UNUSED_SUFFIXES = (
    ".attn.bias",  # masks that older releases of transformers saved
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
    ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached",
    "embeddings.position_ids",
)


class Checkpoint(ABC):
    """What was found at a path. Names and config are those of a safetensors folder, whatever the format.

    config             as config.json
    generation_config  as generation_config.json; {} when there is none
    quant_method       that a plugin unpacks it by; None: no plugin has to do with it
    """

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    quant_method: str | None = None

    @abstractmethod
    def names(self) -> frozenset[str]:
        """Every weight that is there."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """A weight's shape, known without reading it."""

    def has(self, name: str) -> bool:
        """Whether this weight is there."""
        return name in self.names()

    def find(self, name: str, expected: tuple[int, ...]) -> tuple[int, ...] | None:
        """A weight's shape, whatever the model expects it to be; None when it is not there."""
        return self.shape(name) if self.has(name) else None

    @abstractmethod
    def read(self, name: str, dtype: "torch.dtype | None" = None) -> "torch.Tensor":
        """A weight on the CPU, memory-mapped where its format allows; quantised blocks come unpacked.

        dtype  convert to this on the way; None: the dtype it is stored in, float32 for quantised blocks
        Raises BadCheckpoint when `dtype` is given and the weight is not stored as floating point.
        """

    def read_float(self, name: str) -> "torch.Tensor":
        """A weight as `read` gives it without a dtype. Raises BadCheckpoint when it is not floating point."""
        return self.read(name)

    def format(self, name: str) -> WeightFormat | None:
        """The declared format of a weight [out, in]; None when it is a tensor, or in a format of its own."""
        return None

    def formats(self) -> frozenset[str]:
        """The declared formats in which weights are stored here, by name."""
        found = (self.format(name) for name in self.names() if not self.is_optional(name))
        return frozenset(format.name for format in found if format is not None)

    def blocks(self, name: str) -> QuantizedWeight:
        """A weight that has a `format`, as it is stored: memory-mapped, unless its rows are in another order.

        Raises BadCheckpoint for a weight that has none.
        """
        raise BadCheckpoint(f"{self.path}: {name} is not stored in a declared format of quantised weights")

    def packing(self) -> str:
        """How many weights a plugin unpacks, and in which formats: "210 weights, 210 as int4"."""
        return ""

    def is_optional(self, name: str) -> bool:
        """Whether nobody needs to take this weight: tables that are computed, a head that is tied."""
        tied_head = name == "lm_head.weight" and bool(self.config.get("tie_word_embeddings"))
        return tied_head or name == "rope_freqs.weight" or name.endswith(_UNUSED_SUFFIXES)


def open_checkpoint(
    path: Path,
    architectures: Mapping[str, Architecture],
    quantizations: Mapping[str, Quantization] = MappingProxyType({}),
    load_format: str = "auto",
) -> Checkpoint:
    """Open a folder (config.json and *.safetensors, or one .gguf) or a .gguf file.

    architectures, quantizations  what plugins brought, by name
    load_format                   as `EngineConfig` has it

    Raises ModelNotFound when nothing is there, UnsafeCheckpoint for formats that can run code when they are
    read, UnsupportedArchitecture for a GGUF file that no plugin knows, ModelError for a way of quantising that none
    reads, BadCheckpoint for everything damaged.
    """
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist; expected a folder with config.json, or a .gguf file")
    if load_format == "dummy":
        from core.weights.dummy import DummyCheckpoint

        return DummyCheckpoint(path)
    gguf = find_gguf(path)
    if load_format not in ("auto", "safetensors" if gguf is None else "gguf"):
        raise ConfigError(
            f"load_format is {load_format} and {path} holds {'safetensors' if gguf is None else 'GGUF'}",
            setting="load_format",
        )
    if gguf is not None:
        from core.weights.gguf import GgufCheckpoint

        return GgufCheckpoint(gguf, architectures)
    return _open_safetensors(path, quantizations)


def _open_safetensors(path: Path, quantizations: Mapping[str, Quantization]) -> Checkpoint:
    if path.is_file():
        raise _refuse_file(path)
    if (path / _ADAPTER).is_file() and all(
        file.stem == "adapter_model" for file in path.glob("*.safetensors")
    ):
        raise _refuse_adapter(path)
    if not any(path.glob("*.safetensors")):
        raise _refuse_folder(path)
    if not (path / "config.json").is_file():
        raise BadCheckpoint(f"{path} has *.safetensors but no config.json, which says what model they are")
    from core.weights.safetensors import SafetensorsCheckpoint

    config = read_json(path / "config.json")
    if not config.get("quantization_config"):
        return SafetensorsCheckpoint(path, config)
    from core.weights.packed import PackedCheckpoint

    quantization = _find_quantization(path, config["quantization_config"], quantizations)
    return PackedCheckpoint(SafetensorsCheckpoint(path, config), quantization)


def find_gguf(path: Path) -> Path | None:
    """The one GGUF file that `path` is, or holds when it holds no safetensors; else None.

    Raises BadCheckpoint when a folder holds several, because one must be chosen.
    """
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    found = sorted(path.glob("*.gguf"))
    if not found or any(path.glob("*.safetensors")):
        return None
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:10])
        raise BadCheckpoint(f"{path} holds {len(found)} GGUF files; name the one to load: {names}")
    return found[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BadCheckpoint naming the file and what is wrong with it."""
    return _read_json(path, dict, "an object")


def read_json_list(path: Path) -> list[Any]:
    """A JSON array. Raises BadCheckpoint naming the file and what is wrong with it."""
    return _read_json(path, list, "an array")


def _read_json(path: Path, kind: type, expected: str) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise BadCheckpoint(f"{path} holds a JSON {type(value).__name__}; {expected} is expected")
    return value


def _find_quantization(path: Path, given: Any, quantizations: Mapping[str, Quantization]) -> Quantization:
    """The plugin's declaration for a quantization_config. Raises ModelError naming those that there are."""
    method = cast("dict[str, Any]", given).get("quant_method") if isinstance(given, dict) else None
    if not isinstance(method, str):
        raise BadCheckpoint(
            f'{path}: quantization_config of config.json is {given!r:.80}; expected "quant_method" in it'
        )
    if method in quantizations:
        return quantizations[method]
    close = get_close_matches(method.lower(), quantizations, n=1)
    hint = f"closest: {close[0]}; " if close else ""
    raise ModelError(
        f"{path} is quantised ({method:.80}), which no plugin reads; {hint}"
        f"read: {', '.join(sorted(quantizations)) or 'none'}. Use the unquantised model, or a GGUF file of it"
    )


def _refuse_file(path: Path) -> ModelError:
    if path.suffix in _PICKLES:
        return _unsafe(path, path.name)
    if path.suffix == ".safetensors":
        return BadCheckpoint(f"{path} is one file of a model; give the folder, with config.json in it")
    return BadCheckpoint(f"{path} is no model; expected a folder with config.json, or a .gguf file")


def _refuse_folder(path: Path) -> ModelError:
    files = sorted(file.name for file in path.iterdir())
    pickles = [name for name in files if Path(name).suffix in _PICKLES]
    if pickles:
        return _unsafe(path, ", ".join(pickles[:5]))
    if "config.json" in files:
        return BadCheckpoint(f"{path} has config.json but no weights; expected *.safetensors")
    listing = ", ".join(files[:10]) or "nothing"
    return ModelNotFound(
        f"{path} holds no model: looked for config.json with *.safetensors, or one *.gguf; found {listing}"
    )


def _refuse_adapter(path: Path) -> ModelError:
    base = read_json(path / _ADAPTER).get("base_model_name_or_path")
    return ModelError(
        f"{path} is an adapter, which changes a model and is none; give the model that it was made for ({base})"
    )


def _unsafe(path: Path, names: str) -> UnsafeCheckpoint:
    return UnsafeCheckpoint(
        f"{path}: {names} may be pickle, a format that can run code when it is read, and is never opened. "
        "Convert it to safetensors (save_pretrained of transformers does) or take a revision that has them"
    )
