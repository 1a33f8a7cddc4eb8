"""Hidden states into what a text is pooled to: a vector, or a number for each label.

What a text gets depends on its own tokens and parameters alone, never on its neighbours.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from core.contracts.model import Pooling
from core.contracts.runner import ScheduledSequence, SequenceResult
from core.execution.sampler import NOT_FINITE
from core.pooling_params import PoolingParams
from core.weights.checkpoint import open_checkpoint
from core.weights.loader import CheckpointWeights
from core.weights.sentence import dense_settings

Layer = Callable[[Tensor], Tensor]


class Pooler:
    """One model's way from hidden states to its answer.

    folder  of the checkpoint, where linear layers lie that are not the model's own
    head    `Model.logits`
    Raises BadCheckpoint when such a layer is not what its config says.
    """

    def __init__(self, pooling: Pooling, folder: Path, device: str, head: Layer) -> None:
        self._pooling = pooling
        self._head = head
        self._dense = [_dense(folder / name, device) for name in pooling.dense]

    def __call__(
        self, hidden: Tensor, rows: Sequence[ScheduledSequence], results: Sequence[SequenceResult]
    ) -> None:
        """Give each result the numbers of its text, or an error where some are not finite.

        hidden  [num_rows, H]: of each of `rows`, the one token or all the tokens that are pooled, in order
        """
        if not rows:
            return
        pooled = self._pool(hidden, rows)
        given = self._head(pooled.to(hidden.dtype)).float() if self._pooling.labels else self._project(pooled)
        for row, result, numbers in zip(rows, results, given.cpu(), strict=True):
            assert row.pooling is not None
            if bool(torch.isfinite(numbers).all()):
                result.pooled = self._finish(numbers, row.pooling).numpy().astype("<f4").tobytes()
            else:
                result.error = NOT_FINITE

    def _pool(self, hidden: Tensor, rows: Sequence[ScheduledSequence]) -> Tensor:
        """[len(rows), H], float32."""
        if self._pooling.tokens != "mean":
            return hidden.float()
        ends = [0]
        for row in rows:
            ends.append(ends[-1] + row.num_tokens - row.skip)
        return torch.stack([hidden[start:end].float().mean(dim=0) for start, end in pairwise(ends)])

    def _project(self, pooled: Tensor) -> Tensor:
        for layer in self._dense:
            pooled = layer(pooled)
        return pooled

    def _finish(self, numbers: Tensor, params: PoolingParams) -> Tensor:
        """[size], float32 -> what is sent."""
        pooling = self._pooling
        if pooling.labels is not None:
            return numbers if params.use_activation is False else _ACTIVATIONS[pooling.activation](numbers)
        kept = numbers[: params.dimensions]
        scaled = pooling.normalize if params.normalize is None else params.normalize
        return torch.nn.functional.normalize(kept, dim=0) if scaled else kept


_ACTIVATIONS: dict[str, Layer] = {
    "none": lambda numbers: numbers,
    "sigmoid": torch.sigmoid,
    "softmax": lambda numbers: torch.softmax(numbers, dim=-1),
}


def _dense(folder: Path, device: str) -> Layer:
    """x [S, inputs], float32 -> [S, outputs]."""
    settings = dense_settings(folder)
    weights = CheckpointWeights(open_checkpoint(folder, {}), "float32", device)
    weight = weights.take("linear.weight", settings.outputs, settings.inputs)
    bias = weights.take("linear.bias", settings.outputs) if settings.bias else None
    weights.finish()
    bend = torch.tanh if settings.activation == "tanh" else _ACTIVATIONS["none"]
    return lambda x: bend(torch.nn.functional.linear(x, weight, bias))
