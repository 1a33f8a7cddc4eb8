"""What changed in the contracts, version by version, and what a plugin's author does about it.

docs/contract-changelog.md is written from this, for people and for programs. That nothing is left out is tested
against `history`.
"""

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
)


def changes_since(contract: str, version: Version) -> list[Change]:
    """What came after a version, oldest first."""
    return [c for c in CHANGES if c.contract == contract and c.version > version]
