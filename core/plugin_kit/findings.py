"""What the check of a plugin found, as plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from core.contracts.versions import Version, text


@dataclass(frozen=True, order=True, kw_only=True)
class Finding:
    """One line of a plugin's sources.

    path    relative to what was checked
    rule    "unreadable", "private", "missing", "house", "method", "contract", "changed", "keyword", "manifest",
            "patch", "hook" or "kernel"
    breaks  the plugin would not work; otherwise it does, for now
    """

    path: str
    line: int
    rule: str
    message: str
    breaks: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was found.

    files    how many were read
    against  the version of each contract that the plugin uses
    """

    files: int
    against: Mapping[str, Version]
    findings: tuple[Finding, ...]

    @property
    def breaking(self) -> int:
        """How many of the findings would keep the plugin from working."""
        return sum(finding.breaks for finding in self.findings)

    def summary(self) -> str:
        """In one line: "2 findings in 5 files, 1 of them would break it; compared with platform 2.0"."""
        compared = ", ".join(f"{contract} {text(version)}" for contract, version in self.against.items())
        behind = f"; compared with {compared}" if compared else "; it uses no contract"
        where = f"{self.files} file{'' if self.files == 1 else 's'}"
        if not self.findings:
            return f"nothing found in {where}{behind}"
        count = len(self.findings)
        broken = f"{self.breaking} of them would break it" if self.breaking else "none of them breaks it"
        return f"{count} finding{'' if count == 1 else 's'} in {where}, {broken}{behind}"

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "files": self.files,
            "against": {contract: text(version) for contract, version in self.against.items()},
            "breaking": self.breaking,
            "findings": [asdict(finding) for finding in self.findings],
        }
