"""What an architecture plugin brings: how to read a config, and how to build the model from given parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from core.contracts.attention import AttentionShape, LayerCache
from core.contracts.kernels import Kernels

if TYPE_CHECKING:
    from torch import Tensor

    from core.contracts.attention import Attention
    from core.contracts.quantization import Weight


@dataclass(frozen=True, kw_only=True)
class StateShape:
    """A layer that keeps a state of fixed size for each sequence, instead of keys and values for each token.

    convolution  what it keeps of the inputs of its convolution, in the model dtype
    state        its recurrent state, in float32
    """

    convolution: tuple[int, ...]
    state: tuple[int, ...]


LayerShape: TypeAlias = AttentionShape | StateShape


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """What a model makes of a whole text, instead of going on with it: a vector, or a number for each label.

    tokens      whose hidden states it is made of: "first", "last", or "mean", of all
    size        how many numbers it gives
    labels      what each number is for, by `Model.logits` of what was pooled; None: an embedding
    activation  of the numbers for labels: "softmax", "sigmoid" or "none"
    normalize   embeddings are scaled to length 1
    shorter     whether the leading numbers of an embedding are one as well; the lengths that were trained, or none
                where every length will do; None: they are not
    dense       folders of the checkpoint with a linear layer each, which an embedding goes through before that
    after       of a text with this in it, "mean" is of the tokens behind it
    """

    tokens: str
    size: int
    labels: tuple[str, ...] | None = None
    activation: str = "none"
    normalize: bool = False
    shorter: tuple[int, ...] | None = None
    dense: tuple[str, ...] = ()
    after: str | None = None

    @property
    def task(self) -> str:
        """What it is asked for: "embed" or "classify"."""
        return "embed" if self.labels is None else "classify"


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What the engine must know of a model before a weight is read.

    layers    what each layer keeps of its sequences
    context   longest sequence the model was trained for, in tokens
    dtype     torch name of the dtype its weights are meant to be used in
    settings  the architecture's own reading of its config, for its own `build`
    pooling   what it is asked for instead of a next token; None: it generates
    embedder  of a model that was trained for both, what it is when it is asked for embeddings; with a `pooling`

    num_parameters is for show; None: the checkpoint's are counted.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    context: int
    dtype: str
    layers: tuple[LayerShape, ...]
    num_parameters: int | None = None
    settings: Any = None
    pooling: Pooling | None = None
    embedder: "ModelDescription | None" = None

    @property
    def whole(self) -> bool:
        """Whether a sequence is computed in one step: tokens see those that follow, or more than the last is pooled."""
        sees_both_ways = any(isinstance(s, AttentionShape) and not s.causal for s in self.layers)
        return sees_both_ways or (self.pooling is not None and self.pooling.tokens != "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One step as a model sees it. Passed down as an argument to every layer; there is no other state.

    token_ids  [num_tokens], int64
    positions  [num_tokens], int64
    rows       [num_rows], int64: the tokens whose hidden states are wanted
    segments   [num_tokens], int64: 1 for tokens of the second of two texts, else 0; None: no sequence has two
    caches     per layer
    plans      per layer: what `Attention.plan` returned for its cache group; for a layer that keeps a state, the
               `StateBatch`
    """

    token_ids: "Tensor"
    positions: "Tensor"
    rows: "Tensor"
    caches: tuple[LayerCache, ...]
    plans: tuple[Any, ...]
    segments: "Tensor | None" = None


class Weights(Protocol):
    """The checkpoint, as the model builds itself from it."""

    def take(self, name: str, *shape: int, dtype: str | None = None) -> "Tensor":
        """The weight of this name, on the device, in the model's dtype unless another is named.

        A missing or misshaped weight is noted, and stands in as undefined memory until the load ends with
        one BadCheckpoint that lists them all.
        """
        ...

    def take_linear(
        self,
        names: Sequence[str],
        outputs: Sequence[int],
        inputs: int,
        *,
        rows: "Sequence[int] | None" = None,
        transposed: bool = False,
        part: "tuple[int, int] | None" = None,
    ) -> "Weight":
        """The weights of these names, [outputs[i], inputs] each, stacked along their outputs, for a linear kernel.

        rows        of the stack that are wanted, in this order; None: all, as they are
        transposed  the checkpoint holds them as [inputs, outputs[i]]
        part        (number, count): it holds so many behind one another under each name, and this one is wanted

        A tensor in the model's dtype, or quantised: as the checkpoint stores them, or as the user asked. `take`
        gives the same weight as a tensor, for a table that is a head too. Missing ones are noted as in `take`.
        """
        ...

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this weight."""
        ...

    def take_all(self, expected: "Mapping[str, tuple[int, ...]]") -> "Mapping[str, Tensor]":
        """Every weight that anybody may want, by its name: on the CPU, as it is stored, mapped from its file.

        expected  shapes, for a checkpoint that is made up; others may hold what is expected under other names

        For a model whose weights somebody else puts together. It then calls `account`.
        """
        ...

    def account(self, *, missing: Sequence[str], misshaped: Sequence[str], left_over: Sequence[str]) -> None:
        """What came of `take_all`. Raises the BadCheckpoint that lists it, if there is anything to list."""
        ...

    def as_linear(self, weight: "Tensor") -> "Weight":
        """A weight [out, in] in the model's dtype, in the form in which the user wants those of linear layers held."""
        ...

    def leave(self, prefix: str) -> None:
        """Have no use for the weights whose names begin so, should there be any."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a model is built from.

    attention      one per layer; None for a layer that keeps a state
    torch_device   where its tables live
    max_model_len  longest sequence that will be computed, in tokens
    """

    kernels: Kernels
    attention: "tuple[Attention | None, ...]"
    dtype: str
    torch_device: str
    max_model_len: int


class Model(Protocol):
    """A loaded model."""

    def forward(self, inputs: StepInputs) -> "Tensor":
        """Hidden states at `inputs.rows`, after the last norm: [num_rows, hidden_size]."""
        ...

    def logits(self, hidden: "Tensor") -> "Tensor":
        """[num_rows, hidden_size] -> [num_rows, vocab_size], model dtype.

        Of a model that pools: what was pooled, a row for each text, to a number for each label. Embeddings need none.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class GgufMapping:
    """How GGUF spells an architecture.

    name      its `general.architecture`
    config    GGUF metadata -> the config a safetensors folder would have. Under "tensors" it finds the shapes of the
              file's tensors by their GGUF names
    weights   the model's weight name -> GGUF tensor name. "{i}" stands for the layer in both, "{e}" in the model's name
              for an expert: GGUF has all of a layer's behind one another in one tensor
    permuted  weights whose rows GGUF reorders for interleaved rotary, and the config key of their head count
    values    tensors that are a part of the config and no weights: it finds their numbers under their GGUF names
    """

    name: str
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    weights: Mapping[str, str]
    permuted: Mapping[str, str] = field(default_factory=dict[str, str])
    values: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One entry of a checkpoint's `architectures`. Imports nothing heavy until `build` is called.

    contract  (major, minor) of the model contract that it was written for
    describe  config.json -> ModelDescription; raises ConfigError naming the key it cannot accept
    build     takes every weight it needs and returns the model
    """

    name: str
    family: str
    describe: Callable[[Mapping[str, Any]], ModelDescription]
    build: Callable[[ModelDescription, Weights, Parts], Model]
    gguf: GgufMapping | None = None
    contract: tuple[int, int] = (1, 0)


@dataclass(frozen=True, kw_only=True)
class ModelFallback:
    """Runs architectures that have no declaration of their own.

    name      what `model_impl` calls it
    claim     (folder, config.json, whether its code may be run) -> the architecture, for this checkpoint alone. Reads
              no weight. Raises UnsupportedArchitecture with the reason why it cannot
    contract  (major, minor) of the model contract that it was written for
    """

    name: str
    claim: Callable[[Path, Mapping[str, Any], bool], Architecture]
    contract: tuple[int, int] = (1, 0)
