"""Who runs a checkpoint's architecture: the plugin that declares it, else a fallback, or as the user says."""

from difflib import get_close_matches
from typing import Any, cast

from core.config import EngineConfig
from core.contracts.model import Architecture, ModelFallback
from core.discovery import Plugins
from core.errors import BadCheckpoint, ConfigError, UnsupportedArchitecture
from core.weights.checkpoint import Checkpoint

_NATIVE = "native"


def find_architecture(config: EngineConfig, checkpoint: Checkpoint, plugins: Plugins) -> Architecture:
    """The architecture that runs a checkpoint.

    Raises UnsupportedArchitecture naming the closest that are declared, and each fallback's reason; ConfigError for a
    `model_impl` that nothing is called.
    """
    accepted = ("auto", _NATIVE, *plugins.fallbacks)
    if config.model_impl not in accepted:
        raise ConfigError(
            f"model_impl is {config.model_impl!r}; accepted: {', '.join(accepted)}", setting="model_impl"
        )
    names = _names(checkpoint)
    declared = [plugins.architectures[name] for name in names if name in plugins.architectures]
    if declared and config.model_impl in ("auto", _NATIVE):
        return declared[0]
    asked = [each for name, each in plugins.fallbacks.items() if config.model_impl in ("auto", name)]
    claims = [_claim(fallback, config, checkpoint) for fallback in asked]
    for claim in claims:
        if isinstance(claim, Architecture):
            return claim
    reasons = [f"  {fallback.name}: {claim}" for fallback, claim in zip(asked, claims, strict=True)]
    raise UnsupportedArchitecture(
        "\n".join([f"{checkpoint.path} is a {names[0]}, {_undeclared(config, names[0], plugins)}", *reasons])
    )


def _claim(fallback: ModelFallback, config: EngineConfig, checkpoint: Checkpoint) -> Architecture | str:
    """The architecture, or the reason why there is none."""
    try:
        return fallback.claim(checkpoint.path, checkpoint.config, config.trust_remote_code)
    except UnsupportedArchitecture as error:
        return str(error)


def _undeclared(config: EngineConfig, name: str, plugins: Plugins) -> str:
    if name in plugins.architectures:
        return f"which {config.model_impl} cannot run; model_impl=auto takes the native one:"
    close = get_close_matches(name, plugins.architectures, n=3, cutoff=0.4)
    hint = f"; closest: {', '.join(close)}" if close else ""
    return f"which no plugin declares{hint}. `llm models` lists those that are"


def _names(checkpoint: Checkpoint) -> list[str]:
    given: Any = checkpoint.config.get("architectures")
    names = cast("list[Any]", given) if isinstance(given, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise BadCheckpoint(
            f'{checkpoint.path}: config.json names no architecture; expected "architectures": [...]'
        )
    return names
