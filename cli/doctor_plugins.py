"""What `llm doctor` finds of plugins: contracts, what failed, every platform's probe, and the one that is taken.

What is wrong with a plugin is said in the words of `core.discovery`, which `llm platforms`, the log and every
"no platform" error use, too.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cli.doctor_finding import Finding, Verdict

if TYPE_CHECKING:
    from core.discovery import PluginFailure, Plugins
    from core.examination import FoundPlatform

CHANGES = "docs/contract-changelog.md says what to change"


def plugins(found: "Plugins", asked: str) -> Iterator[Finding]:
    """Every finding. asked  the platform that the user named, or "auto"."""
    yield contracts()
    for failure in found.failures:
        yield plugin(failure)
    for platform in found.platforms:
        yield from _platform(platform, asked)
    yield selected(found, asked)


def contracts() -> Finding:
    """What this core keeps, and what it takes."""
    from core.contracts.versions import VERSIONS, accepted, text

    kept = [f"{name} {text(version)} (takes {accepted(name)})" for name, version in VERSIONS.items()]
    return Finding("contracts", "ok", ", ".join(kept))


def plugin(failure: "PluginFailure") -> Finding:
    """A plugin, or a part of one, that is left out."""
    return Finding(f"plugin {failure.plugin}", "problem", str(failure), "update it, or uninstall it")


def platform(found: "FoundPlatform", asked: str) -> Finding:
    """Whether a platform can run here. One that was named must."""
    verdict: Verdict = "ok" if found.state == "available" else "note"
    step = ""
    if found.error is not None:
        verdict, step = "problem", rid_of(found)
    elif verdict == "note" and found.name == asked:
        verdict, step = "problem", "choose another --platform, or leave the choice to auto"
    return Finding(f"platform {found.name}", verdict, f"{found.state}: {found.probe.reason}", step)


def rid_of(found: "FoundPlatform") -> str:
    """What to do about a platform that is broken."""
    return f"update or uninstall {found.distribution} {found.version}".rstrip()


def contract(found: "FoundPlatform") -> Finding | None:
    """A platform of an older version of its contract, which is made to fit."""
    from core.contracts.versions import VERSIONS, text

    now = VERSIONS["platform"]
    if found.error is not None or found.contract[0] == now[0]:
        return None
    written = f"written for platform contract {text(found.contract)}, and adapted to {text(now)}"
    return Finding(f"{found.name} contract", "note", written, CHANGES)


def selected(found: "Plugins", asked: str) -> Finding:
    """The platform that models would run on."""
    from core.errors import NoPlatform

    try:
        chosen, device = found.select_platform(asked)
    except NoPlatform as error:
        return Finding("selected", "problem", str(error))
    how = "the best that can run here" if asked == "auto" else "as asked"
    return Finding("selected", "ok", f"{chosen.name} on {device.name}, {how}")


def _platform(found: "FoundPlatform", asked: str) -> Iterator[Finding]:
    yield platform(found, asked)
    older = contract(found)
    if older is not None:
        yield older
    for device in found.probe.devices:
        yield Finding(f"{found.name} device", "ok", f"{device.name} ({device.torch_device})")
