"""What hardware, models and sources promise the core. Reading this folder is reading the whole agreement.

    platform.py       Platform: probe, capabilities, defaults, and a factory for each contract below
    attention.py      Attention: write keys and values into pages, attend over a ragged batch
    kernels.py        Kernel (a declaration), Implementation (a platform's version of one)
    memory.py         Memory: budget, allocate, copy and discard blocks
    communication.py  Communication: collectives among the ranks of a group
    execution.py      Execution: set the process up, wrap the forward pass, synchronise
    runner.py         Runner: load a model, hold its cache, turn a batch into tokens
    model.py          Architecture, Model: what an architecture plugin brings
    source.py         ModelSource: where a model's files come from

No module here imports torch when it is imported.
"""

CONTRACT_VERSION = (1, 0)
"""(major, minor) of the contracts in this folder. A plugin states the version it was written for."""
