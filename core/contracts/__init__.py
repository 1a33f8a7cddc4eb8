"""What hardware, models and sources promise the core. Reading this folder is reading the whole agreement.

    platform.py       Platform: probe, capabilities, defaults, and a factory for each chapter below
    attention.py      Attention: write keys and values into pages, attend over a ragged batch
    kernels.py        Kernel (a declaration), Implementation (a platform's version of one)
    memory.py         Memory: budget, allocate, copy, save and discard blocks
    communication.py  Communication: collectives among the ranks of a group
    execution.py      Execution: set the process up, wrap the forward pass, synchronise
    runner.py         Runner: load a model, hold its cache, turn a batch into tokens
    quantization.py   WeightFormat, QuantizedWeight: how weights are stored
    model.py          Architecture, Model: what an architecture plugin brings
    source.py         ModelSource: where a model's files come from
    packing.py        Quantization, Scheme: how a quantised checkpoint packs its weights
    telemetry.py      Telemetry, Observer: what watches requests

Around it stands what keeps it an agreement:

    versions.py    the five contracts (platform, model, source, quantization, telemetry), and what is taken of each
    surface.py     what a contract asks, as plain data; history/ has it of every version
    changelog.py   what changed from one to the next
    adapters.py    plugins of the major version before, made to keep this one
    validation.py  whether a plugin keeps the version that it states

No module here imports torch when it is imported.
"""

from core.contracts.versions import VERSIONS

__all__ = ["VERSIONS"]
