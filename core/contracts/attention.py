"""Paged attention: one contract for prefill, chunk and decode in a single ragged batch.

Tokens of all sequences of a step lie flattened behind each other, [num_tokens, ...]. Sequence i owns rows
query_start[i] to query_start[i + 1], its newest tokens; decodes (one new token) come first.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """What the model says of one layer's attention.

    scale           multiplies the scores, usually head_dim ** -0.5
    sliding_window  a token sees itself and the window - 1 tokens before it; None: all before it
    soft_cap        bends scores towards this limit, soft_cap * tanh(score / soft_cap); None: they stay as they are
    alibi           adds slope * (position of the key - position of the query), with `alibi_slopes` of the heads
    causal          False: a token sees its whole sequence, which is computed in one step; of a sliding window, half
                    lies on either side, so that it sees those at most sliding_window // 2 away
    latent          a value is the first `latent` numbers of its key, and is not stored; of one head, num_kv_heads is 1

    In this order: score = scale * query @ key, the soft cap, ALiBi, what may not be seen, softmax. None of it is
    rounded to less than the model dtype, and distances are exact.
    Source: Gemma 2, Gemma Team 2024, section 2 (soft cap); ALiBi, Press et al. 2021; DeepSeek-V2, 2024, section 2.1
    (latent attention, in its absorbed form); ModernBERT, Warner et al. 2024 (local attention to both sides).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None
    alibi: bool = False
    causal: bool = True
    latent: int | None = None

    @property
    def value_dim(self) -> int:
        """Numbers in a value, and in each head of the result."""
        return self.head_dim if self.latent is None else self.latent


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """How steeply each head's scores fall with distance, per token; ALiBi, Press et al. 2021, section 3.

    A power of two gives 2 ** (-8 * i / num_heads) for i = 1 and up. Other counts take the slopes of the next lower
    power of two, then every other one of the next higher.
    """
    lower = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * i / lower) for i in range(1, lower + 1)]
    between = [2.0 ** (-4 * i / lower) for i in range(1, 2 * (num_heads - lower), 2)]
    return (*slopes, *between)


@dataclass(frozen=True, kw_only=True)
class AttentionSpec(AttentionShape):
    """A shape, and how the engine runs it. Layers of equal spec share one `Attention` and one plan per step.

    block_size   tokens per block of the cache
    cache_dtype  what keys and values are rounded to: "int8"; None: the model dtype

    In "int8", the key and the value of one token and one head is 8-bit whole numbers times a float32 of its own:
    scale = max|x| / 127, and each number is x / scale, computed in float32 and rounded to the nearest, ties to
    even. Zeros have scale 0; a row with an element that is not finite reads as NaN.
    """

    dtype: str
    block_size: int
    cache_dtype: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether keys and values are rounded to something other than the model dtype."""
        return self.cache_dtype not in (None, self.dtype)


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """How a platform stores the keys and the values of one layer, in a tensor each.

    shape         of the keys' tensor; whatever belongs to a block, scales too, lies in that block
    block_axis    which of its axes counts blocks, the same for values
    dtype         of the keys' tensor by torch name; None: the model dtype
    value_shape   of the values' tensor; None: as the keys'. Values that are not stored have an axis of 0
    value_dtype   of the values' tensor; None: as the keys'
    """

    shape: tuple[int, ...]
    block_axis: int
    dtype: str | None = None
    value_shape: tuple[int, ...] | None = None
    value_dtype: str | None = None

    def tensors(self, model_dtype: str) -> "tuple[tuple[tuple[int, ...], str], tuple[tuple[int, ...], str]]":
        """Shape and dtype of the keys' tensor, and of the values'."""
        dtype = self.dtype or model_dtype
        shape = self.shape if self.value_shape is None else self.value_shape
        return (self.shape, dtype), (shape, self.value_dtype or dtype)


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The cached keys and values of one layer, each of the shape that `Attention.layout` asked for.

    Of a recurrent layer: the last inputs of its convolution, and its state, [num_blocks, ...] each.
    """

    keys: "Tensor"
    values: "Tensor"
    block_axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBatch:
    """What one step asks of attention, for one cache group.

    query_lens    per sequence, how many new tokens; decodes first
    lengths       per sequence, tokens in the cache once this step's are written
    num_decodes   how many leading sequences have exactly one new token
    query_start   [num_seqs + 1], int32, on the device: offsets into the flattened tokens
    block_tables  [num_seqs, max_blocks], int32, on the device: block of each block_size tokens; 0, whose contents
                  are anything, past the length and for blocks that a sliding window has left behind
    seq_lengths   [num_seqs], int32, on the device: `lengths`
    slot_mapping  [num_tokens], int64, on the device: block * block_size + offset where each token is written

    Block 0 belongs to nobody: padding tokens are written there, and nothing reads it. The tuples are the
    host's copy, for planning without a transfer.
    """

    query_lens: tuple[int, ...]
    lengths: tuple[int, ...]
    num_decodes: int
    query_start: "Tensor"
    block_tables: "Tensor"
    seq_lengths: "Tensor"
    slot_mapping: "Tensor"


class Attention(ABC):
    """Attention for all layers of one spec on one device.

    spec  what it was made for
    """

    spec: AttentionSpec

    @abstractmethod
    def layout(self, num_blocks: int) -> CacheLayout:
        """Shapes of one layer's keys and values for `num_blocks` blocks, and which of their axes counts blocks.

        The usual answer is [num_blocks, block_size, num_kv_heads, head_dim] and axis 0; of a quantised cache, bytes
        [num_blocks, block_size, num_kv_heads, head_dim + 4], the scale behind the numbers.
        """

    def plan(self, batch: AttentionBatch) -> Any:
        """Whatever all layers of a step can share: gather indices, masks, launch geometry. Called once a step."""
        return batch

    @abstractmethod
    def write(self, key: "Tensor", value: "Tensor", cache: LayerCache, plan: Any) -> None:
        """Store this step's keys and values at the batch's slots.

        key, value  [num_tokens, num_kv_heads, head_dim], model dtype, on the device; of a latent spec, value is a
                    view into key that need not be looked at
        """

    @abstractmethod
    def attend(self, query: "Tensor", cache: LayerCache, plan: Any) -> "Tensor":
        """Attend each new token to everything its sequence has cached up to and including itself, or, if the spec is
        not causal, to all of it.

        query  [num_tokens, num_heads, head_dim], model dtype, on the device; heads of one group (those that
               share a key/value head) are neighbours

        Returns [num_tokens, num_heads, value_dim]; the caller owns it. This step's keys and values are
        already in the cache. Reads no slot past a sequence's length: what lies there may be NaN. Rows of
        padding tokens may hold anything finite.
        Source: PagedAttention, Kwon et al. 2023, section 4.
        """
