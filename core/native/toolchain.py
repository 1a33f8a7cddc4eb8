"""The C++ kernels, compiled once for a machine and kept in the cache.

Knows compilers, files and the cache. It knows no processor: flags, and headers for an instruction set, come
from the platform whose kernels they are.
"""

import fcntl
import hashlib
import logging
import os
import platform as host
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.errors import PlatformError
from core.weights.cache import cache_dir, locked, make_private

log = logging.getLogger("core.native")

CSRC = Path(__file__).with_name("csrc")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-Wno-psabi")
COMPILERS = ("g++", "c++", "clang++")
COMPILE_SECONDS = 300.0
UNUSED_SECONDS = 30 * 24 * 3600.0  # after which a library of other sources is removed
_AT_ONCE = 2  # compilers that run side by side; each takes up to a gigabyte
_BUILDING = ".building-"  # begins the names of folders in which a library is made
_SHOWN = 3000  # characters of what a compiler said

# What decides the meaning of a flag like -march=native, as /proc/cpuinfo calls it on different machines.
_PROCESSOR_KEYS = frozenset({"flags", "Features", "cpu", "CPU implementer", "CPU part"})


@dataclass(frozen=True)
class NativeBuild:
    """What a platform adds to the sources.

    include  folders in which "isa.h" is looked for before the generic one
    flags    for the compiler, after FLAGS; those that end in "=native" bind the library to this processor
    name     begins the library's file name
    sources  the folder whose *.cpp are compiled
    """

    include: tuple[Path, ...]
    flags: tuple[str, ...]
    name: str
    sources: Path = CSRC


@dataclass(frozen=True)
class Compiler:
    """`command` starts it, `version` is what it says of itself."""

    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler:
    """The compiler named in $CXX, else the first of COMPILERS. Raises PlatformError when there is none."""
    if command := _command():
        return Compiler(tuple(command), _version(command))
    if named := _named():
        raise PlatformError(f"CXX names {named[0]}, which was not found; unset it, or name a C++ compiler")
    raise PlatformError("no C++ compiler was found; install g++, or name one in CXX")


def obtainable(build: NativeBuild) -> bool:
    """Whether there is a compiler for this build, or a library of it already. Runs neither."""
    return _command() is not None or located(build) is not None


def compiled(build: NativeBuild) -> Path:
    """The library of this build: from the cache, else compiled now, by one process while others wait.

    Without a compiler, one that was compiled earlier from the same sources is as good.
    Raises PlatformError with what is missing or what the compiler said, ConfigError when the cache cannot be
    written.
    """
    try:
        path = _target(build, find_compiler())
    except PlatformError:
        if earlier := located(build):
            return _used(earlier)
        raise
    if not path.exists():
        make_private(path.parent)
        _refuse_untrusted(path.parent)
        with locked(path.parent):
            if not path.exists():
                _compile(build, find_compiler(), path)
                _prune(build, path)
    _refuse_untrusted(path.parent)
    return _used(path)


def located(build: NativeBuild) -> Path | None:
    """The library of this build where it is in the cache already, whichever compiler made it."""
    found = folder().glob(f"{build.name}-{_key(build)}-*.so")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def folder() -> Path:
    """Where libraries are kept."""
    return cache_dir() / "kernels"


def command_line(
    compiler: Sequence[str], build: NativeBuild, source: Path, compiled: Path
) -> tuple[str, ...]:
    """The command that compiles one source file."""
    places = (*build.include, build.sources, build.sources / "generic")
    include = (f"-I{place}" for place in places)
    return (*compiler, *FLAGS, *build.flags, *include, "-c", str(source), "-o", str(compiled))


def _named() -> list[str]:
    return shlex.split(os.environ.get("CXX", ""))


def _command() -> list[str] | None:
    """What starts a compiler, where there is one."""
    candidates = [_named()] if _named() else [[name] for name in COMPILERS]
    return next((command for command in candidates if shutil.which(command[0])), None)


def _version(command: Sequence[str]) -> str:
    try:
        asked = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise PlatformError(f"{shlex.join(command)} does not answer: {error}") from error
    return asked.stdout


def hold(library: Path) -> None:
    """Keep a library that this process is about to load from being removed, for as long as the process lives."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(os.open(library, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)


def _target(build: NativeBuild, compiler: Compiler) -> Path:
    made_by = _digest((*compiler.command, compiler.version))[:8]
    return folder() / f"{build.name}-{_key(build)}-{made_by}.so"


def _key(build: NativeBuild) -> str:
    """Changes with every source and every header, too."""
    return f"{_purpose(build)}-{_digest(_contents(build))[:16]}"


def _purpose(build: NativeBuild) -> str:
    """Changes with the flags and, where it matters to them, the processor."""
    native = any(flag.endswith("=native") for flag in build.flags)
    processor = _processor() if native else (host.machine(),)
    return _digest((*FLAGS, *build.flags, *processor))[:8]


def _contents(build: NativeBuild) -> Iterable[str]:
    for place in (build.sources, *build.include):
        for path in sorted(place.rglob("*")):
            if path.suffix in (".h", ".cpp"):
                yield str(path.relative_to(place))
                yield path.read_text(encoding="utf-8")


def _processor() -> tuple[str, ...]:
    """The lines that describe the first processor, without those that change from minute to minute."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return (host.machine(), host.processor())
    told = {line.partition(":")[0].strip(): line for line in reversed(lines)}
    return (host.machine(), *(told[key] for key in sorted(_PROCESSOR_KEYS & told.keys())))


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _refuse_untrusted(place: Path) -> None:
    """Code is only loaded from a folder that nobody but this user, or the system's owner, can write to."""
    status = place.stat()
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        raise PlatformError(
            f"{place} can be written by other users, so nothing is loaded from it; "
            f"run  chmod 700 {place},  or set LLM_CACHE to a folder of your own"
        )


def _used(library: Path) -> Path:
    """Notes that it is in use: what is not, for long enough, is removed."""
    with suppress(OSError):  # a cache that cannot be written
        os.utime(library)
    return library


def _prune(build: NativeBuild, kept: Path) -> None:
    """Remove what `kept` replaces and nobody uses: older libraries of the same flags, and builds that were cut off.

    The caller holds the folder's lock, so that none of them is being made.
    """
    for library in kept.parent.glob(f"{build.name}-{_purpose(build)}-*.so"):
        if library == kept or time.time() - library.stat().st_mtime < UNUSED_SECONDS:
            continue
        with suppress(OSError), library.open("rb") as file:
            fcntl.flock(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # fails while a process has loaded it: see `hold`
            library.unlink()
    for leftover in kept.parent.glob(f"{_BUILDING}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _compile(build: NativeBuild, compiler: Compiler, path: Path) -> None:
    """Compile beside the target, then rename: nobody sees half a library."""
    log.warning("compiling the C++ kernels for this machine, which happens once and takes up to a minute")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_BUILDING) as scratch:
        sources = sorted(build.sources.glob("*.cpp"))
        objects = [Path(scratch, f"{source.stem}.o") for source in sources]
        _run_all(
            [
                command_line(compiler.command, build, source, made)
                for source, made in zip(sources, objects, strict=True)
            ],
            Path(scratch),
        )
        linked = Path(scratch, "linked.so")
        # No OpenMP library is linked: its symbols come from the one that torch has loaded.
        _run_all([(*compiler.command, "-shared", *map(str, objects), "-o", str(linked))], Path(scratch))
        linked.replace(path)


def _run_all(commands: Iterable[Sequence[str]], scratch: Path) -> None:
    """Run commands side by side. Raises PlatformError with the words of the first that fails.

    None outlives this call, however it ends: a compiler is several processes, so each has a group of its own.
    """
    waiting, running = list(commands), dict[subprocess.Popen[bytes], Path]()
    deadline = time.monotonic() + COMPILE_SECONDS
    try:
        while waiting or running:
            if waiting and len(running) < _AT_ONCE:
                said = scratch / f"said-{len(waiting)}"
                running[_start(waiting.pop(0), said)] = said
                continue
            if done := next((process for process in running if process.poll() is not None), None):
                _check(done, running.pop(done))
            elif time.monotonic() > deadline:
                raise PlatformError(f"compiling the kernels took more than {COMPILE_SECONDS:.0f} seconds")
            else:
                time.sleep(0.02)
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(command: Sequence[str], said: Path) -> subprocess.Popen[bytes]:
    with said.open("wb") as stream:
        try:
            return subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
        except OSError as error:
            raise PlatformError(f"{command[0]} cannot be started: {error}") from error


def _check(process: "subprocess.Popen[bytes]", said: Path) -> None:
    if process.returncode != 0:
        words = said.read_text(encoding="utf-8", errors="replace").strip()[:_SHOWN]
        raise PlatformError(f"the C++ kernels do not compile: {words or f'exit {process.returncode}'}")
