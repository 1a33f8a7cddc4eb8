"""What a decoder's layers are made of, as declared data: sizes, names of weights, and the differences between families.

A family's page fills these in; the layers beside this module build themselves from them. Names of weights are those of
the checkpoint, whole. Imports no torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.contracts.model import LayerShape, Parts, Weights


@dataclass(frozen=True, kw_only=True)
class NormSettings:
    """A norm over the last `size` numbers.

    name         of its module; weights are NAME.weight and NAME.bias
    kind         "rms" or "layer"
    weight       whether it has one
    bias         whether it has one
    plus_one     the weight is stored as what it exceeds one by
    over_a_head  it is of queries or keys, and `size` is a head's; else it is of all that there is
    heads        with that, each of so many heads has a weight of its own, [heads, size]; None: they share one
    listed       those are stored one by one: NAME.0.weight and so on
    wide         the stream that it reads is kept in float32, whatever the model dtype
    """

    name: str
    size: int
    eps: float
    kind: str = "rms"
    weight: bool = True
    bias: bool = False
    plus_one: bool = False
    over_a_head: bool = False
    heads: int | None = None
    listed: bool = False
    wide: bool = False


ROPE_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
"""Scalings of the rotation, as configs call them, and the keys that each needs."""


@dataclass(frozen=True, kw_only=True)
class RotarySettings:
    """How queries and keys are turned by their positions.

    rotary_dim   leading numbers of each head that are rotated
    theta        base of the frequencies
    scaling      the config's own block with its `rope_type`
    context      positions that the model was made for, its `max_position_embeddings`
    interleaved  numbers 2 * i and 2 * i + 1 are rotated together, instead of i and i + rotary_dim / 2
    """

    rotary_dim: int
    theta: float
    scaling: Mapping[str, Any]
    context: int
    interleaved: bool = False


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """Attention over keys and values of their own; its sizes are those of the layer's `AttentionShape`.

    qkv         names of the projections of queries, keys and values, or of the one that makes them all
    output      name of the projection of the result
    grouped     the one projection's rows come group by group: the queries that share a key, the key, the value
    transposed  weights are stored as [in, out]
    clip        queries, keys and values are cut off at plus and minus this
    query_norm  of queries before they are rotated, and alike key_norm
    rotary      None: positions are left to a bias of the scores, or to the embedding
    """

    qkv: tuple[str, ...]
    output: str
    qkv_bias: bool = False
    output_bias: bool = False
    grouped: bool = False
    transposed: bool = False
    clip: float | None = None
    query_norm: NormSettings | None = None
    key_norm: NormSettings | None = None
    rotary: RotarySettings | None = None


@dataclass(frozen=True, kw_only=True)
class MlpSettings:
    """The feed-forward half of a layer.

    up          names of what goes in: with a gate, (gate, up), or one projection that is both, gate first
    activation  a name of `core.reference.activation.ACTIVATIONS`
    """

    up: tuple[str, ...]
    down: str
    intermediate_size: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class MixerSettings(ABC):
    """Any other mixer of tokens: latent attention, a recurrent state."""

    rotary: RotarySettings | None

    @abstractmethod
    def make(
        self, weights: "Weights", parts: "Parts", index: int, hidden: int, shape: "LayerShape"
    ) -> Callable[..., Any]:
        """Takes its weights; returns a function (x [N, H], inputs, rotation, rows) -> what it adds, [R, H]."""


class FeedForwardSettings(ABC):
    """Any other feed-forward half: a mixture of experts."""

    @abstractmethod
    def make(self, weights: "Weights", parts: "Parts", hidden: int) -> Callable[..., Any]:
        """Takes its weights; returns a function x [N, H] -> [N, H]."""


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """One layer: a mixer of tokens and a feed-forward half, each added to the stream.

    input_norm, mlp_norm  of what each half reads; None: it reads the stream, or beside `parallel` what the mixer reads
    mixer_output_norm     of what the mixer adds, and alike mlp_output_norm
    parallel              both halves read the stream that enters the layer, and are added together
    after                 input_norm and mlp_norm are of the stream once a half was added to it, which is what goes on
    residual_scale        multiplies what each half adds
    mlp                   None: the layer is its mixer alone
    """

    hidden_size: int
    mixer: AttentionSettings | MixerSettings
    mlp: MlpSettings | FeedForwardSettings | None
    input_norm: NormSettings | None
    mlp_norm: NormSettings | None
    mixer_output_norm: NormSettings | None = None
    mlp_output_norm: NormSettings | None = None
    parallel: bool = False
    after: bool = False
    residual_scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PositionSettings:
    """Learned positions: the table's name, its rows, and the row of position 0."""

    name: str
    rows: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """From what was pooled to a number for each label: a layer, perhaps, and a projection.

    dense       name of the layer, [H, H]; None: there is none, and neither are its activation and its norm
    activation  a name of `core.reference.activation.ACTIVATIONS`
    output      name of the projection
    """

    output: str
    output_bias: bool = True
    dense: str | None = None
    dense_bias: bool = True
    activation: str = "tanh"
    norm: NormSettings | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """A whole decoder.

    prefix            with which all names of weights but the head's begin, unless the checkpoint leaves it out
    embedding         name of the table's module, of rows `embedding_size` wide; if that is not the hidden size,
                      `project_in` and `project_out` name what leads from one to the other
    embedding_scale   multiplies what is looked up, once rounded to the model dtype
    embedding_norm    of what is looked up
    norm              of the last layer's result
    head              name of the head's module; None: the embedding's table
    logit_scale       multiplies the logits
    logit_cap         bends them towards this limit; None: they stay as they are
    segments          learned vectors of the first and of the second of two texts
    classifier        what a model that pools has instead of a head, if it gives numbers for labels
    ignored           prefixes of weights that serve something else, such as layers that only draft tokens
    unused            prefixes of weights that a model which pools has no use for
    """

    layers: tuple[LayerSettings, ...]
    prefix: str = "model."
    embedding: str = "model.embed_tokens"
    embedding_size: int
    project_in: str | None = None
    project_out: str | None = None
    embedding_scale: float = 1.0
    embedding_norm: NormSettings | None = None
    positions: PositionSettings | None = None
    norm: NormSettings | None
    head: str | None
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_cap: float | None = None
    segments: PositionSettings | None = None
    classifier: ClassifierSettings | None = None
    ignored: tuple[str, ...] = ()
    unused: tuple[str, ...] = ("lm_head.", "score.")
