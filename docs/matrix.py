"""The support matrix: what `llm conformance` found of each platform, where it ran, and what nobody ran.

Made of the certificates in docs/certificates and of the platforms that pyproject.toml declares, so that none can be
forgotten. generate.py puts it into the pages. Not part of the wheel.
"""

from collections.abc import Iterator
from pathlib import Path

import core
from core.accelerator import UnfinishedPlatform
from core.conformance.certificate import Certificate, LevelReport, read
from core.conformance.facts import sources_sha256
from core.conformance.levels import LEVELS
from core.conformance.ops_page import table
from core.contracts.platform import Platform
from core.contracts.versions import VERSIONS, text
from core.discovery import Plugins
from core.examination import FoundPlatform

CERTIFICATES = Path(__file__).resolve().parent / "certificates"
NOT_RUN = "not run"


def matrix(plugins: Plugins, folder: Path = CERTIFICATES) -> str:
    """The README's table: each platform, what was found of it in all, and where."""
    head = ("platform", "what it is", "chosen", "checks", "ran on")
    return table(head, (_short(*entry) for entry in _entries(plugins, folder)))


def matrix_levels(plugins: Plugins, folder: Path = CERTIFICATES) -> str:
    """What was found level by level, and then each run: where, with what, and what has changed since."""
    entries = list(_entries(plugins, folder))
    levels = [(f"`{name}`", *_cells(found)) for name, _, found in entries]
    runs = [_run(found, platform) for _, platform, found in entries if found is not None]
    tables = table(("platform", *LEVELS), levels)
    if not runs:
        return tables
    head = ("platform", "ran on", "with", "its own code", "signed off by", "changed since")
    return f"{tables}\n{table(head, runs)}"


def certificates(folder: Path = CERTIFICATES) -> list[Certificate]:
    """Every certificate that is kept. Raises BadCertificate for a file that is none, or was edited."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def changed(found: Certificate, platform: Platform | None) -> list[str]:
    """What is not as it was when the kit ran. What it found then says nothing certain of now.

    platform  as it is now; None where it is not ours to look at
    """
    ran_with, now = found.contracts.get("platform", "none"), text(VERSIONS["platform"])
    changes = [] if ran_with == now else [f"the platform contract, {ran_with} then and {now} now"]
    if found.core != core.__version__:
        changes.append(f"the core, {found.core} then and {core.__version__} now")
    elif found.core_sources_sha256 != sources_sha256("core"):
        changes.append("the core's own code")
    if platform is not None and found.sources_sha256 != sources_sha256(type(platform).__module__):
        changes.append("the platform's own code")
    return changes


def chosen(platform: Platform) -> str:
    """When "auto" takes it."""
    if isinstance(platform, UnfinishedPlatform):
        return "not yet"
    if platform.priority < 0:
        return "only when named"
    return "by `auto`" if platform.priority else "by `auto`, last"


Entry = tuple[str, FoundPlatform | None, Certificate | None]


def _entries(plugins: Plugins, folder: Path) -> Iterator[Entry]:
    """A row for each certificate, by platform; one without, for a platform that has none. Strangers come last."""
    kept = certificates(folder)
    ours = [found.name for found in plugins.platforms]
    for platform in plugins.platforms:
        own = [found for found in kept if found.platform == platform.name]
        yield from ((platform.name, platform, found) for found in own or (None,))
    yield from ((found.platform, None, found) for found in kept if found.platform not in ours)


def _short(name: str, platform: FoundPlatform | None, found: Certificate | None) -> tuple[str, ...]:
    about = ("", "")
    if platform is not None and platform.platform is not None:
        about = (platform.summary, chosen(platform.platform))
    elif found is not None:
        about = (f"from {found.distribution}", "")
    if found is None:
        return f"`{name}`", *about, NOT_RUN, ""
    counts = [level.counts for level in found.levels.values() if level.checks]
    passed, wrong, unsupported = (sum(column) for column in zip((0, 0, 0), *counts, strict=True))
    checks = _counted(passed, wrong, unsupported)
    if counts:
        checks += f"; {len(counts)} of {len(LEVELS)} levels"
    return f"`{name}`", *about, checks, f"{found.device}, {found.date[:10]}"


def _cells(found: Certificate | None) -> list[str]:
    """What each level came to, in the order of LEVELS."""
    levels: dict[str, LevelReport] = {} if found is None else found.levels
    return [_counted(*levels[name].counts) if name in levels else NOT_RUN for name in LEVELS]


def _counted(passed: int, wrong: int, unsupported: int) -> str:
    if not passed + wrong + unsupported:
        return NOT_RUN
    parts = [f"**{wrong:,} wrong**"] if wrong else []
    parts.append(f"{passed:,} passed")
    return ", ".join([*parts, f"{unsupported:,} not supported"] if unsupported else parts)


def _run(found: Certificate, platform: FoundPlatform | None) -> tuple[str, ...]:
    now = None if platform is None else platform.platform
    where = f"{found.device}, {found.date[:10]}{', the quick part' if found.quick else ''}"
    machine = [found.machine.get(name, "unknown") for name in ("processor", "system")]
    software = [f"{name} {found.machine.get(name, 'unknown')}" for name in ("torch", "python")]
    versions = ", ".join((*machine, f"{found.distribution} {found.distribution_version}", *software))
    since = "; ".join(changed(found, now)) or "nothing"
    return f"`{found.platform}`", where, versions, str(found.lines), found.signed_off_by or "nobody", since
