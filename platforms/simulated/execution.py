"""Steps that take longer than they need, or do not come back for a while."""

import time
from typing import TYPE_CHECKING, Any

from core.contracts.execution import Execution, Forward
from platforms.simulated.options import Options

if TYPE_CHECKING:
    from torch import Tensor


class SimulatedExecution(Execution):
    """Counts the steps of what it wraps."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._steps = 0

    def wrap(self, forward: Forward) -> Forward:
        def step(inputs: Any) -> "Tensor":
            self._steps += 1
            if self._steps == self._options.hang_step:
                time.sleep(self._options.hang_seconds)
            if self._options.latency_ms:
                time.sleep(self._options.latency_ms / 1000)
            return forward(inputs)

        return step
