"""A platform: one kind of hardware, and how it fulfils the contracts.

A vendor subclasses `Platform`. Only `probe` and `capabilities` are required; a factory that returns None
leaves its contract to the reference implementation, and the ledger says so.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from core.contracts.attention import Attention, AttentionSpec
    from core.contracts.communication import Communication, Group
    from core.contracts.execution import Execution
    from core.contracts.kernels import Implementation
    from core.contracts.memory import Memory
    from core.contracts.model import ModelDescription
    from core.contracts.runner import Runner, RunnerContext
    from core.native.toolchain import NativeBuild


FEATURES: Mapping[str, str] = {
    "sliding_window": "a token sees itself and so many tokens before it",
    "soft_cap": "scores are bent towards a limit, soft_cap * tanh(score / soft_cap)",
    "alibi": "scores fall with distance, by a slope of each head's own",
    "bidirectional": "a token sees its whole sequence, or as far to either side as a window reaches",
    "latent": "values are the first numbers of the keys, and are not stored",
}
"""What attention may be asked for beyond causal full attention, and what it means."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device that a probe found. `torch_device` is what torch calls it, "cpu" or "toy:0"."""

    name: str
    torch_device: str
    index: int = 0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a look at the machine found. `reason` is one sentence, shown to the user as it is."""

    available: bool
    reason: str
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SchedulingLimits:
    """What the hardware asks of the shape of a step; the one scheduler obeys.

    separate_steps  a step holds either prompt chunks or single-token decodes, never both
    token_multiple  the step's token count is padded to a multiple of this
    max_num_seqs    sequences in one step at most; None: any number
    """

    separate_steps: bool = False
    token_multiple: int = 1
    max_num_seqs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """A device's manifest, the first thing the core reads.

    dtypes           model dtypes by torch name, preferred first
    block_sizes      tokens per KV-cache block it accepts, preferred first
    head_dims        attention head sizes it accepts; None: any
    features         what its attention does beyond causal full attention; names of FEATURES
    weight_formats   formats in which its kernels take weights as they are, by name; see `quantization.FORMATS`
    kv_cache_dtypes  what its attention rounds keys and values to, besides the model dtype: "int8"
    alignment_bytes  every allocation's size is a multiple of this
    """

    dtypes: tuple[str, ...] = ("bfloat16", "float16", "float32")
    block_sizes: tuple[int, ...] = (16, 8, 32, 64, 128)
    head_dims: tuple[int, ...] | None = None
    features: frozenset[str] = frozenset({"sliding_window"})
    weight_formats: frozenset[str] = frozenset()
    kv_cache_dtypes: frozenset[str] = frozenset()
    alignment_bytes: int = 1
    scheduling: SchedulingLimits = SchedulingLimits()


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """A platform's values behind "auto"; None leaves one to the core."""

    dtype: str | None = None
    block_size: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    prefill_chunk_size: int | None = None
    kv_cache_memory: int | None = None


class Platform(ABC):
    """One kind of hardware. Constructed once, without arguments, when a process starts.

    contract     (major, minor) of the platform contract that it was written for; see `versions.VERSIONS`
    name         what the user types after --platform
    device_type  torch's name of the device type
    summary      one line for `llm platforms`
    priority     among platforms that can run, "auto" takes the highest; software ones stay below 0
    """

    contract: ClassVar[tuple[int, int]]
    name: ClassVar[str]
    device_type: ClassVar[str]
    summary: ClassVar[str] = ""
    priority: ClassVar[int] = 0

    @abstractmethod
    def probe(self) -> Probe:
        """Look whether this platform can run here. Never raises, imports nothing heavy, answers at once."""

    @abstractmethod
    def capabilities(self, device: Device) -> Capabilities:
        """What `device` accepts. Called before anything else is asked of the device."""

    def defaults(self, model: "ModelDescription", device: Device) -> Defaults:
        """The values behind every "auto" for this model on this device."""
        return Defaults()

    def attention(self, spec: "AttentionSpec", device: Device) -> "Attention | None":
        """The attention for layers of this spec. Raises UnsupportedShape with the reason when it has none."""
        return None

    def memory(self, device: Device) -> "Memory | None":
        """The device's memory."""
        return None

    def communication(self, group: "Group", device: Device) -> "Communication | None":
        """Collectives on `device` among the ranks of `group`, of which this process is one.

        Raises UnsupportedShape with the reason when it has none for such a group.
        """
        return None

    def kernels(self, device: Device) -> "Mapping[str, Implementation]":
        """This platform's version of declared kernels, by name; the rest is the reference's."""
        return {}

    def execution(self, device: Device) -> "Execution | None":
        """How the process is set up and the forward pass is run."""
        return None

    def runner(self, context: "RunnerContext") -> "Runner | None":
        """A runner of its own, for hardware that does not execute torch operations (level 2)."""
        return None

    def native_builds(self) -> "Mapping[str, NativeBuild]":
        """C++ kernels that can be compiled ahead (`llm kernels build`), by level; the one in use comes first."""
        return {}
