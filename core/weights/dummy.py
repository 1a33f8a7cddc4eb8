"""A checkpoint without weights: random numbers of whatever shape is asked for, to measure a model that is not there."""

import zlib
from pathlib import Path
from typing import Any

import torch

from core.errors import ConfigError
from core.weights.checkpoint import Checkpoint, read_json

_SPREAD = 0.02  # of the numbers, from minus to plus: activations of any depth stay finite


class DummyCheckpoint(Checkpoint):
    """A folder's config.json and nothing else of it. A weight is the same whenever it is read."""

    def __init__(self, path: Path) -> None:
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"{path} has no config.json, which is all that load_format=dummy reads", setting="load_format"
            )
        self.path = path
        self.config: dict[str, Any] = read_json(path / "config.json")
        self.config.pop("quantization_config", None)
        self.generation_config: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def names(self) -> frozenset[str]:
        """Those that were asked for until now."""
        return frozenset(self._shapes)

    def find(self, name: str, expected: tuple[int, ...]) -> tuple[int, ...] | None:
        return self._shapes.setdefault(name, expected)

    def has(self, name: str) -> bool:
        return not self.is_optional(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        tensor = torch.empty(self._shapes[name], dtype=dtype or torch.float32)
        return tensor.uniform_(-_SPREAD, _SPREAD, generator=generator)
