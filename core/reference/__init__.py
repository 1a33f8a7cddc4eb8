"""One reference implementation, in plain torch, of every kernel and contract: the oracle and the fallback.

    activation.py argmax.py causal_conv.py decoder_layer.py embedding.py linear.py moe.py norm.py rotary.py sample.py
    selective_scan.py
                        kernels, each declared next to its function
    inputs.py           random inputs and tolerances for their cases
    costs.py            what their costs are counted from
    attention.py        ReferenceAttention
    memory.py           HostMemory
    communication.py    connect: collectives over gloo
    execution.py        EagerExecution

Importing this package imports torch.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from core.contracts.kernels import Kernel, Kernels
from core.reference.activation import ACTIVATION
from core.reference.argmax import ARGMAX
from core.reference.causal_conv import CAUSAL_CONV
from core.reference.decoder_layer import DECODER_LAYER
from core.reference.embedding import EMBEDDING
from core.reference.linear import GATED_MLP, LINEAR, SILU_AND_MUL
from core.reference.moe import EXPERTS, MOE, ROUTE
from core.reference.norm import ADD_RMS_NORM, LAYER_NORM, RMS_NORM
from core.reference.rotary import ROTARY
from core.reference.sample import SAMPLE
from core.reference.selective_scan import SELECTIVE_SCAN

_DECLARED = (
    EMBEDDING,
    LINEAR,
    RMS_NORM,
    ADD_RMS_NORM,
    LAYER_NORM,
    ROTARY,
    ACTIVATION,
    SILU_AND_MUL,
    GATED_MLP,
    ROUTE,
    EXPERTS,
    MOE,
    CAUSAL_CONV,
    SELECTIVE_SCAN,
    DECODER_LAYER,
    ARGMAX,
    SAMPLE,
)
KERNELS: Mapping[str, Kernel] = MappingProxyType({kernel.name: kernel for kernel in _DECLARED})
"""Every declared kernel, by name: the fields of `core.contracts.kernels.Kernels`."""


def assemble(chosen: Mapping[str, Callable[..., Any]]) -> Kernels:
    """Every declared kernel: those chosen, else the reference. Composed ones are made of the result's own."""

    def composed(reference: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: reference(kernels, *arguments)

    functions = {
        name: chosen.get(name) or (composed(kernel.reference) if kernel.composed else kernel.reference)
        for name, kernel in KERNELS.items()
    }
    kernels = Kernels(**functions)
    return kernels
