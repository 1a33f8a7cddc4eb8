"""How a process is prepared for a device, and how a forward pass is run on it."""

from abc import ABC
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Forward = Callable[[Any], "Tensor"]
"""One step's inputs -> hidden states of the rows that are sampled from, [num_rows, hidden_size]."""


class Execution(ABC):
    """Eager execution, unless overridden."""

    def set_up(self) -> None:
        """Prepare the process: threads, affinity, streams. Called before the first allocation.

        A process may load several models, so that it is called again; then nothing is left to do.
        """

    def wrap(self, forward: Forward) -> Forward:
        """The function that runs in every step instead of `forward`: compiled, captured, timed or as it is."""
        return forward

    def synchronize(self) -> None:
        """Return when the device has finished what was submitted."""
