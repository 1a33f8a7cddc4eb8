"""Names of plugin packages: which are possible, and what is derived from one."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points, packages_distributions
from keyword import iskeyword

from core.contracts.validation import RESERVED
from core.discovery import load_plugins
from core.errors import ConfigError
from core.hookspecs import GROUP
from core.integrity import HOUSE

_DISTRIBUTION = re.compile(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]")
_SEPARATORS = re.compile(r"[-_.]+")
_LONGEST = 60


@dataclass(frozen=True, kw_only=True)
class Names:
    """What one name becomes. For "acme-board-platform", of the kind platform:

    distribution  what pip installs: "acme-board-platform"
    package       what Python imports: "acme_board_platform"
    short         what the user types: "acme-board"
    title         what its classes are called: "AcmeBoard"
    """

    distribution: str
    package: str
    short: str
    title: str

    @property
    def architecture(self) -> str:
        """What a checkpoint says in its config: "AcmeBoardForCausalLM"."""
        return f"{self.title}ForCausalLM"

    @property
    def constant(self) -> str:
        """For environment variables: "ACME_BOARD"."""
        return self.short.replace("-", "_").upper()


def names_of(name: str, kind: str) -> Names:
    """Everything that is derived from what the user called a package. Raises ConfigError saying what is wrong."""
    if len(name) > _LONGEST or not _DISTRIBUTION.fullmatch(name):
        raise ConfigError(
            f"{name!r:.80} cannot name a package; use up to {_LONGEST} letters, digits, hyphens, underscores and "
            "full stops, with a letter or digit at either end"
        )
    distribution = _SEPARATORS.sub("-", name).lower()
    package = distribution.replace("-", "_")
    if not package.isidentifier():
        raise ConfigError(
            f"{name!r} would be imported as {package}, which Python cannot; begin with a letter"
        )
    if iskeyword(package):
        raise ConfigError(f"{name!r} would be imported as {package}, a keyword of Python; choose another")
    short = distribution.removesuffix(f"-{kind}")
    title = "".join(part.capitalize() for part in short.split("-"))
    names = Names(distribution=distribution, package=package, short=short, title=title)
    for word, owner in _taken(names):
        raise ConfigError(f"{name!r} cannot be used: {word} is taken, by {owner}; choose another")
    return names


def _taken(names: Names) -> Iterator[tuple[str, str]]:
    """Which of these names somebody else has, and who. What this very package has, it may be written anew for."""
    if names.package in {*HOUSE, "conftest", "tests"}:  # the latter two lie beside the package
        yield names.package, "this engine"
    elif names.package in sys.stdlib_module_names:
        yield names.package, "Python"
    ours = {names.distribution} if _is_plugin(names.distribution) else set[str]()
    for owner in packages_distributions().get(names.package, ()):
        if owner not in ours:
            yield names.package, f"the installed package {owner}"
    for word, owner in _declared(names.package):
        if word in (names.short, names.architecture) and owner != names.distribution:
            yield word, "this engine" if owner == "core" else f"the installed plugin {owner}"


def _is_plugin(distribution: str) -> bool:
    return any(point.dist and point.dist.name == distribution for point in entry_points(group=GROUP))


def _declared(package: str) -> Iterator[tuple[str, str]]:
    """What plugins have a name for, and the distribution that each is from; what does not tell its own is left out of
    `package` itself."""
    yield from ((word, "core") for word in ("llm", *RESERVED))
    yield from ((point.name, point.dist.name) for point in entry_points(group=GROUP) if point.dist)
    plugins = load_plugins()
    yield from ((found.name, found.distribution) for found in plugins.platforms)
    homes = {name: each.build.__module__ for name, each in plugins.architectures.items()}
    homes |= {name: each.read.__module__ for name, each in plugins.quantizations.items()}
    homes |= {scheme: type(source).__module__ for scheme, source in plugins.sources.items()}
    for word, home in homes.items():
        top = home.partition(".")[0]
        if top != package:
            yield word, "core" if top in HOUSE else top
