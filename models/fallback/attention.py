"""The function that the layers of a transformers model call for attention, and what answers it.

transformers looks it up by name, and passes the layer that calls. What answers is attached to that layer: there may be
several models in a process, and nothing here is common to them.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from core.contracts.attention import Attention
from core.contracts.model import StepInputs
from core.errors import ContractViolation


class Answer(Protocol):
    """Attends, for a layer of the model."""

    def __call__(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """query [1, Hq, N, D], key [1, Hkv, N, D], value [1, Hkv, N, Dv], after rotary -> [1, N, Hq, Dv], contiguous.

        options  everything else that the layer's code passes: scaling, sliding_window, softcap, a mask, …
        """
        ...


def attach(model: nn.Module, answer: Answer) -> None:
    """Have every layer of the model answered by this."""
    for module in model.modules():
        module.core_attention = answer  # type: ignore[assignment]


def _attention(
    layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
) -> tuple[Tensor, None]:
    answer: Any = layer.core_attention
    return answer(layer, query, key, value, {"attention_mask": attention_mask, **options}), None


# Under the second name, masks are made as well, so that a pass can be watched that asks for them.
NAME, WATCHED = "core_paged", "core_watched"
for _name in (NAME, WATCHED):
    AttentionInterface.register(_name, _attention)


class Unmixed:
    """Lets a token see itself only: its result is made of its own query, key and value, and so of its position."""

    def __call__(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> Tensor:
        shared = value * (1 + key.mean(dim=-1, keepdim=True))
        result = shared.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        return (result * (1 + query.mean(dim=-1, keepdim=True))).transpose(1, 2).contiguous()


class Paged:
    """The platform's attention over the cache. The calls of a step come in the order in which they were traced.

    attention  per call
    """

    def __init__(self, attention: Sequence[Attention]) -> None:
        self._attention = tuple(attention)
        self._inputs: StepInputs | None = None
        self._calls = 0

    def begin(self, inputs: StepInputs) -> None:
        """A step begins; what it is made of is held until `end`."""
        self._inputs, self._calls = inputs, 0

    def end(self) -> None:
        """Raises ContractViolation when the model's code has not called once for each layer."""
        self._inputs = None
        if self._calls != len(self._attention):
            raise ContractViolation(
                f"the model's code called attention {self._calls} times in a step; {len(self._attention)} were traced"
            )

    def __call__(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> Tensor:
        assert self._inputs is not None, "attention is called within a step"
        call, self._calls = self._calls, self._calls + 1
        attention, cache, plan = self._attention[call], self._inputs.caches[call], self._inputs.plans[call]
        dim, value_dim = attention.spec.head_dim, value.shape[-1]
        attention.write(_tokens(key, dim), _tokens(value, dim), cache, plan)
        result = attention.attend(_tokens(query, dim), cache, plan)  # [N, Hq, D]
        return result[..., :value_dim].contiguous().unsqueeze(0)


def _tokens(x: Tensor, dim: int) -> Tensor:
    """[1, H, N, d] -> [N, H, dim], zeros behind each head where it is narrower."""
    return F.pad(x[0].transpose(0, 1), (0, dim - x.shape[-1])).contiguous()
