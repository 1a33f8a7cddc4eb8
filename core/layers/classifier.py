"""From what a text was pooled to, to a number for each label."""

from collections.abc import Callable

from torch import Tensor

from core.contracts.model import Parts, Weights
from core.layers.norm import make_norm
from core.layers.settings import ClassifierSettings


def make_classifier(
    weights: Weights, parts: Parts, hidden: int, labels: int, settings: ClassifierSettings
) -> Callable[[Tensor], Tensor]:
    """A function x [S, H] -> [S, labels]."""
    kernels = parts.kernels

    def linear(name: str, outputs: int, biased: bool) -> Callable[[Tensor], Tensor]:
        weight = weights.take_linear([f"{name}.weight"], [outputs], hidden)
        return kernels.linear(weight, weights.take(f"{name}.bias", outputs) if biased else None)

    leave = linear(settings.output, labels, settings.output_bias)
    if settings.dense is None:
        return leave
    enter = linear(settings.dense, hidden, settings.dense_bias)
    norm = make_norm(weights, kernels, settings.norm)
    return lambda x: leave(norm(kernels.activation(enter(x), settings.activation)))
