"""What a command writes, and where: results on stdout, everything else on stderr.

Colour and status lines are for terminals only; a pipe gets plain text, and --json one JSON value.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from cli.failures import file_errors

DIM, RESET, CLEAR_LINE = "\033[2m", "\033[0m", "\r\033[K"
PIPE_WIDTH = 10_000


def dim(text: str, stream: TextIO) -> str:
    """`text` in a fainter shade where `stream` is a terminal that may be coloured."""
    plain = not stream.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"{DIM}{text}{RESET}"


class Status:
    """Lines on stderr that say what takes time. On a terminal each replaces the one before."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._terminal = sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        if self.quiet:
            return
        if self._terminal:
            sys.stderr.write(f"{CLEAR_LINE}{dim(line, sys.stderr)}")
        else:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def update(self, line: str) -> None:
        """A newer version of the last line; a pipe does not get it."""
        if self._terminal:
            self(line)

    def clear(self) -> None:
        """Take the last line away before results are written."""
        if self._terminal and not self.quiet:
            sys.stderr.write(CLEAR_LINE)
            sys.stderr.flush()

    def note(self, line: str) -> None:
        """A closing remark; only for a person, so a pipe does not get it."""
        if self._terminal and not self.quiet:
            sys.stderr.write(f"{dim(line, sys.stderr)}\n")


def write(text: str) -> None:
    """Write a piece of the result at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def check_writable(*paths: Path | None) -> None:
    """Before what takes long: raises CommandError where a file that is to be written at its end cannot be."""
    for path in paths:
        if path is not None and str(path) != "-":
            with file_errors(f"write {path}"), path.open("ab"):
                pass


def write_json(value: Any, path: Path | None = None) -> None:
    """Write `value` to a file, or on stdout when `path` is None or "-"."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    if path is None or str(path) == "-":
        write(text)
        return
    with file_errors(f"write {path}"):
        path.write_text(text, encoding="utf-8")


def write_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A titled table on stdout, "none" when it is empty. In a pipe it is so wide that lines stay whole."""
    if not rows:
        write(f"{title}: none\n\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    write(f"{title}\n")
    console.print(table)
