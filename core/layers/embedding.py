"""Token embeddings, and the output head that may share their weight."""

from torch import Tensor

from core.contracts.model import Parts, Weights


class Embedding:
    """token ids [N] -> [N, H]."""

    def __init__(self, weights: Weights, parts: Parts, name: str, vocab_size: int, hidden: int) -> None:
        self.weight = weights.take(f"{name}.weight", vocab_size, hidden)
        self._kernels = parts.kernels

    def __call__(self, token_ids: Tensor) -> Tensor:
        return self._kernels.embedding(token_ids, self.weight)
