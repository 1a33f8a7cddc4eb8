"""Model architectures. This module declares them; it imports torch only when one is built."""

from core import hookimpl
from core.contracts.model import Architecture, ModelFallback


@hookimpl
def core_architectures() -> list[Architecture]:
    from models import (
        bloom,
        cohere,
        deepseek,
        embedders,
        encoders,
        falcon,
        gemma,
        glm,
        gpt2,
        gpt_j,
        llama,
        mamba,
        mixtral,
        olmo,
        opt,
        phi,
        qwen_moe,
        stablelm,
        starcoder,
    )

    pages = (
        llama,
        gemma,
        cohere,
        glm,
        olmo,
        phi,
        stablelm,
        starcoder,
        falcon,
        bloom,
        opt,
        gpt2,
        gpt_j,
        mamba,
        mixtral,
        qwen_moe,
        deepseek,
        embedders,
        encoders,
    )
    return [architecture for page in pages for architecture in page.ALL]


@hookimpl
def core_model_fallbacks() -> list[ModelFallback]:
    from models.fallback import TRANSFORMERS

    return [TRANSFORMERS]
