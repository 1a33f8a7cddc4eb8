"""What an architecture plugin brings: how to read a config, and how to build the model from given parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from core.contracts.attention import AttentionShape, LayerCache
from core.contracts.kernels import Kernels

if TYPE_CHECKING:
    from torch import Tensor

    from core.contracts.attention import Attention
    from core.contracts.quantization import Weight


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What the engine must know of a model before a weight is read.

    layers    one attention shape per layer
    context   longest sequence the model was trained for, in tokens
    dtype     torch name of the dtype its weights are meant to be used in
    settings  the architecture's own reading of its config, for its own `build`
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    context: int
    dtype: str
    layers: tuple[AttentionShape, ...]
    num_parameters: int
    settings: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One step as a model sees it. Passed down as an argument to every layer; there is no other state.

    token_ids  [num_tokens], int64
    positions  [num_tokens], int64
    rows       [num_rows], int64: the tokens whose hidden states are wanted
    caches     per layer
    plans      per layer: what `Attention.plan` returned for its cache group
    """

    token_ids: "Tensor"
    positions: "Tensor"
    rows: "Tensor"
    caches: tuple[LayerCache, ...]
    plans: tuple[Any, ...]


class Weights(Protocol):
    """The checkpoint, as the model builds itself from it."""

    def take(self, name: str, *shape: int, dtype: str | None = None) -> "Tensor":
        """The weight of this name, on the device, in the model's dtype unless another is named.

        A missing or misshaped weight is noted, and stands in as undefined memory until the load ends with
        one BadCheckpoint that lists them all.
        """
        ...

    def take_linear(self, names: Sequence[str], outputs: Sequence[int], inputs: int) -> "Weight":
        """The weights of these names, [outputs[i], inputs] each, stacked along their outputs, for a linear kernel.

        A tensor in the model's dtype, or quantised: as the checkpoint stores them, or as the user asked. `take`
        gives the same weight as a tensor, for a table that is a head too. Missing ones are noted as in `take`.
        """
        ...

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this weight."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a model is built from: kernels, one `Attention` per layer, and where its tables live."""

    kernels: Kernels
    attention: "tuple[Attention, ...]"
    dtype: str
    torch_device: str


class Model(Protocol):
    """A loaded model."""

    def forward(self, inputs: StepInputs) -> "Tensor":
        """Hidden states at `inputs.rows`, after the last norm: [num_rows, hidden_size]."""
        ...

    def logits(self, hidden: "Tensor") -> "Tensor":
        """[num_rows, hidden_size] -> [num_rows, vocab_size], model dtype."""
        ...


@dataclass(frozen=True, kw_only=True)
class GgufMapping:
    """How GGUF spells an architecture.

    name      its `general.architecture`
    config    GGUF metadata -> the config a safetensors folder would have
    weights   the model's weight name -> GGUF tensor name; "{i}" stands for the layer in both
    permuted  weights whose rows GGUF reorders for interleaved rotary, and the config key of their head count
    """

    name: str
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    weights: Mapping[str, str]
    permuted: Mapping[str, str] = field(default_factory=dict[str, str])


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
