"""The contract versions that a plugin's sources are compared with: the one asked for, and the one it states."""

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import Any

from core.contracts.changelog import CHANGES
from core.contracts.surface import ClassSurface, Surface, history
from core.contracts.versions import CONTRACT_OF, VERSIONS, Version, text, version_problem
from core.errors import ConfigError
from core.plugin_kit.modules import CORE

CONTRACTS = "core.contracts."


@cache
def known_versions(contract: str) -> tuple[Version, ...]:
    """Every version of a contract that was written down, oldest first."""
    files = (CORE / "contracts" / "history").glob(f"{contract}-*.json")
    written = (file.name.removeprefix(f"{contract}-").removesuffix(".json") for file in files)
    return tuple(sorted(filter(None, map(_pair, written))))


def asked_version(contract: str, given: str, setting: str) -> Version:
    """A version as the user typed it. Raises ConfigError naming those that exist."""
    version = _pair(given)
    if version is None or version not in known_versions(contract):
        raise ConfigError(f"version {given!r:.40} does not exist; {existing([contract])}", setting=setting)
    return version


def versions_against(given: str | None) -> dict[str, Version]:
    """What each contract is compared with: this core's version, or the one that was asked for where there is one.

    Raises ConfigError when no contract has it.
    """
    versions = dict(VERSIONS)
    if given is None:
        return versions
    wanted = _pair(given)
    having = [contract for contract in VERSIONS if wanted in known_versions(contract)]
    if wanted is None or not having:
        raise ConfigError(f"version {given!r:.40} does not exist; {existing(VERSIONS)}", setting="against")
    return versions | dict.fromkeys(having, wanted)


def existing(contracts: Iterable[str]) -> str:
    """Which versions there are, in words."""
    return "; ".join(
        f"of the {contract} contract there {'is' if len(known_versions(contract)) == 1 else 'are'} "
        f"{', '.join(map(text, known_versions(contract)))}"
        for contract in contracts
    )


def stated_problem(contract: str, stated: Any, kept: Version) -> str | None:
    """Why a core that keeps this version refuses a plugin that states that one; None when it takes it."""
    if kept == VERSIONS[contract]:
        return version_problem(contract, stated)
    match stated:
        case (int(major), int(minor)):
            if major == kept[0] - 1 >= 1 or (major == kept[0] and 0 <= minor <= kept[1]):
                return None
            mend = "" if version_problem(contract, kept) else f": state {kept}, and both take it"
            said = f"written for {contract} contract {major}.{minor}"
            return f"{said}; a core that keeps {text(kept)} refuses it{mend}"
        case _:
            return f"contract is {stated!r}; (major, minor) is expected, such as {kept}"


def surface_of(contract: str, version: Version) -> Surface:
    """The contract in that version. One that was never written down is the last of its major version before it."""
    before = [each for each in known_versions(contract) if each[0] == version[0] and each <= version]
    return history(contract, max(before))


def class_of(name: str, version: Version) -> ClassSurface | None:
    """A class by "chapter.Class", as that version of its contract has it; None when it has none."""
    return surface_of(CONTRACT_OF[name.partition(".")[0]], version).classes.get(name)


def to_be_set(name: str, version: Version) -> tuple[str, ...]:
    """Attributes that a contract's class declares, in that version, and leaves to whoever derives from it."""
    asked = class_of(name, version)
    return tuple(each for each in asked.attributes if not hasattr(_live(name), each)) if asked else ()


def fields_of(name: str, version: Version) -> dict[str, bool]:
    """The fields of a data class, those of its base classes included, and whether each must be given."""
    found: dict[str, bool] = {}
    for each in [name, *_bases(name)]:
        asked = class_of(each, version)
        found |= dict(asked.fields) if asked else {}
    return found


def keeps_promises(name: str) -> bool:
    """Whether plugins bring subclasses of this class, and so all public methods in them are the contract's."""
    if name.partition(".")[0] not in CONTRACT_OF:
        return False
    cls = _live(name)
    return cls is not None and hasattr(cls, "__abstractmethods__") and not getattr(cls, "_is_protocol", False)


def explained(name: str, asked: Version) -> str:
    """The end of a sentence that says that a version lacks something: what the changelog knows about it."""
    for change in CHANGES:
        if change.name == name and change.kind == "added" and change.version > asked:
            return f", it came with {text(change.version)}"
        if change.name == name and change.kind == "removed" and change.version <= asked:
            return f", it was removed in {text(change.version)}: {change.todo or change.what}"
    return ""


def field_explained(name: str, field: str, asked: Version) -> str:
    """The same of a field of a data class, which may be one of a base class's."""
    told = (explained(f"{each}.{field}", asked) for each in [name, *_bases(name)])
    return next(filter(None, told), "")


def _live(name: str) -> Any:
    chapter, _, cls = name.partition(".")
    return getattr(import_module(f"{CONTRACTS}{chapter}"), cls, None)


def _bases(name: str) -> list[str]:
    cls = _live(name)
    ancestors: tuple[type[Any], ...] = cls.__mro__[1:] if isinstance(cls, type) else ()
    named = (f"{each.__module__}.{each.__name__}" for each in ancestors)
    return [each.removeprefix(CONTRACTS) for each in named if each.startswith(CONTRACTS)]


def _pair(given: str) -> Version | None:
    major, dot, minor = given.partition(".")
    whole = all(part.isascii() and part.isdigit() and len(part) < 6 for part in (major, minor))
    version = (int(major), int(minor)) if dot and whole else None
    return version if version is not None and text(version) == given else None
