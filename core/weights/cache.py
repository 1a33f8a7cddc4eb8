"""Our own folder for downloads, and a lock so that two first runs do not trample each other."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from core.errors import ConfigError


def cache_dir() -> Path:
    """$LLM_CACHE, else $XDG_CACHE_HOME/llm, else ~/.cache/llm. Not created here."""
    if chosen := os.environ.get("LLM_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "llm"


def make_private(folder: Path) -> Path:
    """Create a folder of the cache, and the cache itself, for this user only.

    Raises ConfigError when that is impossible, naming the variable that moves the cache.
    """
    try:
        for part in (cache_dir(), folder):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache folder {folder} cannot be created: {error.strerror}; "
            "set LLM_CACHE to a folder that you can write to",
            setting="LLM_CACHE",
        ) from error
    return folder


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold a lock named after `folder`, waiting for whoever holds it; the system frees it if we die."""
    make_private(folder.parent)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
