"""Whether what a plugin brings keeps the contract that it was written for. Everything that is wrong is found at once.

Nothing here raises because of a plugin, and nothing of it runs again once a model is loaded.
"""

import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import FunctionType
from typing import Any

from core.contracts.platform import FEATURES, Capabilities, Device, Platform, Probe, SchedulingLimits
from core.contracts.quantization import FORMATS
from core.contracts.source import ModelSource
from core.contracts.surface import ClassSurface, Method, history, parameters, signature
from core.contracts.versions import CONTRACT_OF, VERSIONS, Version, version_problem

DTYPES = ("float32", "bfloat16", "float16")
CACHE_DTYPES = ("int8",)
RESERVED = {"auto": "how a user leaves the choice to us", "reference": "what the ledger calls our own"}
"""Names that no platform may have, and what they are."""


def platform_problems(cls: Any) -> list[str]:
    """In what a platform class departs from the version of the contract that it states."""
    if not (isinstance(cls, type) and issubclass(cls, Platform)):
        return [f"{cls!r} is not a subclass of core.contracts.platform.Platform"]
    problems = _attribute_problems(cls)
    stated: Any = getattr(cls, "contract", None)
    refused = version_problem("platform", stated)
    if refused is not None:
        problems, stated = [*problems, refused], VERSIONS["platform"]
    return problems + class_problems(cls, Platform, _asked("platform", stated, "platform.Platform"))


def source_problems(cls: Any) -> list[str]:
    """The same of a model source."""
    if not (isinstance(cls, type) and issubclass(cls, ModelSource)):
        return [f"{cls!r} is not a subclass of core.contracts.source.ModelSource"]
    stated: Any = getattr(cls, "contract", None)
    refused = version_problem("source", stated)
    if refused is not None:
        stated = VERSIONS["source"]
    problems = [] if refused is None else [refused]
    return problems + class_problems(cls, ModelSource, _asked("source", stated, "source.ModelSource"))


def stated_version_problems(contract: str, plugin: Any) -> list[str]:
    """The same of the version alone, for plugins that are plain data."""
    refused = version_problem(contract, getattr(plugin, "contract", None))
    return [] if refused is None else [refused]


def class_problems(cls: type[Any], base: type[Any], asked: ClassSurface) -> list[str]:
    """Methods that are missing, unknown, or called otherwise than `asked` says, in what `cls` adds to `base`."""
    own: dict[str, Any] = {}
    promised: set[str] = set()  # not what mixins bring besides
    for ancestor in reversed(cls.__mro__[: cls.__mro__.index(base)]):
        public = {name: member for name, member in vars(ancestor).items() if not name.startswith("_")}
        own.update(public)
        promised.update(public if issubclass(ancestor, base) else ())
    missing = [
        f"{name}() is missing"
        for name, method in asked.methods.items()
        if method.required and name not in own
    ]
    brought = {
        name: member
        for name, member in own.items()
        if name in asked.methods or (name in promised and callable(member))
    }
    return sorted(missing) + [
        problem
        for name, member in brought.items()
        for problem in _method_problems(name, member, asked.methods)
    ]


def method_problem(name: str, given: tuple[str, ...], known: Mapping[str, Method]) -> str | None:
    """What is wrong with a public method that takes these parameters; None when it is as the contract has it."""
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]}?" if close else "; name private methods with a leading underscore"
        return f"{name}() is not part of the contract{hint}"
    expected = known[name].parameters
    return (
        None if given == expected else f"{name}({', '.join(given)}) should be {name}({', '.join(expected)})"
    )


def object_problems(given: Any, base: type[Any], version: Version) -> list[str]:
    """In what an object that a plugin's factory returned departs from its class in that version."""
    if not isinstance(given, base):
        return [f"None or a subclass of {base.__module__}.{base.__name__} is expected"]
    chapter = base.__module__.rpartition(".")[2]
    cls: type[Any] = type(given)  # pyright: ignore[reportUnknownVariableType]
    return class_problems(cls, base, _asked(CONTRACT_OF[chapter], version, f"{chapter}.{base.__name__}"))


def probe_problems(probe: Any) -> list[str]:
    """What is wrong with the answer of a probe."""
    if not isinstance(probe, Probe):
        return [f"probe() must return a Probe, not {probe!r}"]
    problems: list[str] = []
    devices: Any = probe.devices
    if not isinstance(devices, tuple) or not all(isinstance(each, Device) for each in devices):  # pyright: ignore[reportUnknownVariableType]
        problems.append(f"probe() must name its devices as a tuple, each a Device, not {devices!r}")
    elif probe.available and not devices:
        problems.append("probe() must name at least one device when it is available")
    if not isinstance(probe.reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        problems.append(f"probe() must give its reason as a text, not {probe.reason!r}")
    return problems


def capability_problems(given: Any) -> list[str]:
    """What a manifest declares that the contract does not know, or that cannot be."""
    if not isinstance(given, Capabilities):
        return [f"capabilities() must return Capabilities, not {given!r}"]
    problems = [
        *_unknown("dtypes", given.dtypes, DTYPES),
        *_unknown("features", given.features, FEATURES),
        *_unknown("weight_formats", given.weight_formats, FORMATS),
        *_unknown("kv_cache_dtypes", given.kv_cache_dtypes, CACHE_DTYPES),
        *_counts("block_sizes", given.block_sizes),
        *_counts("head_dims", () if given.head_dims is None else given.head_dims),
        *_counts("alignment_bytes", (given.alignment_bytes,)),
    ]
    problems += [f"{name} is empty" for name in ("dtypes", "block_sizes") if not getattr(given, name)]
    if not isinstance(given.scheduling, SchedulingLimits):  # pyright: ignore[reportUnnecessaryIsInstance]
        return [*problems, f"scheduling is {given.scheduling!r}; SchedulingLimits is expected"]
    most = given.scheduling.max_num_seqs
    return [
        *problems,
        *_counts("scheduling.token_multiple", (given.scheduling.token_multiple,)),
        *_counts("scheduling.max_num_seqs", () if most is None else (most,)),
    ]


def _asked(contract: str, version: Version, name: str) -> ClassSurface:
    """A class as a version that is taken has it."""
    return history(contract, version).classes.get(name, ClassSurface())


def _attribute_problems(cls: type[Platform]) -> list[str]:
    problems: list[str] = []
    for attribute, kind in (("name", str), ("device_type", str), ("priority", int)):
        value = getattr(cls, attribute, None)
        if value is None or value == "":
            problems.append(f"{attribute} is not set")
        elif not isinstance(value, kind) or isinstance(value, bool):
            expected = "a text" if kind is str else "a whole number"
            problems.append(f"{attribute} is {value!r}; {expected} is expected")
        elif attribute == "name" and value in RESERVED:
            problems.append(f"name is {value!r}, which is {RESERVED[value]}")
    return problems


def _method_problems(name: str, member: Any, known: Mapping[str, Method]) -> list[str]:
    given: tuple[str, ...] = ()
    if name in known:
        try:
            given = _given(member)
        except (TypeError, ValueError):
            return [f"{name} is {member!r}; {name}({', '.join(known[name].parameters)}) is expected"]
    problem = method_problem(name, given, known)
    return [problem] if problem else []


def _given(member: Any) -> tuple[str, ...]:
    """Names of what a method is called with. What Python passes first is not among them, whatever it is called."""
    function = inspect.unwrap(getattr(member, "__func__", member))
    names, first = parameters(function), next(iter(signature(function).parameters), "")
    bound = isinstance(member, (FunctionType, classmethod)) and names[:1] == (first,)
    return names[1:] if bound else names


def _unknown(what: str, given: Any, known: Iterable[str]) -> list[str]:
    problems: list[str] = []
    names = list(known)
    try:
        items: list[Any] = list(given)
    except TypeError:
        return [f"{what} is {given!r}; some of {', '.join(names)} are expected"]
    for item in items:
        if item not in names:
            close = get_close_matches(str(item), names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
            problems.append(f"{what} declares {item!r}, which the contract does not know; {hint}")
    return problems


def _counts(what: str, given: Any) -> list[str]:
    try:
        wrong = [each for each in given if isinstance(each, bool) or not isinstance(each, int) or each < 1]
    except TypeError:
        return [f"{what} is {given!r}; whole numbers above 0 are expected"]
    return [f"{what} has {each!r}; a whole number above 0 is expected" for each in wrong]
