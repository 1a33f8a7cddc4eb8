"""What a contract asks of a plugin, as plain data: class by class, method by method, field by field.

`surface` reads it from the classes; `history` has it of every version there was. A plugin is checked against the
version that it was written for, and a test fails when the classes have changed and the version has not.
"""

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from core.contracts.versions import CHAPTERS, VERSIONS, Version, text


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method that plugins may bring. `required`: they must."""

    parameters: tuple[str, ...]
    required: bool


@dataclass(frozen=True, kw_only=True)
class ClassSurface:
    """One public class of a contract.

    methods     that a plugin's version of it may have; of plain data, that it may call
    fields      of plain data, and whether each must be given
    attributes  that the class sets
    """

    methods: Mapping[str, Method] = field(default_factory=dict[str, Method])
    fields: Mapping[str, bool] = field(default_factory=dict[str, bool])
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A whole contract in one version. kernels: the parameters of each declared one, in the platform's contract."""

    classes: Mapping[str, ClassSurface]
    kernels: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def as_json(self) -> str:
        """As `history` keeps it."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def surface(contract: str, kernels: Mapping[str, tuple[str, ...]] | None = None) -> Surface:
    """The contract as it is now, read from its modules."""
    classes: dict[str, ClassSurface] = {}
    for chapter in CHAPTERS[contract]:
        module = import_module(f"core.contracts.{chapter}")
        for name, member in vars(module).items():
            if isinstance(member, type) and member.__module__ == module.__name__ and not name.startswith("_"):
                classes[f"{chapter}.{name}"] = class_surface(member)
    return Surface(classes=classes, kernels=kernels or {})


def class_surface(cls: type[Any]) -> ClassSurface:
    """What one class asks."""
    abstract: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    methods = {
        name: Method(parameters=parameters(member), required=name in abstract)
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }
    own = tuple(name for name in inspect.get_annotations(cls) if not name.startswith("_"))
    if not is_dataclass(cls):
        return ClassSurface(methods=methods, attributes=own)
    data = {
        each.name: each.default is MISSING and each.default_factory is MISSING
        for each in fields(cls)
        if each.name in own
    }
    return ClassSurface(methods=methods, fields=data)


def parameters(function: Any) -> tuple[str, ...]:
    """Names of a method's parameters, without self; those that take what is left over as *name and **name."""
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = signature(function).parameters.values()
    return tuple(marks.get(p.kind, "") + p.name for p in found if p.name != "self")


def signature(function: Any) -> inspect.Signature:
    """Of a plugin's function, whose annotations may name what only a type checker imports."""
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.STRING)
    return inspect.signature(function)


def differences(before: Surface, after: Surface) -> dict[str, str]:
    """What was "added", "changed" or "removed", by name: a class, a member of one that stayed, a kernel."""
    found = _compared("", before.classes, after.classes, lambda old, new: "")
    for name in before.classes.keys() & after.classes.keys():
        old, new = before.classes[name], after.classes[name]
        for members in ("methods", "fields"):
            found |= _compared(f"{name}.", getattr(old, members), getattr(new, members), _changed)
        listed = [dict.fromkeys(each.attributes) for each in (old, new)]
        found |= _compared(f"{name}.", listed[0], listed[1], _changed)
    return found | _compared("kernel ", before.kernels, after.kernels, _changed)


def _compared(
    prefix: str, before: Mapping[str, Any], after: Mapping[str, Any], change: Callable[[Any, Any], str]
) -> dict[str, str]:
    found = {f"{prefix}{name}": "added" for name in after.keys() - before.keys()}
    found |= {f"{prefix}{name}": "removed" for name in before.keys() - after.keys()}
    both = before.keys() & after.keys()
    return found | {f"{prefix}{n}": kind for n in both if (kind := change(before[n], after[n]))}


def _changed(old: Any, new: Any) -> str:
    return "" if old == new else "changed"


@cache
def history(contract: str, version: Version) -> Surface:
    """The contract as it was in a version. Raises FileNotFoundError when there was no such version."""
    path = files("core.contracts").joinpath("history", f"{contract}-{text(version)}.json")
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Surface(
        classes={name: _class(stored_class) for name, stored_class in stored["classes"].items()},
        kernels={name: tuple(names) for name, names in stored["kernels"].items()},
    )


def _class(stored: Mapping[str, Any]) -> ClassSurface:
    methods = {
        name: Method(parameters=tuple(method["parameters"]), required=method["required"])
        for name, method in stored["methods"].items()
    }
    return ClassSurface(methods=methods, fields=stored["fields"], attributes=tuple(stored["attributes"]))


def main() -> int:
    """Write down what the current versions ask, where their files say otherwise. `python -m core.contracts.surface`"""
    from core.execution.dispatch import signature_of
    from core.reference import KERNELS

    declared = {name: signature_of(kernel) for name, kernel in KERNELS.items()}
    folder = Path(__file__).parent / "history"
    for contract, version in VERSIONS.items():
        path = folder / f"{contract}-{text(version)}.json"
        written = surface(contract, declared if contract == "platform" else None).as_json()
        if not path.exists() or path.read_text(encoding="utf-8") != written:
            path.write_text(written, encoding="utf-8")
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
