"""Which classes stand behind a class of a plugin, up to the class of a contract that it promises to be."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from core.plugin_kit.modules import Modules, Scope
from core.plugin_kit.reading import Source
from core.plugin_kit.versions import CONTRACTS, keeps_promises

_HARMLESS = frozenset({"abc.ABC", "typing.Generic", "typing.Protocol"})
UNREADABLE = object()
"""What stands for a value that only running the code would tell."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Class:
    """A class statement, of the plugin or of the core.

    bases  dotted names, "" of those that nobody here knows
    """

    name: str
    node: ast.ClassDef
    source: Source
    bases: tuple[str, ...]


@dataclass(kw_only=True)
class Lineage:
    """A class and what is behind it.

    classes  itself, then its bases as Python looks them up, as far as they were found
    promise  "chapter.Class" of the contract, if it is one of those; "" otherwise
    whole    every base was found, so that what is nowhere is missing
    """

    classes: list[Class] = field(default_factory=list[Class])
    promise: str = ""
    whole: bool = True


class Classes:
    """Every class of a plugin."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self.own: list[Class] = []
        for _, nodes in modules.everything:
            self.own += [self._class(node, scope) for node, scope in nodes if isinstance(node, ast.ClassDef)]
        self._by_name = {each.name: each for each in reversed(self.own)}
        self._bases = {base for each in self.own for base in each.bases}

    def promising(self) -> Iterator[tuple[Class, Lineage]]:
        """Those that promise to be a contract's class."""
        for each in self.own:
            lineage = self.lineage(each)
            if lineage.promise:
                yield each, lineage

    def is_finished(self, each: Class) -> bool:
        """Whether a class is meant to be used as it is: no other is made from it, and it leaves nothing open."""
        opened = (_is_abstract(node, self._modules.scope(each.source)) for node in each.node.body)
        return each.name not in self._bases and not any(opened)

    def lineage(self, each: Class) -> Lineage:
        """What stands behind a class."""
        found = Lineage()
        self._follow(each, found)
        return found

    def _follow(self, each: Class, found: Lineage) -> None:
        if each in found.classes:
            return
        found.classes.append(each)
        for base in each.bases:
            promise = base.removeprefix(CONTRACTS)
            if base.startswith(CONTRACTS) and keeps_promises(promise):
                found.promise = found.promise or promise
            elif (known := self._by_name.get(base) or self._of_core(base)) is not None:
                self._follow(known, found)
            elif base not in _HARMLESS:
                found.whole = False

    def _of_core(self, dotted: str) -> Class | None:
        module, rest = self._modules.split(dotted)
        source = self._modules.find(module) if len(rest) == 1 else None
        if source is None:
            return None
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and node.name == rest[0]:
                return self._class(node, self._modules.scope(source))
        return None

    def _class(self, node: ast.ClassDef, scope: Scope) -> Class:
        bases = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
        named = tuple(self._modules.home(scope.resolve(base)) for base in bases)
        name = f"{scope.source.module}.{node.name}"
        if scope.names.get(node.name) != name:  # inside a function or another class: nobody can import it
            name = f"{scope.source.path}:{node.lineno}"
        return Class(name=name, node=node, source=scope.source, bases=named)


def value_of(classes: Iterable[Class], attribute: str) -> tuple[Class, int, Any] | None:
    """Where the first of these classes sets an attribute, the line, and the value; None where none does."""
    for each in classes:
        for node in each.node.body:
            for target, value in _assigned(node):
                if isinstance(target, ast.Name) and target.id == attribute:
                    return each, node.lineno, literal(value)
    return None


def literal(node: ast.expr) -> Any:
    """The value of an expression that is plain data, else UNREADABLE."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNREADABLE


def _assigned(node: ast.stmt) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Targets and their values, `a, b = 1, 2` taken apart."""
    match node:
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            yield target, value
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    yield from zip(target.elts, value.elts, strict=False)
                else:
                    yield target, value
        case _:
            pass


def _is_abstract(node: ast.stmt, scope: Scope) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return any(scope.resolve(decorator) == "abc.abstractmethod" for decorator in node.decorator_list)
