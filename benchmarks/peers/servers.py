"""A server as a process of its own: started, found ready, measured, and ended with everything that it started."""

import asyncio
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import client

START_S = 300.0
GRACE_S = 20.0


class ServerFailed(Exception):
    """The server did not start, or ended early; the message ends with what it said last."""


@dataclass(frozen=True)
class Server:
    """A server process, the moment it was started, and its log."""

    process: subprocess.Popen[bytes]
    port: int
    started: float
    log: Path

    def check(self) -> None:
        """Raise ServerFailed if the server has ended or takes longer than it may."""
        if self.process.poll() is None and time.perf_counter() - self.started < START_S:
            return
        what = "is not ready" if self.process.poll() is None else f"ended with {self.process.returncode}"
        said = self.log.read_text(errors="replace")[-400:]
        raise ServerFailed(f"the server {what} after {time.perf_counter() - self.started:.0f} s: {said}")

    def seconds_to_health(self) -> float:
        while not asyncio.run(client.healthy(self.port)):
            self.check()
            time.sleep(0.1)
        return time.perf_counter() - self.started

    def seconds_to_first_token(self) -> float:
        """From the start of the process to the first streamed event of a short completion, asked for without pause."""
        body: dict[str, Any] = {
            "model": "m",
            "prompt": "The capital of France is",
            "max_tokens": 8,
            "temperature": 0,
        }
        while True:
            first = asyncio.run(_first_event(self.port, body | {"stream": True}))
            if first is not None:
                return first - self.started
            self.check()
            time.sleep(0.03)

    def peak_rss_mb(self) -> int:
        """The peaks of the server's process and of all below it, summed."""
        return sum(_peak_rss_kb(pid) for pid in _tree(self.process.pid)) // 1024


async def _first_event(port: int, body: dict[str, Any]) -> float | None:
    try:
        async for _ in client.events(port, "/v1/completions", body):
            return time.perf_counter()
    except (OSError, client.ServerError, asyncio.IncompleteReadError):
        pass  # not yet
    return None


def _tree(root: int) -> set[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # ended meanwhile
    members = {root}
    while more := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= more
    return members


def _peak_rss_kb(pid: int) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


@contextmanager
def running(command: list[str], environment: dict[str, str], port: int) -> Iterator[Server]:
    """The server while the block runs. Raises ServerFailed when somebody else has the port."""
    if client.answers(port):
        raise ServerFailed(f"port {port} is taken")
    # The working folder is empty, so that `python -m` finds no module of ours beside it.
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            start = time.perf_counter()
            process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=out, stderr=out, start_new_session=True
            )
        try:
            yield Server(process, port, start, log)
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever is left of its session."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
