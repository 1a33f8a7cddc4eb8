"""Classes that keep a contract: the version that they state, and their methods against what it asks."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.contracts.changelog import Change
from core.contracts.surface import ClassSurface, Method
from core.contracts.validation import method_problem
from core.contracts.versions import CONTRACT_OF, Version, text
from core.plugin_kit.findings import Finding
from core.plugin_kit.lineage import UNREADABLE, Class, Classes, Lineage, literal, value_of
from core.plugin_kit.modules import Modules
from core.plugin_kit.versions import class_of, stated_problem, to_be_set

STATING = frozenset({"platform.Platform", "source.ModelSource"})
"""Classes that state the version of their contract; the others of a plugin are of the same one."""
OPEN = frozenset({"runner.Runner"})
"""Classes that may have public methods beside the contract: a runner's stages are its own affair."""
DECLARATIONS = frozenset({"core.contracts.model.Architecture", "core.contracts.packing.Quantization"})
"""Plain data that states the version of its contract."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """A version that a plugin says it was written for. name: of the class, as its author wrote it."""

    contract: str
    name: str
    path: str
    line: int
    value: Any


def statements(modules: Modules, classes: Classes) -> Iterator[Stated]:
    """Every version that is stated, and None where a finished class states none."""
    for each, lineage in classes.promising():
        if lineage.promise in STATING and classes.is_finished(each):
            found = value_of(lineage.classes, "contract")
            value: Any = None if lineage.whole else UNREADABLE
            line = each.node.lineno
            if found is not None:
                owner, at, value = found
                line = at if owner is each else line
            yield Stated(
                contract=CONTRACT_OF[lineage.promise.partition(".")[0]],
                name=each.node.name,
                path=each.source.path,
                line=line,
                value=value,
            )
    yield from _declarations(modules)


def _declarations(modules: Modules) -> Iterator[Stated]:
    for source, nodes in modules.everything:
        for node, scope in nodes:
            called = modules.home(scope.resolve(node.func)) if isinstance(node, ast.Call) else ""
            if not isinstance(node, ast.Call) or called not in DECLARATIONS:
                continue
            chapter, name = called.split(".")[-2:]
            for keyword in node.keywords:
                if keyword.arg == "contract":
                    yield Stated(
                        contract=CONTRACT_OF[chapter],
                        name=name,
                        path=source.path,
                        line=keyword.value.lineno,
                        value=literal(keyword.value),
                    )


def check_statement(stated: Stated, against: Mapping[str, Version]) -> Iterator[Finding]:
    """Whether a core that keeps the version asked for takes the one that is stated."""
    if stated.value is UNREADABLE:
        message = (
            f"{stated.name}: contract cannot be read here; write it out, such as {against[stated.contract]}"
        )
    else:
        problem = stated_problem(stated.contract, stated.value, against[stated.contract])
        if problem is None:
            return
        message = f"{stated.name}: {problem}"
    breaks = stated.value is not UNREADABLE
    yield Finding(path=stated.path, line=stated.line, rule="contract", message=message, breaks=breaks)


def check_class(each: Class, lineage: Lineage, asked: Version, *, finished: bool) -> Iterator[Finding]:
    """A class's own methods against that version of its contract; of a finished one, also what is missing."""
    surface = class_of(lineage.promise, asked) or ClassSurface()
    problems = list(_problems(each.node, surface.methods, more=lineage.promise in OPEN))
    if finished and lineage.whole:
        problems += [(each.node.lineno, what) for what in _lacking(lineage, surface, asked)]
    for line, problem in problems:
        message = f"{each.node.name}.{problem}; {_where(lineage, asked)}"
        yield Finding(path=each.source.path, line=line, rule="method", message=message, breaks=True)


def check_changes(each: Class, lineage: Lineage, changes: list[Change], kept: Version) -> Iterator[Finding]:
    """Methods that a class overrides and that have changed since the version that it was written for."""
    lines = {name: line for name, line, _ in _members(each.node)}
    for change in changes:
        owner, _, name = change.name.rpartition(".")
        if owner == lineage.promise and name in lines and change.kind != "added":
            yield changed(change, each.source.path, lines[name], kept)


def changed(change: Change, path: str, line: int, kept: Version) -> Finding:
    """A change that a plugin meets when it moves on to the version where it was made."""
    adapted = change.adapted if change.version[0] == kept[0] else ""  # of older ones the adapters are gone
    ending = f"; until then it is {adapted}" if adapted else ""
    return Finding(
        path=path,
        line=line,
        rule="changed",
        message=f"{change.name} {change.kind} in {change.contract} {text(change.version)}: {change.what}; "
        f"{change.todo or 'nothing has to be done'}{ending}",
        breaks=not adapted and bool(change.todo),
    )


def _problems(node: ast.ClassDef, known: Mapping[str, Method], *, more: bool) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of public members. more: there may be others than those that are known."""
    for name, line, given in _members(node):
        if name.startswith("_") or (more and name not in known):
            continue
        problem = _problem(name, given, known)
        if problem is not None:
            yield line, problem


def _lacking(lineage: Lineage, surface: ClassSurface, asked: Version) -> Iterator[str]:
    """What neither a finished class nor a base of it brings. Of the version, `check_statement` tells."""
    brought = {name for ancestor in lineage.classes for name in _defined(ancestor.node)}
    for name, method in surface.methods.items():
        if method.required and name not in brought:
            yield f"{_called(name, method.parameters)} is missing"
    for name in to_be_set(lineage.promise, asked) if lineage.promise in STATING else ():
        if name not in brought and name != "contract":
            yield f"{name} is not set"


def _problem(name: str, given: tuple[str, ...] | None, known: Mapping[str, Method]) -> str | None:
    if given is None:
        expected = _called(name, known[name].parameters) if name in known else ""
        return f"{name} is no plain method; {expected} is expected" if expected else None
    return None if given == _ANYTHING and name in known else method_problem(name, given, known)


_ANYTHING = ("…",)


def _members(node: ast.ClassDef) -> Iterator[tuple[str, int, tuple[str, ...] | None]]:
    """(name, line, parameters) of what a class body defines; None of what cannot be called, _ANYTHING if unknown."""
    for member in node.body:
        match member:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                kinds = {_last(decorator) for decorator in member.decorator_list}
                plain = not kinds & {"property", "cached_property", "setter", "deleter", "classmethod"}
                yield name, member.lineno, parameters(member.args) if plain else None
            case ast.ClassDef(name=name):
                yield name, member.lineno, _ANYTHING
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Lambda(args=arguments)):
                yield name, member.lineno, parameters(arguments)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant()):
                yield name, member.lineno, None
            case _:
                pass


def parameters(arguments: ast.arguments) -> tuple[str, ...]:
    """As `core.contracts.surface.parameters` gives them of a function."""
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [argument.arg for argument in arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return tuple(name for name in names if name != "self")


def _defined(node: ast.ClassDef) -> Iterator[str]:
    """Every name that a class body binds."""
    for statement in node.body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case _:
                stored = (part for part in ast.walk(statement) if isinstance(part, ast.Name))
                yield from (part.id for part in stored if isinstance(part.ctx, ast.Store))


def _last(decorator: ast.expr) -> str:
    """The last name of a decorator: "property", or "setter" of x.setter."""
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    match target:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""


def _called(name: str, given: tuple[str, ...]) -> str:
    return f"{name}({', '.join(given)})"


def _where(lineage: Lineage, asked: Version) -> str:
    chapter, _, name = lineage.promise.partition(".")
    return f"{name} in {CONTRACT_OF[chapter]} contract {text(asked)}"
