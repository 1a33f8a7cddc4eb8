"""Checkpoints that were quantised before they were published: GPTQ and AWQ, weights in 4 or 8 bits."""

from core import hookimpl
from core.contracts.packing import Quantization


@hookimpl
def core_quantizations() -> list[Quantization]:
    from plugins.quantization import awq, gptq

    return [
        Quantization(name="gptq", read=gptq.read, contract=(1, 0)),
        Quantization(name="awq", read=awq.read, contract=(1, 0)),
    ]
