"""Processes of the kit: told what to do, and heard, in lines of JSON; ended with whatever they started.

`Child` is the side of whoever starts one, `Parent` that of the process itself.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import psutil

from core.engine.spawn import environment

START_SECONDS = 120.0
"""How long a process may say nothing while it starts: it imports torch, and whatever the platform needs."""

EXIT_SECONDS = 10.0
"""From a process's last word to its end."""

_LEAVE_SECONDS = 1.0  # once its standard input has ended

Said = Mapping[str, Any]
Job = TypeVar("Job")


class Child:
    """A process, in a session of its own.

    errors  the file that has what it writes to standard error
    closed  whether it has said its last word: most likely it has ended
    """

    def __init__(self, module: str, errors: Path, **variables: str) -> None:
        self._errors, self._unread = errors, b""
        self._exit_code: int | None = None
        self.closed = False
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment() | variables,
                start_new_session=True,
            )

    def tell(self, job: Said) -> None:
        """What to do next. Nothing happens when it is dead already."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()

    def fileno(self) -> int:
        """Of the pipe that it speaks through."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def heard(self) -> list[Said]:
        """What it says next, as far as it has come; waits until there is something, or `closed`."""
        said = os.read(self.fileno(), 65536)
        *lines, self._unread = (self._unread + said).split(b"\n")
        self.closed = not said
        return [json.loads(line) for line in lines]

    def listen(self, seconds: float) -> list[Said]:
        """What it says next; nothing once it is `closed`, or was silent for so long."""
        lines: list[Said] = []
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while not lines and not self.closed and selector.select(seconds):
                lines = self.heard()
        return lines

    def dismiss(self) -> None:
        """There is nothing more for it to do: its standard input ends."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def end(self, seconds: float) -> None:
        """Wait so long for its exit; end it, and whatever it started, and collect it."""
        assert self._process.stdout is not None
        by_itself = False
        try:
            self.dismiss()
            by_itself = self._exits(seconds)
        finally:
            # Not collected yet, it still owns its number.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.stdout.close()
            code = self._process.wait()
        self._exit_code = code if by_itself else None

    @property
    def ended_badly(self) -> bool:
        """Whether it has ended, and not by leaving with 0."""
        return self._process.returncode is not None and self._exit_code != 0

    @property
    def ending(self) -> str:
        """How it ended, in words; "" where it had to be ended."""
        match self._exit_code:
            case None:
                return ""
            case code if code < 0:
                return f"ended with signal {-code} ({signal.Signals(-code).name})"
            case code:
                return f"ended with exit code {code}"

    @property
    def complaint(self) -> str:
        """The last line that it wrote to standard error, after a colon; "" for none."""
        lines = [line.strip() for line in self._errors.read_text(errors="replace").split("\n")]
        last = next((line[:300] for line in reversed(lines) if line), "")
        return last and f": {last}"

    def _exits(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        process = psutil.Process(self._process.pid)
        while process.status() != psutil.STATUS_ZOMBIE:  # os.waitid tells it too, but not on every system
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True


class Parent:
    """Whoever started this process and told it what to do.

    Once there are no more jobs the process leaves its context, or is made to: in the middle of a job that means that
    the parent is gone.
    """

    def __init__(self) -> None:
        # Standard output is for answers alone; whatever else is printed goes where errors go.
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self._limit = 0
        self._orders, self._leaving = SimpleQueue[bytes](), threading.Event()

    def __enter__(self) -> "Parent":
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()

    def jobs(self, made: Callable[..., Job]) -> Iterator[Job]:
        """One after another, until there are none. Leaves with 2 when what came is none of the kit's."""
        while order := self._orders.get():
            try:
                job = made(**json.loads(order))
            except (ValueError, TypeError) as error:
                print(f"this program is started by core.conformance, not by hand: {error}", file=sys.stderr)
                raise SystemExit(2) from error
            yield job

    def expect(self, seconds: float) -> None:
        """The parent listens for so long at a time; stuck where it cannot notice that, an alarm ends this process."""
        self._limit = int(seconds) + 10
        signal.alarm(self._limit)

    def rest(self) -> None:
        """The next job may be long in coming."""
        self._limit = 0
        signal.alarm(0)

    def say(self, **words: Any) -> None:
        """One line."""
        signal.alarm(self._limit)
        self._answers.write(json.dumps(words) + "\n")

    def _read(self) -> None:
        """Standard input, line by line, and b"" at its end. Whoever does not leave then is made to."""
        with open(0, "rb", buffering=0, closefd=False) as lines:
            for line in lines:
                self._orders.put(line)
        self._orders.put(b"")
        if not self._leaving.wait(_LEAVE_SECONDS):
            os._exit(1)
