"""The kit that proves a platform: kernels against the reference, attention against an oracle, and whole answers.

    levels.py         the levels there are, and running them; apart.py runs them in a process of their own, and child.py
                      has what such processes have in common
    ops.py            each declared kernel on its cases; kernels.py and quantized.py have them
    attention.py      ragged batches on a poisoned cache; scenarios.py and paging.py have those
    memory.py         budgets, copied and saved blocks, refusals; blocks.py and layers.py have what is done to blocks
    communication.py  collectives over several processes: group.py starts them, rank.py is one of them, and
                      collectives.py has what each should give
    engine.py         the answers of whole models, whatever happens on the way: trials.py and traces.py, on the models
                      of tiny.py and the prompts of workbench.py, driven by driver.py beside reference_platform.py
    server.py         the same over HTTP, asked by client.py
    performance.py    each kernel against what the device's memory and arithmetic can do; bench.py has the shapes,
                      timing.py the clock and the ceilings, roofline.py the shares, figures.py the table;
                      ops_page.py writes docs/ops.md
    certificate.py    what was found, as a file; facts.py says where and of what
    pytest_plugin.py  all of it as tests of somebody else's; test_platform.py is what they collect
    heads.py          the size of heads, where any would do
    compare.py        when two tensors are close enough, and what to say when they are not

Nothing here raises because a platform is wrong: every check gives a `Result`, and wrong ones say why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

# Every pytest run loads this module, for `pytest_plugin`: what takes time is imported where it is needed.
if TYPE_CHECKING:
    from core.contracts.platform import Device, Platform
    from core.discovery import Plugins


@dataclass(frozen=True, kw_only=True)
class Result:
    """One check.

    problem      what is wrong; empty when nothing is
    unsupported  why the platform does not do this at all, by its own word; such a check is not wrong
    figures      what was measured, by name; units stand last in the name
    """

    level: str
    subject: str
    case: str
    dtype: str = ""
    problem: str = ""
    unsupported: str = ""
    figures: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def name(self) -> str:
        """What it is called within its level, whatever the dtype."""
        return f"{self.subject}, {self.case}"

    @property
    def status(self) -> str:
        return "wrong" if self.problem else "not supported" if self.unsupported else "passed"

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def __str__(self) -> str:
        where = f"{self.name}, {self.dtype}" if self.dtype else self.name
        return f"{where}: {self.problem or self.unsupported or 'passed'}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What of a level is run.

    dtypes  names of model dtypes; None: all that the device declares
    quick   the part that shows most in little time
    only    what the name of a check must contain

    Raises ConfigError for a dtype that there is not.
    """

    dtypes: tuple[str, ...] | None = None
    seed: int = 0
    quick: bool = False
    only: str = ""

    def __post_init__(self) -> None:
        from core.config import DTYPES
        from core.errors import ConfigError

        for name in self.dtypes or ():
            if name not in DTYPES:
                raise ConfigError(f"dtype is {name!r}; accepted: {', '.join(DTYPES)}", setting="dtype")

    @property
    def partial(self) -> bool:
        """Whether checks of a level are left out by their dtype or name."""
        return bool(self.dtypes or self.only)


def available_platforms(plugins: "Plugins") -> "dict[str, tuple[Platform, Device]]":
    """Every platform that can run on this machine, by name, with its first device."""
    return {
        found.name: (found.platform, found.probe.devices[0])
        for found in plugins.platforms
        if found.platform is not None and found.probe.available
    }
