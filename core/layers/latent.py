"""Latent attention: keys and values of all heads are made of one short vector a token, and that alone is cached.

What makes keys of it is applied to the query instead, and what makes values of it to the result, so that attention has
one head of keys, whose first numbers are the values. Source: DeepSeek-V2, 2024, section 2.1.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.contracts.attention import AttentionShape
from core.contracts.model import LayerShape, Parts, StepInputs, Weights
from core.layers.settings import MixerSettings, NormSettings, RotarySettings

if TYPE_CHECKING:
    from torch import Tensor

    from core.layers.rotary import Rotation


@dataclass(frozen=True, kw_only=True)
class LatentSettings(MixerSettings):
    """Latent attention; the vector's size and the number of heads are those of the layer's `AttentionShape`.

    query        name of the projection of queries, or of what leads down to query_norm and up to them from there
    latent       name of the projection of the vector, and of the part of the keys that is rotated
    latent_norm  of the vector
    expand       name of what makes keys and values of it, head by head: the part that is not rotated, then the value;
                 or of the two apart, [Hq, rank, key_dim] and [Hq, value_dim, rank]
    output       name of the projection of the result
    key_dim      of the part of a head's query and key that is not rotated
    value_dim    of a head's value
    """

    query: tuple[str, ...]
    latent: str
    latent_norm: NormSettings
    expand: tuple[str, ...]
    output: str
    key_dim: int
    value_dim: int
    rotary: RotarySettings
    query_norm: NormSettings | None = None

    def make(
        self, weights: Weights, parts: Parts, index: int, hidden: int, shape: LayerShape
    ) -> "LatentMixer":
        """Takes its weights; returns a function (x [N, H], inputs, rotation, rows) -> what it adds, [R, H]."""
        assert isinstance(shape, AttentionShape)
        return LatentMixer(weights, parts, index, hidden, shape, self)


class LatentMixer:
    """x [N, H] -> what attention adds to the stream, [R, H], of the rows that are asked for."""

    def __init__(
        self,
        weights: Weights,
        parts: Parts,
        index: int,
        hidden: int,
        shape: AttentionShape,
        settings: LatentSettings,
    ) -> None:
        attention, rank, kernels = parts.attention[index], shape.latent, parts.kernels
        assert attention is not None and rank is not None
        self._attention, self._index, self._kernels = attention, index, kernels
        self._heads, self._rank, self._settings = shape.num_heads, rank, settings
        query_rows, direct = _query_rows(shape.num_heads, settings), settings.query_norm is None
        interleaved = settings.rotary.interleaved
        first = len(query_rows) if settings.query_norm is None else settings.query_norm.size
        # What reads the stream is one product: queries or what leads to them, the vector, and the rotated key.
        self._sizes = (first, rank, settings.rotary.rotary_dim)
        turned = [first + rank + i for i in _halves(settings.rotary)]
        rows = [*(query_rows if direct else range(first)), *range(first, first + rank), *turned]
        names = [f"{name}.weight" for name in (settings.query[0], settings.latent)]
        enter = weights.take_linear(
            names, (first, rank + len(turned)), hidden, rows=rows if interleaved else None
        )
        self._enter = kernels.linear(enter, None)
        if settings.query_norm is not None:
            self._query_norm = weights.take(f"{settings.query_norm.name}.weight", first)
            up = [f"{settings.query[1]}.weight"]
            queries = weights.take_linear(
                up, [len(query_rows)], first, rows=query_rows if interleaved else None
            )
            self._queries = kernels.linear(queries, None)
        self._latent_norm = weights.take(f"{settings.latent_norm.name}.weight", rank)
        self._take_expansion(weights)
        width = shape.num_heads * settings.value_dim
        self._leave = kernels.linear(
            weights.take_linear([f"{settings.output}.weight"], [hidden], width), None
        )

    def _take_expansion(self, weights: Weights) -> None:
        """What makes keys of the vector, [Hq, key_dim, rank], and what makes values of it, [Hq, rank, value_dim]."""
        settings, sizes = self._settings, (self._settings.key_dim, self._settings.value_dim)
        names = [f"{name}.weight" for name in settings.expand]
        if len(names) == 1:
            expand = weights.take(names[0], self._heads * sum(sizes), self._rank)
            keys, values = expand.view(self._heads, -1, self._rank).split_with_sizes(sizes, dim=1)
        else:
            keys = weights.take(names[0], self._heads, self._rank, sizes[0]).transpose(1, 2)
            values = weights.take(names[1], self._heads, sizes[1], self._rank)
        self._into_keys, self._into_values = keys.contiguous(), values.transpose(1, 2).contiguous()

    def __call__(
        self, x: "Tensor", inputs: StepInputs, rotation: "Rotation | None", rows: "Tensor | None"
    ) -> "Tensor":
        assert rotation is not None
        query, key = self._query_and_key(x, rotation)
        cache, plan = inputs.caches[self._index], inputs.plans[self._index]
        self._attention.write(key, key[..., : self._rank], cache, plan)
        attended = self._attention.attend(query, cache, plan)  # [N, Hq, rank]
        if rows is not None:
            attended = attended[rows]
        values = (attended.transpose(0, 1) @ self._into_values).transpose(0, 1)  # [R, Hq, value_dim]
        return self._leave(values.flatten(1))

    def _query_and_key(self, x: "Tensor", rotation: "Rotation") -> "tuple[Tensor, Tensor]":
        """Queries [N, Hq, rank + rotated] and keys [N, 1, rank + rotated], as they attend to one another."""
        settings, rank = self._settings, self._rank
        entered, latent, turned_key = self._enter(x).split_with_sizes(self._sizes, dim=-1)
        if settings.query_norm is not None:
            normed = self._kernels.rms_norm(entered, self._query_norm, settings.query_norm.eps)
            entered = self._queries(normed)
        heads = entered.reshape(len(x), self._heads, -1)
        plain, turned = heads.split_with_sizes((settings.key_dim, settings.rotary.rotary_dim), dim=-1)
        turned, turned_key = self._kernels.rotary(turned, turned_key[:, None], *rotation)
        width = rank + settings.rotary.rotary_dim
        query, key = x.new_empty(len(x), self._heads, width), x.new_empty(len(x), 1, width)
        query[..., :rank] = (plain.transpose(0, 1) @ self._into_keys).transpose(0, 1)
        key[:, 0, :rank] = self._kernels.rms_norm(latent, self._latent_norm, settings.latent_norm.eps)
        query[..., rank:], key[..., rank:] = turned, turned_key
        return query, key


def _query_rows(heads: int, settings: LatentSettings) -> list[int]:
    """Rows of the projection of queries: of each head the part that is not rotated, then the halves of the other."""
    size = settings.key_dim + settings.rotary.rotary_dim
    order = [*range(settings.key_dim), *(settings.key_dim + i for i in _halves(settings.rotary))]
    return [head * size + i for head in range(heads) for i in order]


def _halves(rotary: RotarySettings) -> list[int]:
    """The order in which what is rotated together lies half of it apart."""
    dim = rotary.rotary_dim
    return [*range(0, dim, 2), *range(1, dim, 2)] if rotary.interleaved else [*range(dim)]
