"""A transformers model in a step: its base model gives hidden states, the rest of its code turns them into logits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from core.contracts.model import StepInputs
from core.errors import UnsupportedArchitecture
from models.fallback.attention import Paged, Unmixed, attach

_TRIAL_ORDER = (3, 0, 4, 1, 2)


def hidden_states(base: nn.Module, token_ids: Tensor, positions: Tensor) -> Tensor:
    """token_ids, positions [N] -> [N, H], after the last norm."""
    return base(input_ids=token_ids[None], position_ids=positions[None], use_cache=False).last_hidden_state[0]


@dataclass
class _HiddenStates(ModelOutput):
    """What a base model returns, whatever its kind. Of the rest there is nothing."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        return None


def unpadded(model: Any) -> None:
    """No token is padding: the code need not look for it in every step, to warn of a mask that is missing."""
    vars(model.config)["pad_token_id"] = None  # some configs take a number only


class _Given(nn.Module):
    """Stands in for a base model: what it is given as embeddings are the hidden states."""

    def forward(self, *absent: Any, inputs_embeds: Tensor, **rest: Any) -> _HiddenStates:
        return _HiddenStates(last_hidden_state=inputs_embeds)


class HeadOnly:
    """What a model's code does with hidden states: the head, and scales and caps of logits where it has them."""

    def __init__(self, model: Any) -> None:
        setattr(model, model.base_model_prefix, _Given())
        self._model = model

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, H] -> [N, V]"""
        return self._model(inputs_embeds=hidden[None], use_cache=False).logits[0]


class TransformersModel:
    """Implements `core.contracts.model.Model`. Takes the model apart, which must be in evaluation mode."""

    def __init__(self, model: Any, paged: Paged, first_position: int) -> None:
        self._base: nn.Module = model.base_model
        self._first_position = first_position
        self._paged = paged
        unpadded(model)
        self._try_out(model)
        attach(self._base, paged)

    def forward(self, inputs: StepInputs) -> Tensor:
        self._paged.begin(inputs)
        hidden = self._hidden(inputs.token_ids, inputs.positions)  # [N, H]
        self._paged.end()
        return hidden[inputs.rows]

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head.logits(hidden)

    def _hidden(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        return hidden_states(self._base, token_ids, positions + self._first_position)

    def _try_out(self, model: Any) -> None:
        """Whether tokens meet in attention only, and the code goes by the positions that it is given.

        Several sequences share a step, in pieces, so that a convolution or a count of its own would be wrong in
        silence. With attention that mixes nothing, a token's result is its own wherever it stands.
        Raises UnsupportedArchitecture.
        """
        attach(model, Unmixed())
        device = next(model.parameters()).device
        ids = torch.arange(len(_TRIAL_ORDER), device=device) + 3
        whole = model(input_ids=ids[None], use_cache=False).logits[0]
        self._head = HeadOnly(model)
        order = torch.tensor(_TRIAL_ORDER, device=device)
        for tokens, what in (
            (order.sort().values, "counts positions in a way of its own"),
            (order, "mixes tokens elsewhere than in attention"),
        ):
            apart = self.logits(self._hidden(ids[tokens], tokens))
            if not _close(apart, whole[tokens]):
                raise UnsupportedArchitecture(f"{type(model).__name__}: its code {what}")


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Whether they are the same but for rounding, as a whole."""
    most = 1e-3 if actual.dtype == torch.float32 else 0.05
    return bool((actual.float() - expected.float()).norm() <= most * expected.float().norm())
