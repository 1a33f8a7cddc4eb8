"""Whether anybody has replaced something of ours: plugins patch nothing, because what they need has a seam.

A `Watch` remembers functions, classes and constants of our modules, and what those classes are made of. What differs
later was replaced, and is put back. Of a module that was loaded in between, what comes from a plugin's own package
gives it away.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, cast

HOUSE = ("core", "platforms", "plugins", "models", "server", "cli")

_WATCHED = (FunctionType, type, classmethod, staticmethod, property)


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """One attribute of ours that is somebody else's now. `ours` is None where it was never seen as it should be."""

    owner: Any
    name: str
    ours: Any

    def put_back(self) -> None:
        """Undo it, where what was there before is known."""
        if self.ours is not None:
            setattr(self.owner, self.name, self.ours)

    def __str__(self) -> str:
        where = self.owner.__name__ if isinstance(self.owner, ModuleType) else _path(self.owner)
        return f"{where}.{self.name}"


class Watch:
    """Our modules as they were when it was made, or when they were seen first."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[Any, str, Any]]] = {}
        self._look()

    def replaced(self, package: str) -> list[Replacement]:
        """What has changed since the last look, everything from `package` among it. Looks again, and puts it back."""
        found = [
            Replacement(owner=owner, name=name, ours=ours)
            for members in self._seen.values()
            for owner, name, ours in members
            if _now(owner, name) is not ours
        ]
        found += foreign(package, skip=self._seen)
        for each in found:
            each.put_back()
        self._look()
        return found

    def _look(self) -> None:
        for name, module in _modules():
            if name not in self._seen:
                self._seen[name] = list(_members(module))


def foreign(package: str, skip: Mapping[str, Any] | None = None) -> list[Replacement]:
    """Members of our modules that were defined in this package, which is not ours and which none of us imports."""
    if package in HOUSE:
        return []
    return [
        Replacement(owner=owner, name=member, ours=None)
        for name, module in _modules()
        if skip is None or name not in skip
        for owner, member, now in _members(module)
        if _home(now) == package
    ]


def refusal(replaced: list[Replacement]) -> str:
    """What a plugin is told that did this."""
    listed = ", ".join(str(each) for each in replaced)
    return f"replaced {listed}; plugins replace nothing of the core's: ask for a seam where one is missing"


def _modules() -> Iterator[tuple[str, ModuleType]]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in HOUSE and isinstance(module, ModuleType):  # pyright: ignore[reportUnnecessaryIsInstance]
            yield name, module


def _members(module: ModuleType) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, member) of a module's functions, classes and constants, and of what its own classes are made of."""
    for name, member in list(vars(module).items()):
        if isinstance(member, _WATCHED) or name.isupper():
            yield module, name, member
        if isinstance(member, type) and member.__module__ == module.__name__:
            for part, value in list(vars(member).items()):
                if isinstance(value, _WATCHED):
                    yield member, part, value


def _now(owner: Any, name: str) -> Any:
    return cast(Mapping[str, Any], vars(owner)).get(name)


def _home(member: Any) -> str:
    """The top-level package that something was defined in."""
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    if isinstance(function, FunctionType):  # a wrapper may call itself what it wraps
        return str(function.__globals__.get("__name__", "")).partition(".")[0]
    return str(getattr(function, "__module__", "")).partition(".")[0]


def _path(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
