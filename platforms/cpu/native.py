"""The kernels in C++: compiled for this very machine when they are first needed, and kept in the cache.

Without a compiler, or without a cache to write to, the torch path runs; the log says why, once.
"""

import ctypes
import hashlib
import logging
import os
import platform as host
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from core.errors import ConfigError
from core.weights.cache import cache_dir, locked, make_private

log = logging.getLogger("platforms.cpu")

HEAD_DIMS = (16, 32, 64, 96, 128)
MAX_GROUP = 16
DTYPES = ("bfloat16", "float32")

_SOURCE = Path(__file__).with_name("decode.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp")
_COMPILE_SECONDS = 120


class DecodeKernel:
    """Paged attention for one new token per sequence, without gathering: see decode.cpp for the layouts."""

    def __init__(self, library: ctypes.CDLL, dtype: str, head_dim: int) -> None:
        self._function = getattr(library, f"decode_{dtype}_{head_dim}")
        self._function.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 7 + [ctypes.c_float]
        self._function.restype = None

    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        block_tables: Tensor,
        lengths: Tensor,
        output: Tensor,
        *,
        window: int | None,
        scale: float,
    ) -> None:
        """Fill `output` [B, Hq, D] from `query` alike; keys and values [Hkv, num_blocks, block_size, D].

        Every tensor is contiguous; block_tables [B, width] and lengths [B] are int32.
        """
        pointers = (t.data_ptr() for t in (query, keys, values, block_tables, lengths, output))
        num_kv_heads, num_blocks, block_size, _ = keys.shape
        batch, num_heads, _ = query.shape
        width = block_tables.shape[1]
        self._function(
            *pointers, batch, width, num_heads, num_kv_heads, num_blocks, block_size, window or 0, scale
        )


def decode_kernel(dtype: str, head_dim: int, group: int) -> DecodeKernel | None:
    """The kernel for such heads, or None where it does not apply or cannot be built."""
    if dtype not in DTYPES or head_dim not in HEAD_DIMS or group > MAX_GROUP:
        return None
    library = _library()
    return None if library is None else DecodeKernel(library, dtype, head_dim)


@cache
def _library() -> ctypes.CDLL | None:
    try:
        # The kernels use torch's own thread pool: a second one would fight it for the cores.
        ctypes.CDLL(_torch_openmp(), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError, ConfigError) as error:
        said = getattr(error, "stderr", None) or error
        log.warning("decode attention runs on torch operations, several times slower: %s", said)
        return None


def _torch_openmp() -> str:
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "libgomp" in line:
                return line.split()[-1]
    raise OSError(f"torch {torch.__version__} does not use the GNU OpenMP library")


def _compiled() -> Path:
    """The shared library for this source, compiler and processor. Raises OSError or SubprocessError."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        raise OSError("no C++ compiler was found; install g++, or name one in CXX")
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    parts = (_SOURCE.read_text(), *_FLAGS, compiler, version, _processor())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = cache_dir() / "kernels"
    make_private(folder)
    built = folder / f"decode-{key}.so"
    if not built.exists():
        with locked(folder):
            if not built.exists():
                _compile(compiler, built)
    return built


def _compile(compiler: str, built: Path) -> None:
    """Compile beside the target, then rename: nobody sees half a library."""
    with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
        compiled, linked = Path(scratch, "decode.o"), Path(scratch, "decode.so")
        # Linked without -fopenmp, so that the symbols come from the library torch has loaded.
        for command in (
            [compiler, *_FLAGS, "-c", str(_SOURCE), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), "-o", str(linked)],
        ):
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=_COMPILE_SECONDS)
        linked.replace(built)


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return host.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), host.machine())
