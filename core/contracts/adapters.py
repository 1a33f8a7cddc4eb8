"""Plugins written for the major version before this one, made to keep this one. One adapter for each contract.

An adapter says what changed, in code: it hands a method the arguments that it knew, and fills in what it could not
know. Additions need none, because what is new has a default.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.contracts.platform import Device, Platform
from core.contracts.versions import VERSIONS

if TYPE_CHECKING:
    from core.contracts.communication import Communication, Group


def adapt(cls: type[Platform]) -> type[Platform]:
    """A platform class that was found to keep the version it states, as one of this version."""
    adapter = _PLATFORM.get(cls.contract[0])
    return cls if adapter is None or cls.contract[0] == VERSIONS["platform"][0] else adapter(cls)


def _platform_1(cls: type[Platform]) -> type[Platform]:
    """Since 2.0 `communication` is told the device, too."""
    before: Any = cls.communication

    class Adapted(cls):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
        def communication(self, group: "Group", device: Device | None = None) -> "Communication | None":
            if before is Platform.communication:
                return None
            return before(self, group)

    Adapted.__name__, Adapted.__qualname__ = cls.__name__, cls.__qualname__
    Adapted.__module__, Adapted.__doc__ = cls.__module__, cls.__doc__
    return Adapted


_PLATFORM: dict[int, Callable[[type[Platform]], type[Platform]]] = {1: _platform_1}
