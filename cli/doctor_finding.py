"""One finding of `llm doctor`: what was looked at, how it is, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "problem"]

_SUBJECT_WIDTH = 18
_INDENT = " " * (len("problem  ") + _SUBJECT_WIDTH + 1)


@dataclass(frozen=True, slots=True)
class Finding:
    """verdict  "problem" is what the user can change and what costs a good part of the speed, or all of it."""

    subject: str
    verdict: Verdict
    found: str
    next_step: str = ""

    def line(self) -> str:
        """As it is printed. What has several lines, an error that lists platforms, goes on below its first."""
        step = f"; {self.next_step}" if self.next_step else ""
        text = f"{self.found}{step}".replace("\n", f"\n{_INDENT}")
        return f"{self.verdict:<8} {self.subject:<{_SUBJECT_WIDTH}} {text}\n"
