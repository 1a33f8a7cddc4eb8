"""Finding plugins, and choosing a platform among them.

Each entry point of the group `core.plugins` is loaded on its own: one that fails never takes the others
down; its reason is kept and shown by `llm platforms`, `llm collect-env` and every "no platform" error.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, TypeVar

import pluggy

from core import hookspecs
from core.contracts.model import Architecture, ModelFallback
from core.contracts.packing import Quantization
from core.contracts.platform import Device, Platform
from core.contracts.source import ModelSource
from core.contracts.telemetry import Telemetry
from core.contracts.validation import source_problems, stated_version_problems
from core.errors import ContractViolation, NoPlatform
from core.examination import FoundPlatform, examine, reason_of
from core.integrity import HOUSE, Watch, refusal

_Kept = TypeVar("_Kept")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PluginFailure:
    """A plugin, or a part of one, that is left out, and why."""

    plugin: str
    reason: str

    def __str__(self) -> str:
        return f"failed to load: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """Everything that plugins brought, keyed as the user names it."""

    platforms: tuple[FoundPlatform, ...] = ()
    architectures: dict[str, Architecture] = field(default_factory=dict[str, Architecture])
    fallbacks: dict[str, ModelFallback] = field(default_factory=dict[str, ModelFallback])
    sources: dict[str, ModelSource] = field(default_factory=dict[str, ModelSource])
    quantizations: dict[str, Quantization] = field(default_factory=dict[str, Quantization])
    telemetry: dict[str, Telemetry] = field(default_factory=dict[str, Telemetry])
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
        lines = [f"  {found.name:<10} {found.probe.reason}" for found in self.platforms]
        lines += [f"  {failure.plugin:<10} {failure}" for failure in self.failures]
        return "\n".join(lines or ["  none is installed"]) + "\nSee  llm platforms."


def _opened(found: FoundPlatform) -> tuple[Platform, Device]:
    assert found.platform is not None
    return found.platform, found.probe.devices[0]


@cache
def load_plugins() -> Plugins:
    """Every plugin installed in this environment, loaded once per process."""
    plugins = collect(installed())
    for failure in plugins.failures:
        log.warning("plugin %s %s", failure.plugin, failure)
    for found in plugins.platforms:
        if found.error is not None:
            log.warning("platform %s is %s: %s", found.name, found.state, found.probe.reason)
    return plugins


def installed() -> Iterator[EntryPoint]:
    """The entry points of every distribution. Of one that is there twice, in two versions, those of both."""
    seen: set[tuple[str, str]] = set()
    for distribution in distributions():
        points = distribution.entry_points.select(group=hookspecs.GROUP)
        if points and (origin := _named(distribution)) not in seen:
            seen.add(origin)
            yield from points


def collect(points: Iterable[EntryPoint]) -> Plugins:
    """Load these entry points and gather what they declare. Never raises because of a plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    failures: list[PluginFailure] = []
    watch = Watch()
    origins = _register(manager, watch, points, failures)
    gather = _Gather(manager, watch, failures)

    def platform(plugin: str, declared: Any) -> tuple[str, FoundPlatform]:
        found = examine(declared, *origins[plugin])
        return found.name, found

    return Plugins(
        platforms=tuple(gather.named("core_platforms", "platform", platform).values()),
        architectures=gather.named("core_architectures", "architecture", _declaration("model", Architecture)),
        fallbacks=gather.named(
            "core_model_fallbacks", "model fallback", _declaration("model", ModelFallback)
        ),
        sources=gather.named("core_model_sources", "source", _source),
        quantizations=gather.named(
            "core_quantizations", "quantization", _declaration("quantization", Quantization)
        ),
        telemetry=gather.named("core_telemetry", "telemetry", _declaration("telemetry", Telemetry)),
        aliases=gather.named("core_model_aliases", "alias", _alias),
        failures=tuple(failures),
    )


def _register(
    manager: pluggy.PluginManager, watch: Watch, points: Iterable[EntryPoint], failures: list[PluginFailure]
) -> dict[str, tuple[str, str]]:
    """Load each entry point on its own. Returns the distribution, and its version, of each that was loaded."""
    origins: dict[str, tuple[str, str]] = {}
    for point in sorted(points, key=lambda p: p.name):
        try:
            if point.name in origins:
                there, here = (" ".join(origin) for origin in (origins[point.name], _origin(point)))
                raise ContractViolation(
                    f"a plugin of this name is already there, from {there}; this one is from {here}"
                )
            manager.register(_loaded(point, watch), name=point.name)
            manager.check_pending()
            origins[point.name] = _origin(point)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # some raise what is no Exception
            if point.name not in origins and manager.has_plugin(point.name):
                manager.unregister(name=point.name)
            failures.append(PluginFailure(plugin=point.name, reason=reason_of(error)))
    return origins


def _loaded(point: EntryPoint, watch: Watch) -> Any:
    """A plugin's module. Raises ContractViolation when loading it, or failing to, has replaced something of ours."""
    try:
        return point.load()
    finally:
        _refuse_replacing(watch, point.module)


def _refuse_replacing(watch: Watch, module: str) -> None:
    package = module.partition(".")[0]
    if package not in HOUSE and (replaced := watch.replaced(package)):
        raise ContractViolation(refusal(replaced))


def _origin(point: EntryPoint) -> tuple[str, str]:
    """The distribution that an entry point comes from, and its version."""
    return _named(point.dist) if point.dist else ("unknown", "")


@cache
def _named(distribution: Distribution) -> tuple[str, str]:
    """Its name and version. Reading them parses a file, and one distribution may have a dozen plugins."""
    metadata = distribution.metadata
    return metadata["Name"], metadata["Version"]


class _Gather:
    """Asks each plugin on its own, so that whatever is wrong loses only itself."""

    def __init__(self, manager: pluggy.PluginManager, watch: Watch, failures: list[PluginFailure]) -> None:
        self.manager, self.watch, self.failures = manager, watch, failures

    def named(self, hook: str, noun: str, read: Callable[[str, Any], tuple[str, _Kept]]) -> dict[str, _Kept]:
        """What plugins declare through a hook, by name. A name belongs to the plugin that came first and is not broken.

        read  (plugin, declared item) -> (name, what to keep of it); raises what is wrong with it
        """
        kept: dict[str, _Kept] = {}
        owners: dict[str, str] = {}
        for plugin, item in self._declared(hook, noun):
            try:
                name, value = read(plugin, item)
                self._check(plugin)
                if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise ContractViolation(f"its name is {name!r}; a text is expected")
                wrong = _error(kept[name]) if name in kept else None
                if name in kept and wrong is None:
                    raise ContractViolation(f"{name!r} is already taken by {owners[name]}")
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._fail(plugin, noun, error)
                continue
            if name in kept:
                self._fail(owners[name], noun, ContractViolation(f"{name!r} {wrong}"))
            kept[name], owners[name] = value, plugin
        return kept

    def _declared(self, hook: str, noun: str) -> Iterator[tuple[str, Any]]:
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            plugin = implementation.plugin_name
            try:
                answer: Any = implementation.function()
                items: list[Any] = list(answer.items() if isinstance(answer, dict) else answer)  # pyright: ignore[reportUnknownArgumentType]
                self._check(plugin)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._fail(plugin, noun, error)
                continue
            for item in items:
                yield plugin, item

    def _check(self, plugin: str) -> None:
        """Raises ContractViolation when the plugin has replaced something of ours since anybody looked."""
        module: Any = self.manager.get_plugin(plugin)
        _refuse_replacing(self.watch, module.__name__)

    def _fail(self, plugin: str, noun: str, error: BaseException) -> None:
        self.failures.append(PluginFailure(plugin=plugin, reason=f"its {noun}: {reason_of(error)}"))


def _error(kept: Any) -> str | None:
    """What is wrong with something that was kept in spite of it."""
    return kept.error if isinstance(kept, FoundPlatform) else None


_Declared = TypeVar("_Declared", Architecture, ModelFallback, Quantization, Telemetry)


def _declaration(contract: str, kind: type[_Declared]) -> Callable[[str, Any], tuple[str, _Declared]]:
    """Reads plain data that a plugin declares: of the right class, and written for a version that is taken."""

    def read(plugin: str, declared: Any) -> tuple[str, _Declared]:
        if not isinstance(declared, kind):
            raise ContractViolation(f"{declared!r} is not a {kind.__module__}.{kind.__name__}")
        if problems := stated_version_problems(contract, declared):
            raise ContractViolation("; ".join(problems))
        return declared.name, declared

    return read


def _source(plugin: str, declared: Any) -> tuple[str, ModelSource]:
    if problems := source_problems(declared):
        raise ContractViolation("; ".join(problems))
    return declared.scheme, declared()


def _alias(plugin: str, declared: Any) -> tuple[str, str]:
    match declared:
        case (str(name), str(target)):
            return name, target
        case _:
            raise ContractViolation(f"{declared!r} is not a name and the model that it stands for")
