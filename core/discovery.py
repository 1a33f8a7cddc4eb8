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
from typing import Any, TypeVar

import pluggy

from core import hookspecs
from core.contracts import CONTRACT_VERSION
from core.contracts.model import Architecture
from core.contracts.platform import Device, Platform, Probe
from core.contracts.source import ModelSource
from core.errors import ContractViolation, CoreError, NoPlatform

_Kept = TypeVar("_Kept")


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
            usable = [
                f for f in self.platforms if f.probe.available and f.platform and f.platform.priority >= 0
            ]
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
    distributions = _register(manager, points, failures)
    gather = _Gather(manager, failures)

    def platform(plugin: str, declared: Any) -> tuple[str, FoundPlatform]:
        found = _examine(declared, distributions[plugin])
        return found.name, found

    return Plugins(
        platforms=tuple(gather.named("core_platforms", "platform", platform).values()),
        architectures=gather.named("core_architectures", "architecture", _architecture),
        sources=gather.named("core_model_sources", "source", _source),
        aliases=gather.named("core_model_aliases", "alias", _alias),
        failures=tuple(failures),
    )


def _register(
    manager: pluggy.PluginManager, points: Iterable[EntryPoint], failures: list[PluginFailure]
) -> dict[str, str]:
    """Load each entry point on its own. Returns the distribution of each plugin that was loaded."""
    distributions: dict[str, str] = {}
    for point in sorted(points, key=lambda p: p.name):
        if point.name in distributions:
            reason = f"a plugin of this name is already there, from {distributions[point.name]}"
            failures.append(PluginFailure(plugin=point.name, reason=reason))
            continue
        try:
            manager.register(point.load(), name=point.name)
            manager.check_pending()
            distributions[point.name] = point.dist.name if point.dist else "unknown"
        except (Exception, SystemExit) as error:
            if manager.has_plugin(point.name):
                manager.unregister(name=point.name)
            failures.append(PluginFailure(plugin=point.name, reason=_reason(error)))
    return distributions


class _Gather:
    """Asks each plugin on its own, so that whatever is wrong loses only itself."""

    def __init__(self, manager: pluggy.PluginManager, failures: list[PluginFailure]) -> None:
        self.manager = manager
        self.failures = failures

    def named(self, hook: str, noun: str, read: Callable[[str, Any], tuple[str, _Kept]]) -> dict[str, _Kept]:
        """What plugins declare through a hook, by name. A name belongs to the plugin that came first.

        read  (plugin, declared item) -> (name, what to keep of it); raises what is wrong with it
        """
        kept: dict[str, _Kept] = {}
        owners: dict[str, str] = {}
        for plugin, item in self._declared(hook, noun):
            try:
                name, value = read(plugin, item)
            except (Exception, SystemExit) as error:
                self._fail(plugin, noun, error)
                continue
            if name in kept:
                taken = ContractViolation(f"{name!r} is already taken by {owners[name]}")
                self._fail(plugin, noun, taken)
            else:
                kept[name], owners[name] = value, plugin
        return kept

    def _declared(self, hook: str, noun: str) -> Iterator[tuple[str, Any]]:
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            plugin = implementation.plugin_name
            try:
                answer: Any = implementation.function()
                items: list[Any] = list(answer.items() if isinstance(answer, dict) else answer)  # pyright: ignore[reportUnknownArgumentType]
            except (Exception, SystemExit) as error:
                self._fail(plugin, noun, error)
                continue
            for item in items:
                yield plugin, item

    def _fail(self, plugin: str, noun: str, error: BaseException) -> None:
        self.failures.append(PluginFailure(plugin=plugin, reason=f"its {noun}: {_reason(error)}"))


def _architecture(plugin: str, declared: Any) -> tuple[str, Architecture]:
    if not isinstance(declared, Architecture):
        raise ContractViolation(f"{declared!r} is not a core.contracts.model.Architecture")
    return declared.name, declared


def _source(plugin: str, declared: Any) -> tuple[str, ModelSource]:
    if not (isinstance(declared, type) and issubclass(declared, ModelSource)):
        raise ContractViolation(f"{declared!r} is not a subclass of core.contracts.source.ModelSource")
    if problems := _version_problems(declared):
        raise ContractViolation("; ".join(problems))
    return declared.scheme, declared()


def _alias(plugin: str, declared: Any) -> tuple[str, str]:
    match declared:
        case (str(name), str(target)):
            return name, target
        case _:
            raise ContractViolation(f"{declared!r} is not a name and the model that it stands for")


def _examine(declared: Any, distribution: str) -> FoundPlatform:
    """Check a platform class against the contract, then probe it. Raises when it has not even a name."""
    error = "; ".join(contract_problems(declared)) or None
    name = getattr(declared, "name", None)
    if not isinstance(name, str):
        raise ContractViolation(error or f"name is {name!r}")
    platform: Platform | None = None
    probe = Probe(available=False, reason=f"breaks its contract: {error}")
    if error is None:
        try:
            platform = declared()
            probe = _checked(declared.probe(platform))
        except (Exception, SystemExit) as raised:
            error = _reason(raised)
            platform, probe = None, Probe(available=False, reason=f"its probe failed: {error}")
    return FoundPlatform(
        name=name,
        distribution=distribution,
        summary=str(getattr(declared, "summary", "")),
        device_type=str(getattr(declared, "device_type", "")),
        contract=getattr(declared, "contract", (0, 0)),
        platform=platform,
        probe=probe,
        error=error,
    )


def _checked(probe: Any) -> Probe:
    if not isinstance(probe, Probe):
        raise ContractViolation(f"probe() must return a Probe, not {probe!r}")
    devices: tuple[Any, ...] = probe.devices
    if (probe.available and not devices) or not all(isinstance(device, Device) for device in devices):
        raise ContractViolation(
            "probe() must return a Probe with devices, each a Device, when it is available"
        )
    if not isinstance(probe.reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ContractViolation(f"probe() must give its reason as a text, not {probe.reason!r}")
    return probe


def contract_problems(cls: Any) -> list[str]:
    """Everything in which a platform class departs from `Platform`; empty when it keeps the contract."""
    if not (isinstance(cls, type) and issubclass(cls, Platform)):
        return [f"{cls!r} is not a subclass of core.contracts.platform.Platform"]
    problems = _attribute_problems(cls) + _version_problems(cls)
    problems += [f"{method}() is missing" for method in sorted(cls.__abstractmethods__)]
    known = {name: member for name, member in vars(Platform).items() if not name.startswith("_")}
    for base in cls.__mro__[: cls.__mro__.index(Platform)]:
        for name, member in vars(base).items():
            if not name.startswith("_") and (callable(member) or callable(known.get(name))):
                problems += _method_problems(name, member, known)
    return problems


def _attribute_problems(cls: type[Platform]) -> list[str]:
    problems: list[str] = []
    for attribute, kind in (("name", str), ("device_type", str), ("priority", int)):
        value = getattr(cls, attribute, None)
        if value is None or value == "":
            problems.append(f"{attribute} is not set")
        elif not isinstance(value, kind):
            problems.append(
                f"{attribute} is {value!r}; {'a text' if kind is str else 'a whole number'} is expected"
            )
    return problems


def _version_problems(cls: type[Any]) -> list[str]:
    """A plugin may be written for this contract or for an older minor version of it."""
    version: Any = getattr(cls, "contract", None)
    if version is None:
        return ["contract is not set"]
    match version:
        case (int(major), int(minor)) if major == CONTRACT_VERSION[0] and 0 <= minor <= CONTRACT_VERSION[1]:
            return []
        case _:
            return [f"written for contract {version}; this core keeps {CONTRACT_VERSION}"]


def _method_problems(name: str, member: Any, known: dict[str, Any]) -> list[str]:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]}?" if close else "; name private methods with a leading underscore"
        return [f"{name}() is not part of the contract{hint}"]
    expected = list(inspect.signature(known[name]).parameters)
    try:
        actual = list(inspect.signature(member).parameters)
    except (TypeError, ValueError):
        return [f"{name} is {member!r}; {name}({', '.join(expected)}) is expected"]
    if expected != actual:
        return [f"{name}({', '.join(actual)}) should be {name}({', '.join(expected)})"]
    return []


def _reason(error: BaseException) -> str:
    """One line of at most 300 characters."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, CoreError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
