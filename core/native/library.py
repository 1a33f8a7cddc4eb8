"""The compiled kernels, loaded into this process beside torch.

Says what went wrong as text, once per process: a kernel that cannot be had is a kernel that is rejected, and
the engine runs without it.
"""

import ctypes
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from core.errors import CoreError
from core.native.toolchain import NativeBuild, compiled, hold

log = logging.getLogger("core.native")

# torch's thread pool, by the names under which the library comes. All have the functions that csrc/team.h calls.
_OPENMP = ("libgomp", "libiomp5", "libomp")


@dataclass(frozen=True)
class NativeLibrary:
    """A loaded library; `functions.NAME` is its C function of that name."""

    path: Path
    functions: ctypes.CDLL


@cache
def native_library(build: NativeBuild) -> NativeLibrary | str:
    """The library of this build, compiled first where it has to be; else the reason why there is none."""
    try:
        # The kernels use torch's own thread pool: a second one would fight it for the cores.
        ctypes.CDLL(str(openmp_library()), mode=ctypes.RTLD_GLOBAL)
        return _loaded(build)
    except (OSError, CoreError) as error:
        log.warning(
            "the C++ kernels cannot be used; torch operations run instead, several times slower: %s", error
        )
        return str(error)


def openmp_library() -> Path:
    """The OpenMP library that torch has loaded; other packages may have brought theirs. Raises OSError for none."""
    import torch

    folder = str(Path(torch.__file__).parent)  # or torch.libs beside it
    mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    for name in _OPENMP:
        for path in sorted(mapped, key=lambda path: (not path.startswith(folder), path)):
            if Path(path).name.startswith((f"{name}.", f"{name}-")):
                return Path(path)
    raise OSError(f"torch {torch.__version__} has loaded no OpenMP library, whose threads the kernels share")


def _loaded(build: NativeBuild) -> NativeLibrary:
    """A file that does not load, such as one that a full disk cut short, is made again."""
    path = compiled(build)
    try:
        return _opened(path)
    except OSError as error:
        if "undefined symbol" in str(error):
            raise OSError(f"{error}; torch has loaded {openmp_library()}, which lacks it") from error
        path.unlink(missing_ok=True)
        return _opened(compiled(build))


def _opened(path: Path) -> NativeLibrary:
    hold(path)
    return NativeLibrary(path, ctypes.CDLL(str(path)))
