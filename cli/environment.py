"""`llm collect-env`: everything a bug report needs to know of this machine. Secrets are left out."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import takes
from cli.terminal import write, write_json
from core.config import format_bytes

PACKAGES = (
    "core", "torch", "transformers", "tokenizers", "safetensors", "gguf", "huggingface-hub", "numpy",
    "pluggy", "fastapi", "uvicorn", "pydantic", "pyzmq", "msgspec", "typer", "rich", "modelscope",
)  # fmt: skip
VARIABLES = (
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "TORCH",
    "LLM_",
    "HF_",
    "PIP_INDEX_URL",
    "PIP_NO_INDEX",
    "LD_PRELOAD",
)
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "URL", "ENDPOINT", "PROXY")
NAME_WIDTH = 30
COMPILERS = ("c++", "g++", "clang++")


@takes()
def collect_env(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Everything a bug report should say of this machine."""
    facts = as_dict()
    if json:
        write_json(facts)
        return
    for section, values in facts.items():
        write(f"{section}\n")
        for name, value in values.items() or [("none", "")]:
            write(f"  {name:<{NAME_WIDTH}}  {value}\n")


def as_dict() -> dict[str, dict[str, Any]]:
    """Sections of name -> value. Imports no package to learn its version."""
    return {
        "software": _software(),
        "machine": _machine(),
        "variables": _variables(),
        "platforms": _platforms(),
        "compilers": _compilers(),
    }


def _software() -> dict[str, str]:
    found = {"python": platform.python_version(), "executable": sys.executable, "system": platform.platform()}
    libc, libc_version = platform.libc_ver()
    return {**found, "libc": f"{libc} {libc_version}".strip(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, Any]:
    import psutil

    from core.native.cores import usable_processors

    memory = psutil.virtual_memory()
    return {
        "processor": _processor_line("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "vector instructions": vector_instructions(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "threads usable by this process": len(usable_processors()),
        "cpu limit (cgroup)": _cgroup("cpu.max"),
        "memory": format_bytes(memory.total),
        "memory available": format_bytes(memory.available),
        "memory limit (cgroup)": _cgroup("memory.max"),
    }


def _processor_line(key: str) -> str | None:
    """The value of `key` for the first processor in /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next(
        (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None
    )


def vector_instructions() -> str:
    """What the processor has of them, by the names in /proc/cpuinfo."""
    flags = (_processor_line("flags") or _processor_line("Features") or "").split()
    known = ("sse4", "avx", "fma", "f16c", "amx", "neon", "asimd", "sve", "bf16", "i8mm")
    return " ".join(sorted(flag for flag in flags if flag.startswith(known))) or "unknown"


def _cgroup(name: str) -> str:
    try:
        return Path("/sys/fs/cgroup", name).read_text(encoding="utf-8").strip()
    except OSError:
        return "none found"


def _variables() -> dict[str, str]:
    """Variables that change how we run; of those that may hold a secret, only that they are set."""
    named = {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
    return {name: "(set)" if any(word in name for word in SECRET) else value for name, value in named.items()}


def _platforms() -> dict[str, str]:
    from core.discovery import load_plugins

    plugins = load_plugins()
    found = {f.name: f"{f.state}: {f.probe.reason}" for f in plugins.platforms}
    return {**found, **{f.plugin: str(f) for f in plugins.failures}}


def _compilers() -> dict[str, str]:
    found = {name: path for name in COMPILERS if (path := shutil.which(name))}
    return {name: _first_line(path) for name, path in found.items()} or {"c++": "none found"}


def _first_line(compiler: str) -> str:
    try:
        answer = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{compiler} does not answer: {error}"
    return f"{answer.stdout.partition(chr(10))[0]} ({compiler})"
