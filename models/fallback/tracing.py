"""One pass through a model's own code on tensors without numbers: what it asks of attention, call by call.

Whatever it asks for that paged attention does not do is refused by name, before a weight is read.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionMaskInterface

from core.contracts.attention import AttentionShape
from core.errors import CoreError, UnsupportedArchitecture
from models.fallback.attention import WATCHED, attach
from models.fallback.model import HeadOnly, hidden_states, unpadded

_TOKENS = 3
_MOST_KEYS = 2**20
# What a layer's code passes along that says nothing of attention, or what we know without it.
_UNRELATED = frozenset(
    {"dropout", "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"}
    | {"output_router_logits", "return_dict", "logits_to_keep", "past_key_values"}
)
_HONOURED = frozenset({"scaling", "sliding_window", "softcap", "is_causal"})


def context_of(config: Any) -> int:
    """Longest sequence that a config speaks of; 2048 where it speaks of none."""
    return int(getattr(config, "max_position_embeddings", None) or 2048)


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What a pass showed: a shape per call of attention, in order, and the model's sizes.

    weights         shape of each, by its name
    first_position  what the code calls the position of a sequence's first token
    own_linear      names of linear layers whose weights the code reads itself
    """

    layers: tuple[AttentionShape, ...]
    hidden_size: int
    vocab_size: int
    num_parameters: int
    weights: dict[str, tuple[int, ...]]
    first_position: int
    own_linear: frozenset[str]


def trace(model_class: type[Any], config: Any) -> Traced:
    """Build the model without memory and run three tokens through it.

    Raises UnsupportedArchitecture for what the code asks for and cannot have, or where it cannot be followed.
    """
    recorder = _Recorder()
    try:
        with torch.device("meta"):  # in bfloat16, the one dtype that every operation takes there
            model = model_class._from_config(config, attn_implementation=WATCHED, dtype=torch.bfloat16).eval()
        unpadded(model)
        attach(model, recorder)
        watched = dict(_watched(model))
        with torch.inference_mode(), _NothingIsCounted():
            ids = torch.zeros(_TOKENS, dtype=torch.int64, device="meta")
            hidden = hidden_states(model.base_model, ids, torch.arange(_TOKENS, device="meta"))
            parameters = sum(parameter.numel() for parameter in model.parameters())
            weights = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
            first = _first_position(model)
            logits = HeadOnly(model).logits(hidden)
    except CoreError:
        raise
    except Exception as error:
        raise UnsupportedArchitecture(
            f"its code cannot be followed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    if not recorder.shapes:
        raise UnsupportedArchitecture("its code computes attention itself and never asks for it")
    return Traced(
        layers=tuple(recorder.shapes),
        hidden_size=hidden.shape[-1],
        vocab_size=logits.shape[-1],
        num_parameters=parameters,
        weights=weights,
        first_position=first,
        own_linear=frozenset(name for name, linear in watched.items() if linear.read),
    )


class _WatchedLinear(nn.Linear):
    """Knows whether anybody has read its weight but itself."""

    read = False

    @property
    def weight(self) -> Any:  # type: ignore[override]
        self.read = True
        return self._parameters["weight"]

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self._parameters["weight"], self._parameters["bias"])  # type: ignore[arg-type]


def _watched(model: nn.Module) -> Iterator[tuple[str, _WatchedLinear]]:
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            module.__class__ = _WatchedLinear
            yield name, cast(_WatchedLinear, module)


def _first_position(model: Any) -> int:
    """0, unless the table of learned positions has a row for padding: then positions are counted from behind it."""
    context = getattr(model.config, "max_position_embeddings", None)
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == context)
    return next((table.padding_idx + 1 for table in tables if table.padding_idx is not None), 0)


@dataclass(frozen=True)
class _Mask:
    """Stands in for a mask: a token sees itself and the window - 1 tokens before it, or all; or `wrong`, what else."""

    window: int | None = None
    wrong: str | None = None


def _mask(*, mask_function: Callable[..., Tensor], config: Any, **rest: Any) -> _Mask:
    """Read a mask off the function that defines it: (batch, head, query, key) -> whether the key is seen."""
    last = min(max(context_of(config), _TOKENS), _MOST_KEYS) - 1
    keys, none, widths, unbounded = torch.arange(last + 1), torch.tensor(0), set[int](), 0
    for query in (0, 1, last // 2, last - 1, last):
        seen = mask_function(none, none, torch.tensor(query), keys).expand(last + 1)
        first = int(seen.int().argmax())
        if not torch.equal(seen, (keys >= first) & (keys <= query)):
            return _Mask(wrong="does not let a token see just itself and those before it")
        if first:
            widths.add(query - first + 1)
        else:
            unbounded = query + 1
    if len(widths) > 1 or (widths and unbounded > min(widths)):
        return _Mask(wrong="lets tokens see differently far, as in chunks")
    return _Mask(min(widths, default=None))


AttentionMaskInterface.register(WATCHED, _mask)


class _Recorder:
    def __init__(self) -> None:
        self.shapes: list[AttentionShape] = []

    def __call__(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> Tensor:
        given = {name: value for name, value in options.items() if value is not None and value is not False}
        if isinstance(seen := given.get("attention_mask"), _Mask):
            if seen.wrong is not None:
                raise _cannot(layer, seen.wrong)
            given["sliding_window"] = given.pop("attention_mask").window
        unknown = sorted(given.keys() - _UNRELATED - _HONOURED)
        if unknown:
            raise _cannot(layer, f"asks attention for {', '.join(unknown)}")
        if key.shape[2] != query.shape[2]:
            raise _cannot(layer, "attends to something else than the tokens before it")
        if not options.get("is_causal", getattr(layer, "is_causal", True)):
            raise _cannot(layer, "lets tokens see those that follow")
        self.shapes.append(_shape(layer, query, key, value, given))
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def _shape(
    layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, given: dict[str, Any]
) -> AttentionShape:
    scale = given.get("scaling", query.shape[3] ** -0.5)
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise _cannot(layer, "scales each score by a number of its own")
    return AttentionShape(
        num_heads=query.shape[1],
        num_kv_heads=key.shape[1],
        head_dim=max(query.shape[3], value.shape[3]),
        scale=float(scale),
        sliding_window=given.get("sliding_window"),
        soft_cap=given.get("softcap"),
    )


def _cannot(layer: nn.Module, fact: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(f"its {type(layer).__name__} {fact}")


class _NothingIsCounted(TorchDispatchMode):
    """Answers code that looks at numbers. Experts that look for their tokens find none; of positions that are asked
    whether they follow one another, it is so.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            return torch.empty(0, args[0].dim(), dtype=torch.int64, device="meta")
        if func is torch.ops.aten.is_nonzero.default and args[0].is_meta and args[0].dtype == torch.bool:
            return True
        return func(*args, **(kwargs or {}))
