"""Where a step's time goes, stage by stage. Always on: a mark costs a fraction of a microsecond."""

from time import perf_counter

HOST_STAGES = ("schedule", "prepare", "sample", "update")
DEVICE_STAGES = ("forward", "logits")
"""Waiting for the model. All else is work of the host, which keeps the device waiting."""


class StageClock:
    """Seconds per stage since it was made. One owner winds it; whoever works in a step marks it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys((*HOST_STAGES, *DEVICE_STAGES), 0.0)
        self.num_steps = 0
        self._last = 0.0

    def start(self) -> None:
        """A step begins."""
        self.num_steps += 1
        self._last = perf_counter()

    def mark(self, stage: str) -> None:
        """What happened since the start, or the last mark, was this stage."""
        now = perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now
