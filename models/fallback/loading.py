"""A model's weights, put together by transformers, which knows their names and which are fused; and its linear layers,
handed to the platform.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from core.contracts.model import Parts, Weights
from core.errors import BadCheckpoint
from models.fallback.attention import NAME
from models.fallback.tracing import Traced


def load(model_class: type[Any], config: Any, traced: Traced, weights: Weights, parts: Parts) -> Any:
    """The model on its device, in its dtype, ready to be evaluated.

    Raises BadCheckpoint with everything missing, misshaped and left over.
    """
    with _quietly():
        try:
            model, found = model_class.from_pretrained(
                None,
                config=config,
                state_dict=weights.take_all(traced.weights),
                dtype=getattr(torch, parts.dtype),
                attn_implementation=NAME,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except RuntimeError as error:
            raise BadCheckpoint(f"transformers cannot put the weights together: {error}") from error
    weights.account(
        missing=sorted(found["missing_keys"]),
        misshaped=[
            f"{name} is {list(held)}, expected {list(expected)}"
            for name, held, expected in sorted(found["mismatched_keys"])
        ],
        left_over=sorted(found["unexpected_keys"]),
    )
    model = model.to(parts.torch_device)
    _hand_over(model, weights, parts, traced.own_linear)
    return model


def _hand_over(model: nn.Module, weights: Weights, parts: Parts, kept: Collection[str]) -> None:
    """Replace every linear layer by one that the platform computes, whose weight is held in the platform's form only.

    kept  names of those that stay
    """
    dtype, staying = getattr(torch, parts.dtype), {model.get_submodule(path) for path in kept}
    made: dict[nn.Module, PlatformLinear] = {}
    for path, linear in list(model.named_modules(remove_duplicate=False)):
        if type(linear) is not nn.Linear or linear in staying:
            continue
        if linear not in made and linear.weight.dtype == dtype:
            apply = parts.kernels.linear(weights.as_linear(linear.weight.detach()), linear.bias)
            made[linear] = PlatformLinear(linear, apply)
            linear.register_parameter("weight", None)  # its memory goes now
        if linear in made:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, made[linear])


class PlatformLinear(nn.Module):
    """x [..., in] -> [..., out], by the platform."""

    def __init__(self, linear: nn.Linear, apply: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._apply_rows = apply

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_rows(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)


@contextmanager
def _quietly() -> Iterator[None]:
    """transformers shows no progress and logs no report: what is wrong becomes one error."""
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
