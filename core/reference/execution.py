"""Eager execution: the forward pass as it is."""

from core.contracts.execution import Execution


class EagerExecution(Execution):
    """What the contract does unless overridden, for devices that finish work before they return."""
