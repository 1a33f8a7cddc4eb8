"""A plugin package to begin with: written from templates, installable, and with tests that pass at once.

A template is a file of templates/common or of the kind's own folder, with $names in it; its place there is its place in
the package, but for PACKAGE, which becomes the package's name, "dot-" in front, which becomes a full stop, and ".txt"
behind, which goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from string import Template

from core import __version__
from core.contracts.versions import VERSIONS, Version, text, version_problem
from core.errors import ConfigError
from core.plugin_kit.naming import Names, names_of
from core.plugin_kit.versions import asked_version

_TEMPLATES = Path(__file__).with_name("templates")
_COMMON = "common"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a plugin may bring; there is one for each hook that asks for code.

    summary  for the package's description
    proof    further steps of the continuous integration, besides the tests
    """

    name: str
    hook: str
    summary: str
    proof: str = ""


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="platform",
            hook="core_platforms",
            summary="A hardware platform",
            proof="\n      - run: llm conformance --platform $short --quick",
        ),
        Kind(name="model", hook="core_architectures", summary="A model architecture"),
        Kind(name="source", hook="core_model_sources", summary="A place that models come from"),
        Kind(name="quantization", hook="core_quantizations", summary="A way of storing quantised weights"),
        Kind(name="telemetry", hook="core_telemetry", summary="Something that watches requests"),
    )
}
"""By name. Each has the contract of its own name."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """What is to be written. contract: the version that it states."""

    kind: Kind
    names: Names
    version: Version

    @property
    def distribution(self) -> str:
        """What pip will know it as."""
        return self.names.distribution

    @property
    def contract(self) -> str:
        """The version that it states, as text."""
        return text(self.version)

    def files(self) -> dict[str, str]:
        """Path below the package's folder -> content."""
        values = self._values()
        found: dict[str, str] = {}
        for folder in (_TEMPLATES / _COMMON, _TEMPLATES / self.kind.name):
            for path in sorted(path for path in folder.rglob("*.txt") if path.is_file()):
                place = _place(path.relative_to(folder), self.names.package)
                found[place] = Template(path.read_text(encoding="utf-8")).substitute(values)
        return found

    def _values(self) -> dict[str, str]:
        names = {
            "distribution": self.names.distribution,
            "package": self.names.package,
            "short": self.names.short,
            "title": self.names.title,
            "constant": self.names.constant,
        }
        return names | {
            "kind": self.kind.name,
            "summary": self.kind.summary,
            "proof": Template(self.kind.proof).substitute(names),
            "contract": f"({self.version[0]}, {self.version[1]})",
            "contract_text": self.contract,
            "core_version": __version__,
        }


def plan(name: str, kind: str, contract_version: str | None = None) -> Package:
    """What `write_package` will write. Raises ConfigError for what cannot be: it names what is accepted."""
    if kind not in KINDS:
        kinds = ", ".join(f"{each.name} ({each.hook})" for each in KINDS.values())
        close = get_close_matches(kind.lower(), KINDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are hooks for {kinds}"
        raise ConfigError(f"{kind!r:.40} is no kind of plugin; {hint}", setting="kind")
    version = VERSIONS[kind]
    if contract_version is not None:
        version = asked_version(kind, contract_version, "contract_version")
    if problem := version_problem(kind, version):
        raise ConfigError(problem, setting="contract_version")
    return Package(kind=KINDS[kind], names=names_of(name, kind), version=version)


def write_package(package: Package, folder: Path) -> list[str]:
    """Write the package; returns the paths below `folder`. Raises ConfigError when something is there already."""
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(f"{folder} is a link to nothing; remove it, or name another folder (--folder)")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder that is empty, or not there yet (--folder)")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; name a folder that is, or is not there yet (--folder)")
    files = package.files()
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content, encoding="utf-8")
    return sorted(files)


def _place(path: Path, package: str) -> str:
    parts = [package if part == "PACKAGE" else part for part in path.parts]
    parts = [f".{part.removeprefix('dot-')}" if part.startswith("dot-") else part for part in parts]
    return "/".join(parts).removesuffix(".txt")
