"""Which versions of the contracts there are, and which of them this core still takes.

There are five contracts, each with a version of its own. A plugin states, as `contract`, the version of the one
it was written for: a platform that of "platform", and so on. The modules that make up a contract are its chapters.
What each version asks lies in `history/`, as plain data; what changed, and why, in `changelog`.
"""

from collections.abc import Mapping
from typing import Any, cast

Version = tuple[int, int]

VERSIONS: Mapping[str, Version] = {
    "platform": (2, 0),
    "model": (1, 0),
    "source": (1, 0),
    "quantization": (1, 0),
    "telemetry": (1, 0),
}
"""(major, minor) of each contract. Major: something was removed or means something else; minor: something was added."""

LAST_MINOR: Mapping[tuple[str, int], int] = {("platform", 1): 0}
"""The last minor version of each (contract, major) before the current one that is still taken."""

CHAPTERS: Mapping[str, tuple[str, ...]] = {
    "platform": (
        "platform",
        "attention",
        "kernels",
        "memory",
        "communication",
        "execution",
        "runner",
        "state",
        "quantization",
    ),
    "model": ("model",),
    "source": ("source",),
    "quantization": ("packing",),
    "telemetry": ("telemetry",),
}
"""Modules of `core.contracts`, by the contract that they belong to."""

CONTRACT_OF: Mapping[str, str] = {
    chapter: contract for contract, chapters in CHAPTERS.items() for chapter in chapters
}
"""The contract that each module of `core.contracts` is a chapter of."""


def accepted(contract: str) -> str:
    """What a plugin may have been written for, in words: "1.0 to 2.3"."""
    major, minor = VERSIONS[contract]
    oldest = major - 1 if (contract, major - 1) in LAST_MINOR else major
    return f"{oldest}.0 to {major}.{minor}" if (oldest, 0) != (major, minor) else f"{major}.{minor}"


def version_problem(contract: str, stated: Any) -> str | None:
    """Why a plugin that states this version is refused, or None: this major version and the one before are taken."""
    match stated:
        case None:
            return f"contract is not set; this core keeps {contract} contract {text(VERSIONS[contract])}"
        case (int(major), int(minor)) if _is_version(stated):
            pass
        case _:
            return f"contract is {stated!r}; (major, minor) is expected, such as {VERSIONS[contract]}"
    now = VERSIONS[contract]
    if 0 <= minor <= (now[1] if major == now[0] else LAST_MINOR.get((contract, major), -1)):
        return None
    newer = (major, minor) > now
    step = (
        "update this engine"
        if newer
        else f"see docs/contract-changelog.md for what changed since {major}.{minor}"
    )
    return f"written for {contract} contract {major}.{minor}; this core takes {accepted(contract)}: {step}"


def text(version: Version) -> str:
    """As it is written: "2.0"."""
    return ".".join(map(str, version))


def _is_version(stated: Any) -> bool:
    return isinstance(stated, tuple) and bool not in map(type, cast(tuple[Any, ...], stated))
