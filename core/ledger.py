"""What was chosen at load, from whom, and why not the others. Nothing is selected silently."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A provider that was considered and not taken."""

    provider: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One line: `what` was needed, `provider` serves it, `rejected` do not."""

    what: str
    provider: str
    detail: str = ""
    rejected: tuple[Rejection, ...] = ()


@dataclass
class Ledger:
    """Choices in the order they were made."""

    choices: list[Choice] = field(default_factory=list[Choice])

    def record(
        self, what: str, provider: str, detail: str = "", *, rejected: tuple[Rejection, ...] = ()
    ) -> None:
        """Write one line. An identical line is written once."""
        choice = Choice(what=what, provider=provider, detail=detail, rejected=rejected)
        if choice not in self.choices:
            self.choices.append(choice)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Plain data, for JSON."""
        return [asdict(choice) for choice in self.choices]
