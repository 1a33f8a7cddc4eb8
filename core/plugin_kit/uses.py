"""What a plugin does with the core: calls of its data classes, assignments to its attributes, hooks, kernels."""

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from typing import Any

from core import hookspecs
from core.contracts.changelog import CHANGES
from core.contracts.platform import Capabilities
from core.contracts.validation import capability_problems
from core.contracts.versions import CONTRACT_OF, Version, text
from core.plugin_kit.classes import changed
from core.plugin_kit.findings import Finding
from core.plugin_kit.lineage import UNREADABLE, literal
from core.plugin_kit.modules import Modules, Scope, core_module
from core.plugin_kit.versions import CONTRACTS, field_explained, fields_of, surface_of

CAPABILITIES = "core.contracts.platform.Capabilities"
IMPLEMENTATION = "core.contracts.kernels.Implementation"
HOOKIMPL = "core.hookspecs.hookimpl"
_MANIFEST = frozenset(field.name for field in fields(Capabilities))
_REPLACING = frozenset({"setattr", "delattr", "setitem", "delitem", "patch", "object", "multiple", "dict"})
_REFUSED = (
    "; the core leaves out a plugin that replaces something of its own: ask for a seam where one is missing"
)


@dataclass(frozen=True, kw_only=True)
class Versions:
    """By contract. against: what each is compared with; stated: what the plugin says it was written for."""

    against: Mapping[str, Version]
    stated: Mapping[str, Version]

    def of(self, contract: str) -> tuple[Version, Version]:
        """(asked for, stated); what is not stated is what was asked for."""
        return self.against[contract], self.stated.get(contract, self.against[contract])


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a node stands, and what its names mean there."""

    path: str
    scope: Scope
    modules: Modules
    versions: Versions

    def home(self, node: ast.AST) -> str:
        return self.modules.home(self.scope.resolve(node))

    def owned(self, node: ast.AST) -> str:
        """The same, of something of the core under the name that is used here."""
        named = self.scope.resolve(node)
        return named if named.startswith("core.") else self.modules.home(named)

    def finding(self, line: int, rule: str, message: str, *, breaks: bool = True) -> Finding:
        return Finding(path=self.path, line=line, rule=rule, message=message, breaks=breaks)


def check_uses(
    path: str, nodes: list[tuple[ast.AST, Scope]], modules: Modules, versions: Versions
) -> Iterator[Finding]:
    """Everything that the nodes of a file do."""
    for node, scope in nodes:
        place = _Place(path=path, scope=scope, modules=modules, versions=versions)
        for rule in (_keywords, _manifests, _kernels, _assignments, _replacing_calls, _hooks):
            yield from rule(node, place)


def _keywords(node: ast.AST, place: _Place) -> Iterator[Finding]:
    """Keyword arguments of a contract's data classes."""
    called = place.home(node.func) if isinstance(node, ast.Call) else ""
    name = called.removeprefix(CONTRACTS)
    contract = CONTRACT_OF.get(name.partition(".")[0], "")
    if not (isinstance(node, ast.Call) and called.startswith(CONTRACTS) and contract):
        return
    asked, written = place.versions.of(contract)
    known, before = fields_of(name, asked), fields_of(name, written)
    for keyword in node.keywords if known else ():
        if keyword.arg is None:
            continue
        line = keyword.value.lineno
        what = f"{name.partition('.')[2]}({keyword.arg}=) is not in {contract} contract"
        if keyword.arg not in known:
            close = get_close_matches(keyword.arg, known, n=1)
            hint = field_explained(name, keyword.arg, asked) or (
                f", did you mean {close[0]}?" if close else ""
            )
            yield place.finding(line, "keyword", f"{what} {text(asked)}{hint}")
        elif written < asked and before and keyword.arg not in before:
            told = field_explained(name, keyword.arg, written)
            message = f"{what} {text(written)}, which is stated{told}"
            yield place.finding(line, "keyword", message, breaks=False)


def _manifests(node: ast.AST, place: _Place) -> Iterator[Finding]:
    """What a manifest declares, where it is written out, and the contract does not know."""
    if not (isinstance(node, ast.Call) and place.home(node.func) == CAPABILITIES):
        return
    for keyword in node.keywords:
        value = _written_out(keyword.value)
        if keyword.arg in _MANIFEST and value is not UNREADABLE:
            declared: dict[str, Any] = {keyword.arg: value}
            for problem in capability_problems(Capabilities(**declared)):
                yield place.finding(keyword.value.lineno, "manifest", problem)


def _written_out(node: ast.expr) -> Any:
    """The value of plain data, and of frozenset({...})."""
    match node:
        case ast.Call(func=ast.Name(id="frozenset"), args=[inner], keywords=[]):
            return literal(inner)
        case _:
            return literal(node)


def _kernels(node: ast.AST, place: _Place) -> Iterator[Finding]:
    """Names of kernels in {"rms_norm": Implementation(...)}."""
    if not isinstance(node, ast.Dict):
        return
    asked, written = place.versions.of("platform")
    for key, value in zip(node.keys, node.values, strict=True):
        if not (isinstance(key, ast.Constant) and isinstance(value, ast.Call)):
            continue
        if place.home(value.func) != IMPLEMENTATION:
            continue
        declared = surface_of("platform", asked).kernels
        for change in CHANGES:
            if change.name == f"kernel {key.value}" and written < change.version <= asked:
                yield changed(change, place.path, key.lineno, asked)
        if key.value not in declared:
            close = get_close_matches(str(key.value), declared, n=1)
            hint = f"did you mean {close[0]}?" if close else f"declared: {', '.join(declared)}"
            message = f"{key.value!r} is not a declared kernel in platform contract {text(asked)}; {hint}"
            yield place.finding(key.lineno, "kernel", message)


def _assignments(node: ast.AST, place: _Place) -> Iterator[Finding]:
    """Assignments to, and deletions of, what belongs to the core."""
    match node:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            pass
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target, value=ast.expr()):
            targets = [target]
        case _:
            return
    for target in _parts(targets):
        if not isinstance(target, ast.Attribute | ast.Subscript):
            continue
        dotted = place.owned(target if isinstance(target, ast.Attribute) else target.value)
        if isinstance(target, ast.Subscript) and dotted == "sys.modules":
            key = target.slice.value if isinstance(target.slice, ast.Constant) else None
            dotted = key if isinstance(key, str) else ""
        if dotted.startswith("core."):
            yield place.finding(target.lineno, "patch", f"replaces {dotted}{_REFUSED}")


def _replacing_calls(node: ast.AST, place: _Place) -> Iterator[Finding]:
    """setattr(core.x, "name", …), monkeypatch.setattr("core.x.name", …), patch("core.x.name") and their kin."""
    if not (isinstance(node, ast.Call) and node.args):
        return
    match node.func:
        case ast.Name(id=name) if name in _REPLACING and name != "dict":
            pass
        case ast.Attribute(attr=name) if name in _REPLACING:
            pass
        case _:
            return
    match node.args:
        case [ast.Constant(value=str(target)), *_]:
            target = target if core_module(".".join(target.split(".")[:2])) else ""
        case [owner, ast.Constant(value=str(attribute)), *_]:
            dotted = place.owned(owner)
            target = f"{dotted}.{attribute}" if dotted else ""
        case [owner, *_]:
            target = place.owned(owner)
        case _:
            return
    if target.startswith("core."):
        yield place.finding(node.lineno, "patch", f"replaces {target}{_REFUSED}")


def _hooks(node: ast.AST, place: _Place) -> Iterator[Finding]:
    """Functions marked as implementations of a hook."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    marks = [mark.func if isinstance(mark, ast.Call) else mark for mark in node.decorator_list]
    if HOOKIMPL not in {place.home(mark) for mark in marks}:
        return
    name, known = _specified(node) or node.name, hooks()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        yield place.finding(node.lineno, "hook", f"{name} is no hook; {hint}")
        return
    given = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    for unknown in (argument for argument in given if argument not in known[name]):
        message = (
            f"{name}({', '.join(given)}) should be {name}({', '.join(known[name])}): no {unknown} is given"
        )
        yield place.finding(node.lineno, "hook", message)


@cache
def hooks() -> dict[str, tuple[str, ...]]:
    """Every hook and its parameters."""
    members = {name: member for name, member in vars(hookspecs).items() if name.startswith("core_")}
    return {name: tuple(inspect.signature(member).parameters) for name, member in members.items()}


def _specified(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The hook that @hookimpl(specname="...") names."""
    for mark in node.decorator_list:
        for keyword in mark.keywords if isinstance(mark, ast.Call) else ():
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else ""
            if keyword.arg == "specname" and isinstance(value, str):
                return value
    return ""


def _parts(targets: Sequence[ast.expr]) -> Iterator[ast.expr]:
    """Targets of an assignment, tuples taken apart."""
    for target in targets:
        if isinstance(target, ast.Tuple | ast.List):
            yield from _parts(target.elts)
        else:
            yield target
