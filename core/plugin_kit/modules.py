"""What a name in a plugin's sources stands for: "core.contracts.platform.Device", or nothing that we know.

Modules of the core are looked up in its own files, parsed as the plugin's are; neither is imported.
"""

import ast
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from core.plugin_kit.reading import Source, parsed

CORE = Path(__file__).resolve().parent.parent
"""The folder of the core."""

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_MOST_REEXPORTS = 8


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Where a piece of code stands. names: what each name there was imported as; "" for anything else."""

    source: Source
    names: Mapping[str, str]

    def resolve(self, node: ast.AST) -> str:
        """The dotted name behind `a` or `a.b.c`; "" when it begins with something that was not imported."""
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
        first = self.names.get(node.id, "") if isinstance(node, ast.Name) else ""
        return ".".join([first, *attributes]) if first else ""

    def inside(self, function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> "Scope":
        """The scope of a function's body: its parameters and own names hide those of the module."""
        listed = function.args
        given = [*listed.posonlyargs, *listed.args, *listed.kwonlyargs, listed.vararg, listed.kwarg]
        hidden = {argument.arg: "" for argument in given if argument is not None}
        body = [] if isinstance(function, ast.Lambda) else function.body
        return replace(self, names={**self.names, **hidden, **bindings(body, self.source, local=True)})


def bindings(body: Iterable[ast.stmt], source: Source, *, local: bool = False) -> dict[str, str]:
    """What the names that a block binds stand for. local: the block is a function's."""
    assigned: dict[str, str] = {}
    known: dict[str, str] = {}
    for node in _block(body):
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                assigned[name] = ""
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                known[name] = "" if local else f"{source.module}.{name}"
            case ast.Import():
                known |= dict(_named(alias) for alias in node.names)
            case ast.ImportFrom():
                known |= _imported(node, source)
            case _:
                pass
    return assigned | known


def absolute(node: ast.ImportFrom, source: Source) -> str:
    """The module that names are imported from: "." is the package that the file is in."""
    if not node.level:
        return node.module or ""
    parts = source.module.split(".") if source.module else []
    up = node.level - 1 if source.package else node.level
    parts = parts[: len(parts) - up] if up <= len(parts) else []
    return ".".join([*parts, *([node.module] if node.module else [])])


def walk(tree: ast.AST, scope: Scope) -> Iterator[tuple[ast.AST, Scope]]:
    """Everything in a tree, in the order in which it is written, each with the scope that it stands in."""
    pending = [(tree, scope)]
    while pending:
        node, scope = pending.pop()
        yield node, scope
        inner = scope.inside(node) if isinstance(node, _FUNCTIONS) else scope
        pending.extend((child, inner) for child in reversed(list(ast.iter_child_nodes(node))))


@cache
def core_module(module: str) -> Source | None:
    """A module of this core, parsed; None when there is none of that name."""
    first, *rest = module.split(".")
    # The core's modules are in lower case; where files are not, LLM would be found as llm.py.
    if first != "core" or not all(part.isidentifier() and part.islower() for part in rest):
        return None
    place = CORE.joinpath(*rest)
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        return None
    found = parsed(file, str(file))
    return replace(found, module=module) if isinstance(found, Source) else None


class Modules:
    """The plugin's modules and the core's, by name."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self.sources = list(sources)
        self._own: dict[str, Source] = {}
        for source in self.sources:
            self._own.setdefault(source.module, source)
        self._scopes: dict[str, Scope] = {}

    @cached_property
    def everything(self) -> list[tuple[Source, list[tuple[ast.AST, Scope]]]]:
        """Every node of every file of the plugin."""
        return [(source, list(walk(source.tree, self.scope(source)))) for source in self.sources]

    def is_own(self, dotted: str) -> bool:
        """Whether a name belongs to the plugin itself."""
        parts = dotted.split(".")
        fronts = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
        return parts[0] != "core" and any(front in self._own for front in fronts)

    def find(self, module: str) -> Source | None:
        """A module of the plugin or of the core."""
        return self._own.get(module) if self.is_own(module) else core_module(module)

    def scope(self, source: Source) -> Scope:
        """What is known at the top of a module, names that it imports with a star included."""
        found = self._scopes.get(source.module)
        if found is None or found.source is not source:
            starred: dict[str, str] = {}
            for node in _block(source.tree.body):
                if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                    starred |= self._public(absolute(node, source), source)
            found = Scope(source=source, names=starred | bindings(source.tree.body, source))
            self._scopes[source.module] = found
        return found

    def split(self, dotted: str) -> tuple[str, list[str]]:
        """The longest module in front of a dotted name, and what follows; ("", …) when none is known."""
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            module = ".".join(parts[:length])
            if self.find(module) is not None:
                return module, parts[length:]
        return "", parts

    def home(self, dotted: str) -> str:
        """Where something is defined that was imported from a module that imports it, too."""
        for _ in range(_MOST_REEXPORTS):
            module, rest = self.split(dotted)
            source = self.find(module) if module and rest else None
            if source is None:
                break
            bound = self.scope(source).names.get(rest[0], "")
            target = ".".join([bound, *rest[1:]])
            if not bound or target == dotted:
                break
            dotted = target
        return dotted

    def _public(self, module: str, importer: Source) -> dict[str, str]:
        source = self.find(module)
        if source is None or source is importer:
            return {}
        names = bindings(source.tree.body, source)
        return {name: f"{module}.{name}" for name in names if not name.startswith("_")}


def _named(alias: ast.alias) -> tuple[str, str]:
    """`import a.b` binds a, `import a.b as c` binds c."""
    top = alias.name.partition(".")[0]
    return (alias.asname, alias.name) if alias.asname else (top, top)


def _imported(node: ast.ImportFrom, source: Source) -> dict[str, str]:
    module = absolute(node, source)
    return {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names if alias.name != "*"}


def _block(body: Iterable[ast.stmt]) -> Iterator[ast.AST]:
    """Everything in a block but what functions and classes in it do with names of their own."""
    pending: deque[ast.AST] = deque(body)
    while pending:
        node = pending.popleft()
        yield node
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            pending.extend(ast.iter_child_nodes(node))
