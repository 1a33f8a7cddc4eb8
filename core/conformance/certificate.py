"""What a run of the kit found, as a file: of which platform, on which machine, result by result.

The sha256 in it is over everything else, so that a certificate that was edited, or cut short, is refused. It shows an
accident and not a forger: whoever signed off is a text.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec

import core
from core.conformance import Result
from core.conformance.facts import Lines, distribution_version, lines_of, machine, sources_sha256
from core.contracts.platform import Device, Platform
from core.contracts.versions import VERSIONS, text
from core.errors import CoreError

FORMAT = 1
"""Of the file. Another number is another reader's."""


class BadCertificate(CoreError):
    """A file is no certificate, or not the one that was written."""


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One `Result`, less its level."""

    subject: str
    case: str
    dtype: str = ""
    problem: str = ""
    unsupported: str = ""
    figures: dict[str, float] = {}


class LevelReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One level: how many of its checks passed, were wrong, and are not supported, and what each found."""

    passed: int
    wrong: int
    not_supported: int
    seconds: float
    results: tuple[Finding, ...]

    @property
    def checks(self) -> int:
        return len(self.results)

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.passed, self.wrong, self.not_supported


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run of the kit.

    core           version of the core; contracts: of each contract, as "2.0"
    distribution   that brought the platform, and its version
    machine        processor, memory, system, python, torch
    date           when it was made, in UTC
    quick          whether only the part was run that shows most in little time
    lines          of the platform's own package; sources_sha256: over its source files, by which a change is seen;
                   core_sources_sha256: over the core's, where the reference, shared kernels and this kit are
    signed_off_by  who stands for it; empty: nobody
    """

    format: int = FORMAT
    core: str
    contracts: dict[str, str]
    platform: str
    distribution: str
    distribution_version: str
    device: str
    machine: dict[str, str]
    date: str
    quick: bool
    levels: dict[str, LevelReport]
    lines: Lines
    sources_sha256: str
    core_sources_sha256: str
    signed_off_by: str = ""

    @property
    def checks(self) -> int:
        return sum(level.checks for level in self.levels.values())

    @property
    def wrong(self) -> int:
        return sum(level.wrong for level in self.levels.values())

    def rows(self) -> list[tuple[str, ...]]:
        """(level, checks, passed, wrong, not supported, seconds) of each level, as texts."""
        return [
            (name, *(f"{count:,}" for count in (level.checks, *level.counts)), f"{level.seconds:.1f}")
            for name, level in self.levels.items()
        ]

    def as_dict(self, *, sealed: bool = True) -> dict[str, Any]:
        """Plain data, with the sha256 of the rest. Unsealed it has none, and is no certificate to any reader."""
        body: dict[str, Any] = msgspec.to_builtins(self)
        return body | {"sha256": _digest(body)} if sealed else body


ROWS = ("level", "checks", "passed", "wrong", "not supported", "seconds")
"""What `Certificate.rows` has in its columns."""


def certify(
    platform: Platform,
    device: Device,
    levels: Mapping[str, tuple[float, Iterable[Result]]],
    *,
    distribution: str,
    quick: bool = False,
    signed_off_by: str = "",
) -> Certificate:
    """A certificate of what was found here and now.

    levels  by name, the seconds that it took and what it found
    """
    return Certificate(
        core=core.__version__,
        contracts={name: text(version) for name, version in VERSIONS.items()},
        platform=platform.name,
        distribution=distribution,
        distribution_version=distribution_version(distribution),
        device=device.name,
        machine=machine(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=quick,
        levels={name: _level(seconds, results) for name, (seconds, results) in levels.items()},
        lines=lines_of(platform),
        sources_sha256=sources_sha256(type(platform).__module__),
        core_sources_sha256=sources_sha256("core"),
        signed_off_by=signed_off_by,
    )


def write(certificate: Certificate, path: Path) -> None:
    """Write the file, a result a line. Raises OSError when it cannot be written."""
    path.write_text(as_text(certificate), encoding="utf-8")


def as_text(certificate: Certificate) -> str:
    """The file's contents: JSON, in which each result has a line."""
    document = certificate.as_dict()
    levels = {name: _level_text(level) for name, level in document["levels"].items()}
    parts = {
        name: _object_text(levels, " ") if name == "levels" else json.dumps(value, ensure_ascii=False)
        for name, value in document.items()
    }
    return _object_text(parts, "") + "\n"


def read(path: Path) -> Certificate:
    """A certificate as it was written. Raises BadCertificate saying what is wrong with the file."""
    try:
        stored: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise BadCertificate(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError) as error:
        raise BadCertificate(f"{path} is not JSON: {error}") from None
    if not isinstance(stored, dict):
        raise BadCertificate(f"{path} holds a JSON {type(stored).__name__}; a certificate is an object")
    body = cast("dict[str, Any]", stored)
    claimed = body.pop("sha256", None)
    if body.get("format") != FORMAT:
        raise BadCertificate(f"{path} is of format {body.get('format')!r:.40}; this core reads {FORMAT}")
    found = _digest(body)
    if claimed != found:
        raise BadCertificate(
            f"{path} was changed after it was written: it states the sha256 {str(claimed)[:12]}…, and its contents "
            f"have {found[:12]}…. Run  llm conformance  again"
        )
    return _checked(path, body)


def _checked(path: Path, body: Mapping[str, Any]) -> Certificate:
    try:
        certificate = msgspec.convert(body, Certificate, strict=True)
    except msgspec.ValidationError as error:
        raise BadCertificate(f"{path} is no certificate: {error}") from None
    for name, level in certificate.levels.items():
        if level.counts != _counts(level.results):
            raise BadCertificate(f"{path} states {level.counts} for {name}, whose results say otherwise")
    return certificate


def _level(seconds: float, results: Iterable[Result]) -> LevelReport:
    findings = tuple(_finding(result) for result in results)
    passed, wrong, not_supported = _counts(findings)
    return LevelReport(
        passed=passed,
        wrong=wrong,
        not_supported=not_supported,
        seconds=round(float(seconds), 1),
        results=findings,
    )


def _finding(result: Result) -> Finding:
    """Figures that JSON cannot hold are left out."""
    return Finding(
        subject=result.subject,
        case=result.case,
        dtype=result.dtype,
        problem=result.problem,
        unsupported=result.unsupported,
        figures={name: float(value) for name, value in result.figures.items() if math.isfinite(value)},
    )


def _counts(findings: Iterable[Finding]) -> tuple[int, int, int]:
    """(passed, wrong, not supported); what is wrong counts as nothing else."""
    found = list(findings)
    wrong = sum(bool(finding.problem) for finding in found)
    not_supported = sum(bool(finding.unsupported) and not finding.problem for finding in found)
    return len(found) - wrong - not_supported, wrong, not_supported


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _level_text(level: Mapping[str, Any]) -> str:
    parts = {name: json.dumps(value) for name, value in level.items() if name != "results"}
    results = ",\n   ".join(json.dumps(result, ensure_ascii=False) for result in level["results"])
    return _object_text(parts | {"results": f"[\n   {results}\n  ]" if results else "[]"}, "  ")


def _object_text(parts: Mapping[str, str], indent: str) -> str:
    return (
        "{\n"
        + ",\n".join(f"{indent} {json.dumps(name)}: {part}" for name, part in parts.items())
        + f"\n{indent}}}"
    )
