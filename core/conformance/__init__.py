"""The kit that proves a platform: its kernels against the reference, its attention against an oracle.

    kernels.py    check_kernels: each declared case of each declared kernel
    quantized.py  cases with weights in the formats that a platform declares
    attention.py  check_attention: ragged batches on a poisoned cache
    scenarios.py  those batches
    paging.py     sequences as a step presents them, and their cache
    compare.py    when two tensors are close enough, and what to say when they are not

Nothing here raises because a platform is wrong: every check gives a `Result`, and wrong ones say why.
"""

from dataclasses import dataclass

from core.contracts.platform import Device, Platform
from core.discovery import Plugins


@dataclass(frozen=True, kw_only=True)
class Result:
    """One check. `problem` is empty when it passed."""

    subject: str
    case: str
    dtype: str
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.subject}, {self.case}, {self.dtype}: {self.problem or 'passed'}"


def available_platforms(plugins: Plugins) -> dict[str, tuple[Platform, Device]]:
    """Every platform that can run on this machine, by name, with its first device."""
    return {
        found.name: (found.platform, found.probe.devices[0])
        for found in plugins.platforms
        if found.platform is not None and found.probe.available
    }
