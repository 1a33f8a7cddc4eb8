"""What an adapter is: all that this comparison knows of one engine, in one module of this package.

Two sides use an adapter. `run.py` asks it for variables of the environment and for the command of a server;
`measure.py`, in the engine's own environment, loads the engine through it. So the engine itself is imported in
`load` and nowhere else, and nothing here needs more than the standard library.
"""

import importlib
import resource
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

NAMES = ("core", "vllm", "openvino", "llama_cpp")
MODES = ("f32", "bf16", "int8", "int4")


@dataclass(frozen=True)
class Settings:
    """What an engine is started with.

    program     the interpreter of the engine's environment; for llama.cpp the path of llama-server
    model       a folder or file, already in the form that the engine reads in this mode
    cache_gib   memory for keys and values, where the engine takes it in bytes
    options     what else the adapter takes, by name
    """

    program: str
    model: str
    mode: str
    threads: int = 2
    cache_gib: int = 4
    options: dict[str, Any] = field(default_factory=dict[str, Any])


class Engine(Protocol):
    """A loaded engine."""

    @property
    def version(self) -> str: ...

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        """Exactly `num_new` ids for each prompt, greedy, the end of a sequence ignored, all prompts at once."""
        ...

    def peak_rss_mb(self) -> int:
        """The most memory that was resident at once."""
        ...

    def close(self) -> None: ...


class InProcess:
    """What engines have in common that run in this very process."""

    def peak_rss_mb(self) -> int:
        """The peak of this process or of its largest child that has ended."""
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return max(resource.getrusage(kind).ru_maxrss for kind in kinds) // 1024

    def close(self) -> None:
        """The process ends after this, and the engine with it."""


class Adapter(Protocol):
    """The functions of a module of this package."""

    def environment(self, settings: Settings) -> dict[str, str]:
        """Variables that must be set before the engine's process starts. OMP_* of the caller are gone."""
        ...

    def load(self, settings: Settings) -> Engine:
        """Load the engine. Raises ValueError for an option that it does not take."""
        ...

    def serve(self, settings: Settings, port: int) -> list[str]:
        """The command of a server with /health and /v1/completions on 127.0.0.1, whose model is named `m`."""
        ...


def adapter(name: str) -> Adapter:
    return cast(Adapter, importlib.import_module(f"engines.{name}"))


def pinned(threads: int) -> dict[str, str]:
    """A core for each OpenMP thread, for engines that do not see to it themselves."""
    return {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores", "OMP_NUM_THREADS": str(threads)}


def only(options: dict[str, Any], *known: str) -> dict[str, Any]:
    """The options, all of which are known. Raises ValueError that names one which is not."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}; this adapter takes {', '.join(known) or 'none'}")
    return options
