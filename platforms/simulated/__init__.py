"""A strict accelerator in software: runs any model correctly, and checks that the core keeps its side.

options.py    LLM_SIMULATED, the settings of the simulation
platform.py   what it claims to be: unusual block sizes and alignment, steps that do not mix
memory.py     a cap, alignment, poison in everything that nobody has written
attention.py  the reference behind checks; batch.py checks what a step asks
kernels.py    the reference behind checks, and failing calls on demand
execution.py  latency and hangs on demand
"""

from core import hookimpl
from core.contracts.platform import Platform


@hookimpl
def core_platforms() -> list[type[Platform]]:
    from platforms.simulated.platform import SimulatedPlatform

    return [SimulatedPlatform]
