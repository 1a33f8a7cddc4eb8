"""What a plugin takes from the core and its neighbours, and whether anybody promised that it would stay.

Public is what the contracts say, what they are proven and served with, the layers that models are built from, and
what platforms begin with: a device that torch knows, the C++ kernels, the stages of the runner.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches

import core
from core.contracts.versions import CONTRACT_OF, Version, text
from core.integrity import HOUSE
from core.plugin_kit.findings import Finding
from core.plugin_kit.modules import CORE, Modules, Scope, absolute, bindings, core_module
from core.plugin_kit.reading import Source
from core.plugin_kit.versions import CONTRACTS, class_of, explained, known_versions

PUBLIC = (
    "core.contracts",
    "core.hookspecs",
    "core.errors",
    "core.conformance",
    "core.reference",
    "core.layers",
    "core.accelerator",
    "core.probing",
    "core.native",
    "core.execution.runner",
    "core.execution.inputs",
    "core.execution.sampler",
    "core.engine.async_engine",
    "core.outputs",
)
"""Modules of the core that plugins may use, with everything below them; and the names of `core.__all__`."""

_LOADERS = frozenset({"importlib.import_module", "importlib.util.find_spec"})
_PRIVATE = " is private: it may change without notice"

Taken = tuple[int, str, str]
"""(line, module, name); the name is "" where the module itself is taken, "*" for all of it."""


def check_imports(
    source: Source,
    nodes: list[tuple[ast.AST, Scope]],
    modules: Modules,
    against: Mapping[str, Version],
    stated: Mapping[str, Version],
) -> Iterator[Finding]:
    """Everything that a file takes by import, or by its dotted name.

    against, stated  versions by contract: asked for, and what the plugin says it was written for
    """
    for line, module, name in [*_imports(nodes), *_dotted(nodes, modules)]:
        taken = module if name in ("", "*") else f"{module}.{name}"
        top = module.partition(".")[0]
        if top not in HOUSE or modules.is_own(taken):
            continue
        if top != "core":
            found = "house", f"{taken} is of a part of the engine that promises plugins nothing", False
        elif _is_contract_class(module, name):
            found = _of_contract(module, name, against, stated)
        else:
            found = _of_core(module, name)
        if found is not None:
            rule, message, breaks = found
            yield Finding(path=source.path, line=line, rule=rule, message=message, breaks=breaks)


def used_contracts(modules: Modules) -> set[str]:
    """The contracts that a plugin has to do with: those whose chapters it imports."""
    taken = {f"{module}.{name}." for _, nodes in modules.everything for _, module, name in _imports(nodes)}
    chapters = {
        name.removeprefix(CONTRACTS).partition(".")[0] for name in taken if name.startswith(CONTRACTS)
    }
    return {CONTRACT_OF[chapter] for chapter in chapters & CONTRACT_OF.keys()}


def is_public(module: str) -> bool:
    """Whether plugins may use a module of the core."""
    return module == "core" or any(f"{module}.".startswith(f"{public}.") for public in PUBLIC)


def _imports(nodes: list[tuple[ast.AST, Scope]]) -> Iterator[Taken]:
    for node, scope in nodes:
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name, "") for alias in names)
            case ast.ImportFrom(names=names):
                module = absolute(node, scope.source)
                yield from ((node.lineno, module, alias.name) for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(module)), *_]):
                built_in = isinstance(function, ast.Name) and function.id == "__import__"
                if built_in or scope.resolve(function) in _LOADERS:
                    yield node.lineno, module, ""
            case _:
                pass


def _dotted(nodes: list[tuple[ast.AST, Scope]], modules: Modules) -> Iterator[Taken]:
    """Names that are reached through a module, as in core.config.parse_bytes, where no import has told of it."""
    told = {place for _, module, name in _imports(nodes) for place in (module, f"{module}.{name}")}
    for node, scope in nodes:
        dotted = scope.resolve(node)
        if not isinstance(node, ast.Attribute) or dotted.partition(".")[0] != "core":
            continue
        module, rest = modules.split(dotted)
        enough = module in told and not is_public(module) and _exists(module, rest[0] if rest else "")
        if len(rest) == 1 and not enough:
            yield node.lineno, module, rest[0]


def _of_core(module: str, name: str) -> tuple[str, str, bool] | None:
    """(rule, message, breaks) about what the core does not have, or does not promise to keep."""
    if core_module(module) is None:
        owner, _, last = module.rpartition(".")
        return "missing", f"{owner or module} has no {last}{_meant(last, _below(owner))}", True
    taken = module if name in ("", "*") else f"{module}.{name}"
    if taken == module or (core_module(taken) is not None and name not in core.__all__):
        return None if is_public(taken) else ("private", f"{taken}{_PRIVATE}", False)
    if not _exists(module, name):
        return "missing", f"{module} has no {name}{_meant(name, _names(module))}", True
    listed = module != "core" or name in core.__all__ or name.startswith("__")
    hidden = name.startswith("_") and not name.startswith("__")
    if hidden or not listed or not is_public(module):
        return "private", f"{taken}{_PRIVATE}", False
    home = _names(module).get(name, "")
    if home and not home.startswith(f"{module}.") and not _is_package(module):
        return "private", f"{taken} is there only because that module imports it; take {home}", False
    return None


def _is_contract_class(module: str, name: str) -> bool:
    """Whether some version of a contract has a class of this name in this chapter. Only classes are on record."""
    chapter = module.removeprefix(CONTRACTS)
    if not module.startswith(CONTRACTS) or chapter not in CONTRACT_OF:
        return False
    return any(class_of(f"{chapter}.{name}", version) for version in known_versions(CONTRACT_OF[chapter]))


def _of_contract(
    module: str, name: str, against: Mapping[str, Version], stated: Mapping[str, Version]
) -> tuple[str, str, bool] | None:
    """About a class that the version asked for does not have, or the one that is stated."""
    chapter = module.removeprefix(CONTRACTS)
    contract, cls = CONTRACT_OF[chapter], f"{chapter}.{name}"
    asked, written = against[contract], stated.get(contract, against[contract])
    if class_of(cls, asked) is None:
        return (
            "missing",
            f"{module}.{name} is not in {contract} contract {text(asked)}{explained(cls, asked)}",
            True,
        )
    if written < asked and class_of(cls, written) is None:
        said = f"{contract} contract {text(written)}, which is stated"
        return "missing", f"{module}.{name} is not in {said}{explained(cls, written)}", False
    return None


def _names(module: str) -> Mapping[str, str]:
    """What a module of the core binds at its top."""
    source = core_module(module)
    return bindings(source.tree.body, source) if source else {}


def _exists(module: str, name: str) -> bool:
    return name in _names(module) or (name.startswith("__") and name.endswith("__"))


def _is_package(module: str) -> bool:
    source = core_module(module)
    return source is not None and source.package


def _below(module: str) -> list[str]:
    """Names of the modules in a package of the core."""
    folder = CORE.joinpath(*module.split(".")[1:])
    return [path.stem for path in folder.iterdir()] if folder.is_dir() else []


def _meant(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f", did you mean {close[0]}?" if close else ""
