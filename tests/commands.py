"""The `llm` command, called in this process."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cli.doctor_finding import Finding
from cli.main import main


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    def findings(self) -> dict[str, Finding]:
        """What `llm doctor --json` found, by subject."""
        return {found["subject"]: Finding(**found) for found in json.loads(self.out)}


Run = Callable[..., Answer]


def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object, stdin: str = ""
) -> Answer:
    """What `llm` with these arguments prints, and how it leaves."""
    monkeypatch.setattr(sys, "argv", ["llm", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    capsys.readouterr()
    try:
        code: Any = main()
    except SystemExit as left:
        code = left.code
    captured = capsys.readouterr()
    return Answer(code or 0, captured.out, captured.err)
