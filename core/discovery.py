"""Finding plugins, and choosing a platform among them.

Each entry point of the group `core.plugins` is loaded on its own: one that fails never takes the others
down; its reason is kept and shown by `llm platforms`, `llm collect-env` and every "no platform" error.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from core import hookspecs
from core.contracts import CONTRACT_VERSION
from core.contracts.model import Architecture
from core.contracts.platform import Device, Platform, Probe
from core.contracts.source import ModelSource
from core.errors import NoPlatform


@dataclass(frozen=True, kw_only=True)
class PluginFailure:
    """A plugin, or a part of one, that is left out, and why."""

    plugin: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FoundPlatform:
    """One platform package. `platform` is None when it broke its contract; `error` says how."""

    name: str
    distribution: str
    summary: str
    device_type: str
    contract: tuple[int, int]
    platform: Platform | None
    probe: Probe
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """Everything that plugins brought, keyed as the user names it."""

    platforms: tuple[FoundPlatform, ...] = ()
    architectures: dict[str, Architecture] = field(default_factory=dict[str, Architecture])
    sources: dict[str, ModelSource] = field(default_factory=dict[str, ModelSource])
    aliases: dict[str, str] = field(default_factory=dict[str, str])
    failures: tuple[PluginFailure, ...] = ()

    def select_platform(self, name: str) -> tuple[Platform, Device]:
        """The named platform and its first device, or for "auto" the one of highest priority that can run.

        A named platform fails closed: NoPlatform states its own reason. Platforms of negative priority
        run only when they are named.
        """
        if name == "auto":
            usable = [f for f in self.platforms if f.probe.available and f.platform and f.platform.priority >= 0]
            if not usable:
                raise NoPlatform(f"no platform can run on this machine.\n{self._reasons()}")
            best = max(usable, key=lambda f: f.platform.priority if f.platform else 0)
            return _opened(best)
        for found in self.platforms:
            if found.name == name:
                if not found.probe.available or found.platform is None:
                    raise NoPlatform(f"platform {name} cannot run: {found.probe.reason}")
                return _opened(found)
        names = [f.name for f in self.platforms]
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise NoPlatform(f"no platform is named {name!r}; {hint}installed:\n{self._reasons()}")

    def _reasons(self) -> str:
        lines = [f"  {f.name:<10} {f.probe.reason}" for f in self.platforms]
        lines += [f"  {f.plugin:<10} failed to load: {f.reason}" for f in self.failures]
        return "\n".join(lines or ["  none is installed"]) + "\nSee  llm platforms."


def _opened(found: FoundPlatform) -> tuple[Platform, Device]:
    assert found.platform is not None
    return found.platform, found.probe.devices[0]


@cache
def load_plugins() -> Plugins:
    """Every plugin installed in this environment, loaded once per process."""
    return collect(entry_points(group=hookspecs.GROUP))


def collect(points: Iterable[EntryPoint]) -> Plugins:
    """Load these entry points and gather what they declare. Never raises because of a plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    failures: list[PluginFailure] = []
    origin: dict[str, str] = {}
    for point in sorted(points, key=lambda p: p.name):
        distribution = point.dist.name if point.dist else "unknown"
        try:
            manager.register(point.load(), name=point.name)
            manager.check_pending()
            origin[point.name] = distribution
        except (Exception, SystemExit) as error:
            if manager.has_plugin(point.name):
                manager.unregister(name=point.name)
            failures.append(PluginFailure(plugin=point.name, reason=_reason(error)))
    gather = _Gather(manager, failures)
    platforms = [
        _examine(cls, origin[plugin], failures) for plugin, cls in gather.items("core_platforms", "platforms")
    ]
    return Plugins(
        platforms=_unique(platforms, failures),
        architectures={a.name: a for _, a in gather.items("core_architectures", "architectures")},
        sources=_sources(gather, failures),
        aliases=dict(pair for _, pair in gather.items("core_model_aliases", "aliases")),
        failures=tuple(failures),
    )


class _Gather:
    """Calls one hook of each plugin on its own, so that a raising one loses only its own answer."""

    def __init__(self, manager: pluggy.PluginManager, failures: list[PluginFailure]) -> None:
        self.manager = manager
        self.failures = failures

    def items(self, hook: str, noun: str) -> Iterator[tuple[str, Any]]:
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                answer = implementation.function()
                found = list(answer.items() if isinstance(answer, dict) else answer)  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
            except Exception as error:
                self.failures.append(
                    PluginFailure(plugin=implementation.plugin_name, reason=f"its {noun}: {_reason(error)}")
                )
                continue
            for item in found:  # pyright: ignore[reportUnknownVariableType]
                yield implementation.plugin_name, item


def _sources(gather: _Gather, failures: list[PluginFailure]) -> dict[str, ModelSource]:
    sources: dict[str, ModelSource] = {}
    for plugin, cls in gather.items("core_model_sources", "sources"):
        try:
            sources[cls.scheme] = cls()
        except Exception as error:
            failures.append(PluginFailure(plugin=plugin, reason=f"its sources: {_reason(error)}"))
    return sources


def _unique(platforms: list[FoundPlatform | None], failures: list[PluginFailure]) -> tuple[FoundPlatform, ...]:
    """The first platform of each name; a second claim is a failure of the later plugin."""
    kept: dict[str, FoundPlatform] = {}
    for found in platforms:
        if found is None:
            continue
        if found.name in kept:
            owner = kept[found.name].distribution
            failures.append(
                PluginFailure(plugin=found.distribution, reason=f"platform {found.name} is already taken by {owner}")
            )
        else:
            kept[found.name] = found
    return tuple(kept.values())


def _examine(cls: Any, distribution: str, failures: list[PluginFailure]) -> FoundPlatform | None:
    """Check a platform class against the contract, then probe it."""
    problems = contract_problems(cls)
    name = getattr(cls, "name", None)
    if not isinstance(name, str):
        failures.append(PluginFailure(plugin=distribution, reason="; ".join(problems)))
        return None
    error = "; ".join(problems) or None
    platform: Platform | None = None
    probe = Probe(available=False, reason=f"breaks its contract: {error}")
    if error is None:
        try:
            platform = cls()
            probe = cls.probe(platform)
            if not isinstance(probe, Probe) or (probe.available and not probe.devices):
                raise TypeError("probe() must return a Probe, with devices when it is available")
        except Exception as raised:
            error = _reason(raised)
            platform, probe = None, Probe(available=False, reason=f"its probe failed: {error}")
    return FoundPlatform(
        name=name,
        distribution=distribution,
        summary=getattr(cls, "summary", ""),
        device_type=getattr(cls, "device_type", ""),
        contract=getattr(cls, "contract", (0, 0)),
        platform=platform,
        probe=probe,
        error=error,
    )


def contract_problems(cls: Any) -> list[str]:
    """Everything in which a platform class departs from `Platform`; empty when it keeps the contract."""
    if not (isinstance(cls, type) and issubclass(cls, Platform)):
        return [f"{cls!r} is not a subclass of core.contracts.platform.Platform"]
    problems = [
        f"{attribute} is not set" for attribute in ("name", "device_type", "contract") if attribute not in _attributes(cls)
    ]
    version = getattr(cls, "contract", CONTRACT_VERSION)
    if not (isinstance(version, tuple) and len(version) == 2 and version[0] == CONTRACT_VERSION[0]):  # pyright: ignore[reportUnnecessaryIsInstance]
        problems.append(f"written for contract {version}; this core keeps {CONTRACT_VERSION}")
    problems += [f"{method}() is missing" for method in sorted(cls.__abstractmethods__)]
    known = {name: member for name, member in vars(Platform).items() if not name.startswith("_")}
    for base in cls.__mro__[: cls.__mro__.index(Platform)]:
        for name, member in vars(base).items():
            if not name.startswith("_") and callable(member):
                problems += _method_problems(name, member, known)
    return problems


def _attributes(cls: type[Platform]) -> set[str]:
    return {name for base in cls.__mro__ for name in vars(base)}


def _method_problems(name: str, member: Callable[..., Any], known: dict[str, Any]) -> list[str]:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]}?" if close else "; name private methods with a leading underscore"
        return [f"{name}() is not part of the contract{hint}"]
    expected = list(inspect.signature(known[name]).parameters)
    actual = list(inspect.signature(member).parameters)
    if expected != actual:
        return [f"{name}({', '.join(actual)}) should be {name}({', '.join(expected)})"]
    return []


def _reason(error: BaseException) -> str:
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
