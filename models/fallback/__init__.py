"""The universal fallback: a causal language model of transformers, run through its own code.

    reading.py    a checkpoint's config -> the class that runs it, or the reason why none can
    tracing.py    one pass without numbers: what the code asks of attention, layer by layer
    attention.py  the function that its layers call instead of attention of their own, and the cache behind it
    loading.py    weights, put together by transformers; linear layers, by the platform
    model.py      the model in a step, and the trial that it passes before it is served

Attention, the cache and linear layers are the platform's. Norms, rotary embeddings, activations and experts are what
transformers makes of them in torch. It knows no architecture by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.contracts.model import Architecture, ModelFallback


def _claim(folder: Path, config: Mapping[str, Any], trusted: bool) -> Architecture:
    from models.fallback.reading import claim

    return claim(folder, config, trusted)


TRANSFORMERS = ModelFallback(name="transformers", claim=_claim)
