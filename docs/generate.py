"""Writes the parts of the documentation that the code says better.

    python docs/generate.py            write what has changed
    python docs/generate.py --check    list what is out of date, and exit with 1 if anything is

A page is either generated whole (cli.md) or holds parts between two markers:

    <!-- generated: NAME -->  …  <!-- end -->

The marker's name is that of a function below. Not part of the wheel.
"""

import ast
import inspect
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from matrix import chosen, matrix, matrix_levels  # noqa: E402

from cli.reference import reference  # noqa: E402
from core import hookspecs  # noqa: E402
from core.conformance.ops_page import table  # noqa: E402
from core.contracts.changelog import CHANGES  # noqa: E402
from core.contracts.platform import Capabilities, Platform  # noqa: E402
from core.contracts.versions import CHAPTERS, VERSIONS, accepted, text  # noqa: E402
from core.discovery import FoundPlatform, Plugins, collect  # noqa: E402
from server.operations.catalog import FRONT, METRICS  # noqa: E402
from server.operations.metric import ALIAS, PREFIX  # noqa: E402

_PROBED = "its probe is checked on made-up machines in every test run; never run on its hardware"

# What is known of each platform, in a sentence. One that is not here cannot be documented, on purpose.
STATUS = {
    "ascend": _PROBED,
    "cuda": _PROBED,
    "gaudi": f"{_PROBED}; needs torch 2.11, and its own was at 2.9 in release 1.23",
    "intel": _PROBED,
    "rocm": _PROBED,
    "spyre": "cards are found, and not used: its runner is not written",
    "tpu": "chips are found, and not used: its runner is not written",
    "cpu": "works; checked in every test run, so far on x86-64 only",
    "powerpc": "its kernels are checked under an emulator in every test run; never run on its hardware",
    "simulated": "works, in software; checked in every test run",
}
# What a device accepts is documented where every machine has one: a page is the same wherever it is written.
EVERYWHERE = ("cpu", "simulated")
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def first_party() -> Plugins:
    """The plugins that pyproject.toml declares, whatever else is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points: dict[str, str] = project["entry-points"][hookspecs.GROUP]
    return collect(EntryPoint(name, value, hookspecs.GROUP) for name, value in points.items())


def platforms_long(plugins: Plugins) -> str:
    """A section per platform: what it accepts, and which contracts it brings itself."""
    return "\n".join(_section(found) for found in plugins.platforms)


def models(plugins: Plugins) -> str:
    """Architectures, by the name in a checkpoint's config.json."""
    rows = [(f"`{a.name}`", "yes" if a.gguf else "no") for a in plugins.architectures.values()]
    return table(("`architectures` in config.json", "also from GGUF"), rows)


def models_tried(plugins: Plugins) -> str:
    """A row per architecture that check_models.py has tried: what runs it, and where it passed."""
    return table(
        ("architecture", "runs", "what was tried", *EVERYWHERE), [_tried(*each) for each in _results("tried")]
    )


def models_refused(plugins: Plugins) -> str:
    """Architectures that the fallback refuses, and its reasons."""
    return table(("architecture", "reason"), [(f"`{name}`", reason) for name, reason in _results("refused")])


def _tried(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    variants: dict[str, dict[str, str]] = row["variants"]
    outcomes = [sorted({results[platform] for results in variants.values()}) for platform in EVERYWHERE]
    return (f"`{name}`", row["implementation"], ", ".join(variants), *map(", ".join, outcomes))


def _results(part: str) -> list[tuple[str, Any]]:
    return sorted(json.loads((ROOT / "docs" / "models.json").read_text())[part].items())


def hooks(plugins: Plugins) -> str:
    """Every hook: exact arguments, its docstring, and who implements it here."""
    return "\n".join(_hook(hook) for name, hook in vars(hookspecs).items() if name.startswith("core_"))


def metrics(plugins: Plugins) -> str:
    """What the server exports to Prometheus: of models, then of itself."""
    rows = [
        (
            f"`{PREFIX}{metric.exported}`",
            f"`{ALIAS}{metric.exported}`" if metric.alias else "–",
            metric.kind,
            _listed(metric.labels) if metric.labels else "–",
            metric.help,
        )
        for metric in (*METRICS, *FRONT)
    ]
    return table(("ours", "vLLM's", "kind", "labels besides the model's", "what it is"), rows)


def modules(plugins: Plugins) -> str:
    """Every module of the product, folder by folder, with the first sentence of its docstring."""
    lines: list[str] = []
    for package in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "root_packages"
    ]:
        for folder in sorted({path.parent for path in (ROOT / package).rglob("*.py")}):
            lines.append(f"### {folder.relative_to(ROOT)}/\n\n{_first_sentence(folder / '__init__.py')}\n\n")
            files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
            lines += [f"- `{path.relative_to(ROOT)}`: {_first_sentence(path)}\n" for path in files]
            lines.append("\n" if files else "")
    return "".join(lines)


def toy_platform(plugins: Plugins) -> str:
    """The example platform's own page of code."""
    code = (ROOT / "tests" / "toy_platform" / "toy_platform" / "__init__.py").read_text()
    return f"```python\n{code}```\n"


def contract_versions(plugins: Plugins) -> str:
    """The contracts, their versions, and where each stands."""
    rows = [
        (name, text(version), accepted(name), ", ".join(f"`{chapter}.py`" for chapter in CHAPTERS[name]))
        for name, version in VERSIONS.items()
    ]
    return table(("contract", "version", "taken", "chapters in `core/contracts`"), rows)


def contract_changes(plugins: Plugins) -> str:
    """A section per version, newest first, and the same as JSON."""
    versions = sorted({(change.version, change.contract) for change in CHANGES}, reverse=True)
    sections = [_changes(contract, version) for version, contract in versions]
    listed = [asdict(change) | {"version": text(change.version)} for change in CHANGES]
    return f"{''.join(sections)}## For programs\n\n```json\n{json.dumps(listed, indent=1)}\n```\n"


def _changes(contract: str, version: tuple[int, int]) -> str:
    rows = [
        (change.kind, f"`{change.name}`", change.what, change.todo or "nothing", change.adapted or "–")
        for change in CHANGES
        if (change.contract, change.version) == (contract, version)
    ]
    head = ("", "name", "what", "an author does", "plugins of the version before are")
    return f"## {contract} {text(version)}\n\n{table(head, rows)}\n"


_ALL = (
    platforms_long,
    models,
    models_tried,
    models_refused,
    hooks,
    metrics,
    modules,
    toy_platform,
    contract_versions,
    contract_changes,
    matrix,
    matrix_levels,
)
PARTS: Mapping[str, Callable[[Plugins], str]] = {part.__name__: part for part in _ALL}


def pages() -> dict[Path, str]:
    """Every page with something generated in it -> what it should hold."""
    from core.conformance.ops_page import ops_page

    os.environ.pop("LLM_SIMULATED", None)  # the documented simulation is the default one
    plugins = first_party()
    if plugins.failures:
        raise RuntimeError(f"cannot document plugins that do not load: {plugins.failures}")
    found = {ROOT / "docs" / "cli.md": reference(), ROOT / "docs" / "ops.md": ops_page()}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page = path.read_text()
        if _PART.search(page):
            found[path] = filled(page, plugins)
    return found


def filled(page: str, plugins: Plugins) -> str:
    """A page with its generated parts as they should be."""
    return _PART.sub(lambda match: f"{match[1]}{PARTS[match[2]](plugins)}{match[3]}", page)


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    stale = {path: page for path, page in pages().items() if path.read_text() != page}
    for path, page in stale.items():
        print(path.relative_to(ROOT))
        if "--check" not in arguments:
            path.write_text(page)
    return 1 if stale and "--check" in arguments else 0


def _platform(found: FoundPlatform) -> Platform:
    if found.platform is None:
        raise RuntimeError(f"cannot document a platform that breaks its contract: {found.error}")
    return found.platform


def _section(found: FoundPlatform) -> str:
    platform = _platform(found)
    own = [name for name in _factories() if getattr(type(platform), name) is not getattr(Platform, name)]
    rows = [
        ("what it is", found.summary),
        ("status", STATUS[found.name]),
        ("chosen", chosen(platform)),
        ("torch device type", f"`{found.device_type}`"),
        ("written for contract", text(found.contract)),
        ("brings its own", _listed(own)),
        ("leaves to the core", _listed(name for name in _factories() if name not in own)),
    ]
    if found.name in EVERYWHERE:
        device = found.probe.devices[0]
        rows += _accepts(platform.capabilities(device))
        rows.append(("kernels of its own", _listed(platform.kernels(device))))
    return f"### {found.name}\n\n{table(('', ''), rows)}"


def _factories() -> list[str]:
    return ["attention", "memory", "communication", "kernels", "execution", "runner"]


def _accepts(capabilities: Capabilities) -> list[tuple[str, str]]:
    limits = capabilities.scheduling
    heads = "any" if capabilities.head_dims is None else _listed(capabilities.head_dims)
    sequences = "any number" if limits.max_num_seqs is None else str(limits.max_num_seqs)
    multiple, alignment = limits.token_multiple, capabilities.alignment_bytes
    kept = ", ".join(("the dtype", *(f"`{dtype}`" for dtype in sorted(capabilities.kv_cache_dtypes))))
    return [
        ("dtypes, preferred first", _listed(capabilities.dtypes)),
        ("block sizes, preferred first", _listed(capabilities.block_sizes)),
        ("head sizes", heads),
        ("keys and values are kept in", kept),
        ("attention features", _listed(sorted(capabilities.features))),
        ("size of an allocation", "any" if alignment == 1 else f"a multiple of {alignment} bytes"),
        ("a step holds", "prompts or decodes, not both" if limits.separate_steps else "prompts and decodes"),
        ("tokens in a step", "any number" if multiple == 1 else f"padded to a multiple of {multiple}"),
        ("sequences in a step", sequences),
    ]


def _hook(hook: Any) -> str:
    signature = inspect.signature(hook)
    arguments = ", ".join(str(parameter) for parameter in signature.parameters.values())
    return (
        f"### `{hook.__name__}({arguments}) -> {signature.return_annotation}`\n\n"
        f"{inspect.getdoc(hook)}\n\n{_implemented_by(hook.__name__)}\n"
    )


def _implemented_by(hook: str) -> str:
    from importlib import import_module

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules: dict[str, str] = project["entry-points"][hookspecs.GROUP]
    named = [f"`{module}`" for module in modules.values() if hook in vars(import_module(module))]
    return f"Implemented here by {', '.join(named)}."


def _first_sentence(path: Path) -> str:
    """Up to the first full stop that ends a sentence, else the first paragraph."""
    paragraph = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    if not paragraph:
        raise RuntimeError(f"{path} does not say what it is")
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def _listed(items: Iterable[object]) -> str:
    return ", ".join(f"`{item}`" for item in items) or "nothing"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
