"""An LLM inference and serving engine whose hardware is a plugin.

    from core import LLM, SamplingParams

Names are loaded when they are used, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.config import EngineConfig as EngineConfig
    from core.errors import CoreError as CoreError
    from core.hookspecs import hookimpl as hookimpl
    from core.llm import LLM as LLM
    from core.outputs import CompletionOutput as CompletionOutput
    from core.outputs import PoolingRequestOutput as PoolingRequestOutput
    from core.outputs import RequestOutput as RequestOutput
    from core.pooling_params import PoolingParams as PoolingParams
    from core.sampling_params import SamplingParams as SamplingParams

__version__ = "0.1.0"

_HOME = {
    "CompletionOutput": "core.outputs",
    "CoreError": "core.errors",
    "EngineConfig": "core.config",
    "LLM": "core.llm",
    "PoolingParams": "core.pooling_params",
    "PoolingRequestOutput": "core.outputs",
    "RequestOutput": "core.outputs",
    "SamplingParams": "core.sampling_params",
    "hookimpl": "core.hookspecs",
}

__all__ = [*sorted(_HOME), "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
