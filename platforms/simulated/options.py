"""The settings of the simulation, from one environment variable.

LLM_SIMULATED="memory=256MiB,block_size=24,fail_kernel=rms_norm@100,oom_after=3,hang_step=5"
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from core.config import parse_bytes
from core.contracts.kernels import Kernels
from core.errors import ConfigError

VARIABLE = "LLM_SIMULATED"


@dataclass(frozen=True, kw_only=True)
class KernelFault:
    """The `call`-th call of this kernel raises, counted from 1 over all layers."""

    kernel: str
    call: int


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is simulated.

    memory          bytes that may be allocated
    block_size      the only one accepted; None: 24 or 12
    alignment       every allocation's size is a multiple of this many bytes
    separate_steps  refuse steps that mix prompts and decodes
    token_multiple  refuse steps whose token count is not a multiple of this
    max_num_seqs    refuse steps of more sequences
    latency_ms      added to every step
    fail_kernel     NAME@CALL: that call raises
    oom_after       allocations that succeed before all others fail
    hang_step       this step, counted from 1, does not return for hang_seconds
    """

    memory: int = 2**30
    block_size: int | None = None
    alignment: int = 192
    separate_steps: bool = True
    token_multiple: int = 8
    max_num_seqs: int | None = None
    latency_ms: float = 0.0
    fail_kernel: KernelFault | None = None
    oom_after: int | None = None
    hang_step: int | None = None
    hang_seconds: float = 3600.0

    @classmethod
    def parse(cls, text: str) -> "Options":
        """From "name=value,name=value". Raises ConfigError naming the value and what is accepted."""
        values: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (part.strip() for part in item.partition("="))
            if name not in _READERS:
                known = [f.name for f in fields(cls)]
                close = get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                raise ConfigError(f"{VARIABLE} has no option {name!r}; {hint}", setting=VARIABLE)
            if not equals or name in values:
                problem = "is given twice" if name in values else f"has no value; write {name}=VALUE"
                raise ConfigError(f"{VARIABLE}: {name} {problem}", setting=VARIABLE)
            values[name] = _READERS[name](name, value)
        return cls(**values)

    @classmethod
    def from_environment(cls) -> "Options":
        """As LLM_SIMULATED says now."""
        return cls.parse(os.environ.get(VARIABLE, ""))


def _refused(name: str, value: str, accepted: str) -> ConfigError:
    return ConfigError(f"{VARIABLE}: {name} is {value!r}; {accepted}", setting=VARIABLE)


def _bytes(name: str, value: str) -> int:
    return parse_bytes(value, f"{VARIABLE}: {name}")


def _flag(name: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise _refused(name, value, "0 or 1 is accepted")
    return value == "1"


def _count(least: int) -> Callable[[str, str], int]:
    def read(name: str, value: str) -> int:
        if not (value.isascii() and value.isdigit() and int(value) >= least):
            raise _refused(name, value, f"a whole number from {least} up is accepted")
        return int(value)

    return read


def _duration(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise _refused(name, value, "a number from 0 up is accepted")
    return number


def _fault(name: str, value: str) -> KernelFault:
    kernels = [f.name for f in fields(Kernels)]
    kernel, _, call = value.partition("@")
    if kernel not in kernels:
        raise _refused(name, value, f"NAME@CALL is accepted, with NAME one of {', '.join(kernels)}")
    return KernelFault(kernel=kernel, call=_count(1)(f"{name}={kernel}@CALL", call))


_READERS: Mapping[str, Callable[[str, str], Any]] = {
    "memory": _bytes,
    "block_size": _count(1),
    "alignment": _count(1),
    "separate_steps": _flag,
    "token_multiple": _count(1),
    "max_num_seqs": _count(1),
    "latency_ms": _duration,
    "fail_kernel": _fault,
    "oom_after": _count(0),
    "hang_step": _count(1),
    "hang_seconds": _duration,
}
