"""How the server listens and whom it lets in. What the engine does is `EngineConfig`'s."""

import math
from dataclasses import dataclass

from core.errors import ConfigError

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Checked when built; raises ConfigError naming the setting.

    port               0 lets the system choose; the choice is printed
    api_key            asked of every route but /health and /health/ready; None: nobody is asked
    served_model_name  what clients call the model; None: what the user called it, or its file's name
    max_queued         requests that may be unfinished at once; more are answered with 429
    shutdown_timeout   seconds that running answers get after SIGTERM
    max_body_bytes     longer request bodies are answered with 413
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    served_model_name: str | None = None
    max_queued: int = 1024
    shutdown_timeout: float = 10.0
    max_body_bytes: int = 8 * MIB

    def __post_init__(self) -> None:
        _between("port", self.port, 0, 65535)
        _between("max_queued", self.max_queued, 1, 10**6)
        _between("max_body_bytes", self.max_body_bytes, 1024, 2**31)
        if not math.isfinite(self.shutdown_timeout) or self.shutdown_timeout < 0:
            raise ConfigError(
                f"shutdown_timeout is {self.shutdown_timeout}; seconds from 0 up are accepted",
                setting="shutdown_timeout",
            )
        if not self.host:
            raise ConfigError('host is ""; write an address, 127.0.0.1 or 0.0.0.0', setting="host")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("api_key is blank; leave it out to ask for none", setting="api_key")
        if self.served_model_name is not None and not self.served_model_name.strip():
            raise ConfigError("served_model_name is blank; leave it out", setting="served_model_name")


def _between(setting: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{setting} is {value}; {low} to {high:,} is accepted", setting=setting)
