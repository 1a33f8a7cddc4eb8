"""Looking at a platform that a plugin brought: does it keep its contract, can it run here, and what does it declare.

Whatever is wrong becomes words: nothing here raises because of a plugin, and a probe that does not come back is left
behind. What all of this is for, and in which order platforms are chosen, is `discovery`'s.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from core.contracts.adapters import adapt
from core.contracts.platform import Device, Platform, Probe
from core.contracts.validation import capability_problems, platform_problems, probe_problems
from core.errors import ContractViolation, CoreError

PROBE_SECONDS = 5.0
"""What a probe has before it is given up. Without hardware it takes milliseconds; a waking driver may take seconds."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True)
class FoundPlatform:
    """One platform package. `platform` is None when it broke its contract; `error` says how.

    distribution, version  that it was installed with
    contract               that it was written for
    """

    name: str
    distribution: str
    version: str
    summary: str
    device_type: str
    contract: tuple[int, int]
    platform: Platform | None
    probe: Probe
    error: str | None = None

    @property
    def state(self) -> str:
        """In one word."""
        return "broken" if self.error else "available" if self.probe.available else "unavailable"


def examine(declared: Any, distribution: str, version: str) -> FoundPlatform:
    """Check a platform class, probe it, and check what it declares. Raises when it has not even a name."""
    problems = platform_problems(declared)
    name = getattr(declared, "name", None)
    if not isinstance(name, str) or not name:
        raise ContractViolation("; ".join(problems) or f"name is {name!r}")
    platform, probe, error = None, Probe(available=False, reason=""), None
    if problems:
        error = f"breaks its contract: {'; '.join(problems)}"
    else:
        platform, probe, error = _probed(declared, name)
    if error is not None:
        platform, probe = None, Probe(available=False, reason=error)
    return FoundPlatform(
        name=name,
        distribution=distribution,
        version=version,
        summary=str(getattr(declared, "summary", "")),
        device_type=str(getattr(declared, "device_type", "")),
        contract=_version_of(declared),
        platform=platform,
        probe=probe,
        error=error,
    )


def reason_of(error: BaseException) -> str:
    """An error in one line of at most 300 characters."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, CoreError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _probed(declared: type[Platform], name: str) -> tuple[Platform | None, Probe, str | None]:
    """The platform, what it found, and what is wrong."""
    nothing = Probe(available=False, reason="")
    try:
        platform, probe = within(PROBE_SECONDS, lambda: _constructed(declared), f"the probe of {name}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # some raise what is no Exception
        return None, nothing, f"its probe failed: {reason_of(error)}"
    if problems := probe_problems(probe):
        return None, nothing, f"its probe failed: {'; '.join(problems)}"
    if not probe.available:
        return platform, probe, None
    try:
        problems = _manifest_problems(platform, probe.devices[0])
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, nothing, f"its capabilities failed: {reason_of(error)}"
    return platform, probe, f"breaks its contract: {'; '.join(problems)}" if problems else None


def _constructed(declared: type[Platform]) -> tuple[Platform, Any]:
    platform = adapt(declared)()
    return platform, platform.probe()


def _manifest_problems(platform: Platform, device: Device) -> list[str]:
    return capability_problems(
        within(PROBE_SECONDS, lambda: platform.capabilities(device), f"capabilities() of {platform.name}")
    )


def within(seconds: float, call: Callable[[], _Answer], what: str) -> _Answer:
    """The answer of `call`, or what it raised. Raises TimeoutError when it takes longer; it is then left behind."""
    answers: list[_Answer] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # whoever waits raises it
            errors.append(error)

    thread = threading.Thread(target=work, name=what, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"{what} did not come back within {seconds:g} s")
    if errors:
        raise errors[0]
    return answers[0]


def _version_of(declared: Any) -> tuple[int, int]:
    match getattr(declared, "contract", None):
        case (int(major), int(minor)):
            return major, minor
        case _:
            return 0, 0
