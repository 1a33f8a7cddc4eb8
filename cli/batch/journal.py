"""The output of a batch, which is also the record of what is done.

Lines are appended and synced before they count, so that whatever ends the run, at most the last line is torn. The
next run cuts that off and goes on with the requests that no line answers. A lock keeps two runs apart.
"""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from cli.failures import CommandError, file_errors


class _Response(msgspec.Struct):
    status_code: int


class _Answered(msgspec.Struct):
    custom_id: str
    response: _Response | None


class Journal:
    """A file of answers, one per line; a context manager.

    answered  custom ids of the lines that were there, and whether those requests succeeded

    Raises CommandError when the file cannot be had, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():
            raise CommandError(f"cannot write {path}: it is no regular file")
        with file_errors(f"write {path}"):
            self._file: BinaryIO = path.open("a+b", buffering=0)
        try:
            self._lock()
            self.answered = self._repaired()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, lines: Sequence[bytes]) -> None:
        """Write whole lines; when this returns they are on the disk. Raises CommandError."""
        left = memoryview(b"".join(lines))
        with file_errors(f"write {self.path}"):
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"another run is writing {self.path}; wait for it, or choose another"
            ) from None

    def _repaired(self) -> dict[str, bool]:
        """What is there, after a last line that was not finished is cut off."""
        found: dict[str, bool] = {}
        sound = 0  # bytes
        with file_errors(f"read {self.path}"), self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    self._file.truncate(sound)
                    break
                answer = self._answer(number, line)
                found[answer.custom_id] = answer.response is not None and answer.response.status_code == 200
                sound += len(line)
        return found

    def _answer(self, number: int, line: bytes) -> _Answered:
        try:
            return msgspec.json.decode(line, type=_Answered)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise CommandError(
                f"{self.path}, line {number}, is no answer of a batch; choose another file"
            ) from None
