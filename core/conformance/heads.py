"""The size of heads to try a device with, where any would do."""

from core.contracts.platform import Capabilities


def head_dim_for(capabilities: Capabilities, usual: int) -> int:
    """The usual size where the device accepts it, else the nearest: small models stay small, and large ones large."""
    accepted = capabilities.head_dims
    return usual if accepted is None else min(accepted, key=lambda dim: abs(dim - usual))
