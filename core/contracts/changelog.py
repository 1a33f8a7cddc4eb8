"""What changed in the contracts, version by version, and what a plugin's author does about it.

docs/contract-changelog.md is written from this, for people and for programs. That nothing is left out is tested
against `history`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from core.contracts.versions import Version


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change. name: "chapter.Class.member", or "kernel NAME".

    todo     what an author does, empty when nothing has to be done
    adapted  what the core does for plugins written for the major version before
    """

    contract: str
    version: Version
    kind: Literal["added", "changed", "removed"]
    name: str
    what: str
    todo: str = ""
    adapted: str = ""


_V2 = (2, 0)


def _added(contract: str, version: Version, names: Mapping[str, str]) -> tuple[Change, ...]:
    return tuple(
        Change(contract=contract, version=version, kind="added", name=name, what=what)
        for name, what in names.items()
    )


CHANGES: tuple[Change, ...] = (
    Change(
        contract="platform",
        version=_V2,
        kind="changed",
        name="platform.Platform.communication",
        what="is told the device that the ranks compute on: communication(group, device)",
        todo="add the parameter device",
        adapted="called without the device",
    ),
    Change(
        contract="platform",
        version=_V2,
        kind="added",
        name="memory.Memory.save_blocks",
        what="copies whole blocks to the host; the default works on every torch device",
    ),
    Change(
        contract="platform",
        version=_V2,
        kind="added",
        name="memory.Memory.restore_blocks",
        what="copies them back, into the same blocks or others",
    ),
    Change(
        contract="platform",
        version=_V2,
        kind="added",
        name="memory.HostBlocks",
        what="blocks as the host keeps them",
    ),
    Change(
        contract="platform",
        version=_V2,
        kind="added",
        name="attention.AttentionShape.soft_cap",
        what='scores are bent towards a limit; asked only of a device whose features name "soft_cap"',
    ),
    Change(
        contract="platform",
        version=_V2,
        kind="added",
        name="attention.AttentionShape.alibi",
        what='scores fall with distance; asked only of a device whose features name "alibi"',
    ),
    Change(
        contract="platform",
        version=_V2,
        kind="added",
        name="kernels.Cost",
        what="what a call must move and compute at least",
    ),
    Change(
        contract="platform",
        version=_V2,
        kind="added",
        name="kernels.Kernel.cost",
        what="says it for a case; the core's declarations have it, implementations need nothing",
    ),
    *_added(
        "platform",
        _V2,
        {
            "attention.AttentionShape.causal": 'False: tokens see those that follow; a feature, "bidirectional"',
            "attention.AttentionShape.latent": 'values are the first numbers of keys; a feature, "latent"',
            "attention.CacheLayout.value_shape": "values may be stored in another shape than keys, or not at all",
            "attention.CacheLayout.value_dtype": "and in another dtype",
            "attention.CacheLayout.tensors": "both, with the model's dtype filled in",
            "state.StateBatch": "what a step asks of layers that keep a state",
            "runner.CacheGroup.recurrent": "blocks of the group hold states",
            "runner.Runner.storage_bytes": "what a block takes, tensor by tensor; the default is block_bytes",
            "runner.ScheduledSequence.pooling": "the sequence is pooled, and not sampled from",
            "runner.ScheduledSequence.second": "where the second of two texts begins",
            "runner.ScheduledSequence.skip": "leading tokens that are not pooled",
            "runner.SequenceResult.pooled": "what came of pooling",
            "kernels.Kernel.updates": "arguments that a call changes in place; the core's declarations have it",
            "kernels.Routing": "how a mixture of experts chooses",
            "kernels.MoeWeights": "what a mixture of experts is made of",
            "kernels.Kernels.layer_norm": "layer norm",
            "kernels.Kernels.activation": "a function of each element, by its name",
            "kernels.Kernels.route": "chooses experts",
            "kernels.Kernels.experts": "the chosen experts' MLPs, weighted and added",
            "kernels.Kernels.moe": "a whole mixture of experts",
            "kernels.Kernels.causal_conv": "a convolution over the tokens before, whose last inputs are kept",
            "kernels.Kernels.selective_scan": "Mamba's recurrence, whose state is kept",
            "kernel layer_norm": "declared; the reference serves it until a platform does",
            "kernel activation": "declared; the reference serves it until a platform does",
            "kernel route": "declared; the reference serves it until a platform does",
            "kernel experts": "declared; the reference serves it until a platform does",
            "kernel moe": "declared; the reference serves it until a platform does",
            "kernel causal_conv": "declared; the reference serves it until a platform does",
            "kernel selective_scan": "declared; the reference serves it until a platform does",
        },
    ),
)


def changes_since(contract: str, version: Version) -> list[Change]:
    """What came after a version, oldest first."""
    return [c for c in CHANGES if c.contract == contract and c.version > version]
