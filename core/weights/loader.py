"""The weights that a model builds itself from, one at a time, converted and moved on the way.

Everything wrong is collected and told at once: a checkpoint that lacks twenty weights costs one error.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from core.errors import BadCheckpoint
from core.weights.checkpoint import Checkpoint

_LISTED = 20


class CheckpointWeights:
    """Implements `core.contracts.model.Weights` for a checkpoint. Holds no weight itself.

    dtype         the model's, by torch name
    torch_device  where the weights go
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str, torch_device: str) -> None:
        self._checkpoint = checkpoint
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._device = torch.device(torch_device)
        self._names = checkpoint.names()
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._misshaped: list[str] = []

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this weight."""
        return name in self._names

    def take(self, name: str, *shape: int, dtype: str | None = None) -> Tensor:
        """The weight of this name, on the device, in the model's dtype unless another is named.

        One that is missing or misshaped is noted for `finish`, and stands in as undefined memory.
        """
        wanted = self._dtype if dtype is None else getattr(torch, dtype)
        if name not in self._names:
            self._missing.append(name)
            return torch.empty(shape, dtype=wanted, device=self._device)
        self._taken.add(name)
        found = self._checkpoint.shape(name)
        if found != shape:
            self._misshaped.append(f"{name} is {list(found)}, expected {list(shape)}")
            return torch.empty(shape, dtype=wanted, device=self._device)
        return self._checkpoint.read(name, wanted).to(self._device)

    def finish(self) -> None:
        """Raises BadCheckpoint with everything missing, misshaped and left over, if anything is."""
        left = self._names - self._taken
        left_over = sorted(name for name in left if not self._checkpoint.is_optional(name))
        problems = [
            *_listing("missing", self._missing),
            *_listing("misshaped", self._misshaped),
            *_listing("left over", left_over),
        ]
        if problems:
            raise BadCheckpoint(
                "\n".join(
                    [f"{self._checkpoint.path} does not hold the weights its config describes:", *problems]
                )
            )


def _listing(kind: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return [f"  {len(items)} {kind}: {', '.join(items[:_LISTED])}{more}"]
