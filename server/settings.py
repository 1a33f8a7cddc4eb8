"""How the server listens and whom it lets in. What an engine does is `EngineConfig`'s."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.engine.room import MAX_REQUESTS, MAX_TOKENS
from core.errors import ConfigError

MIB = 2**20

_SPELLINGS = {
    "allowed_hosts": (
        re.compile(r"\*|(\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\]", re.IGNORECASE),
        "a name without scheme and port, llm.example.com, *.example.com, or * for any",
    ),
    "allowed_origins": (
        re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@]+/?", re.IGNORECASE),
        "scheme and name, https://chat.example.com, or * for any",
    ),
}
"""What would match no request if it were spelled otherwise."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Checked when built; raises ConfigError naming the setting. Times are in seconds.

    port               0 lets the system choose; the choice is printed
    api_key            one or several, asked of every route that does not declare itself open; none: nobody is asked
    ssl_certfile       with ssl_keyfile: serve HTTPS
    allowed_hosts      names that a Host header may have; none: this machine's when only it is listened to, else any
    allowed_origins    web pages that may call the API from a browser, as https://NAME; "*" is any; none: none
    served_model_name  what clients call the model; None: what the user called it, or its file's name
    max_queued         requests that may be unfinished at once, of one model; more are answered with 429
    max_queued_tokens  prompt tokens that may wait at once; the same
    request_timeout    an answer that takes longer is ended; None: it may take as long as it does
    progress_timeout   /health/progress says 503 when requests run and no step was computed for so long
    engine_timeout     an engine that says nothing for so long hangs: its stacks are logged and it is ended
    restart_engine     start an engine that ended anew, instead of ending the server
    shutdown_timeout   that running answers get after SIGTERM
    max_body_bytes     longer request bodies are answered with 413
    body_timeout       a request whose header or body takes longer to arrive is ended, and an answer that its client
                       does not read for so long
    access_log         a line for each request on standard error; never what it holds
    ui                 a web page at /
    response_store     SQLite file that keeps what /v1/responses made; None: memory does, until the server ends
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: Sequence[str] = ()
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    allowed_hosts: Sequence[str] = ()
    allowed_origins: Sequence[str] = ()
    served_model_name: str | None = None
    max_queued: int = MAX_REQUESTS
    max_queued_tokens: int = MAX_TOKENS
    request_timeout: float | None = None
    progress_timeout: float = 60.0
    engine_timeout: float = 300.0
    restart_engine: bool = False
    shutdown_timeout: float = 10.0
    max_body_bytes: int = 8 * MIB
    body_timeout: float = 30.0
    access_log: bool = True
    ui: bool = True
    response_store: str | None = None

    def __post_init__(self) -> None:
        for name in ("api_key", "allowed_hosts", "allowed_origins"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given or ()))
            if any(not str(value).strip() for value in getattr(self, name)):
                raise ConfigError(f"{name} is blank; leave it out to have none", setting=name)
        for name, (spelling, accepted) in _SPELLINGS.items():
            for value in getattr(self, name):
                if not spelling.fullmatch(value):
                    raise ConfigError(f"{name} is {value!r}; accepted: {accepted}", setting=name)
        _between("port", self.port, 0, 65535)
        _between("max_queued", self.max_queued, 1, 10**6)
        _between("max_queued_tokens", self.max_queued_tokens, 1, 10**12)
        _between("max_body_bytes", self.max_body_bytes, 1024, 2**31)
        for name in ("progress_timeout", "engine_timeout", "body_timeout", "request_timeout"):
            _seconds(name, getattr(self, name), optional=name == "request_timeout")
        _seconds("shutdown_timeout", self.shutdown_timeout, zero=True)
        if not self.host:
            raise ConfigError('host is ""; write an address, 127.0.0.1 or 0.0.0.0', setting="host")
        if self.served_model_name is not None and not self.served_model_name.strip():
            raise ConfigError("served_model_name is blank; leave it out", setting="served_model_name")
        self._check_tls()
        self._check_store()

    def _check_tls(self) -> None:
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            missing = "ssl_keyfile" if self.ssl_keyfile is None else "ssl_certfile"
            raise ConfigError(
                f"HTTPS needs both ssl_certfile and ssl_keyfile; {missing} is missing", setting=missing
            )
        for name in ("ssl_certfile", "ssl_keyfile"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"{name} is {path!r}, which is no file", setting=name)
        if self.ssl_certfile is None:
            return
        import ssl  # which takes as long as the rest of this module

        try:
            # An encrypted key is not asked for on a terminal that may not be there.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.ssl_certfile, self.ssl_keyfile, password=lambda: ""
            )
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"ssl_certfile {self.ssl_certfile!r} and ssl_keyfile {self.ssl_keyfile!r} cannot be used together: "
                f"{error}; PEM files are accepted, the key without a password",
                setting="ssl_certfile",
            ) from None

    def _check_store(self) -> None:
        if self.response_store is not None:
            from server.openai.responses.sqlite import SqliteStore  # which nobody needs who names no file

            SqliteStore(self.response_store)


def _between(setting: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{setting} is {value}; {low} to {high:,} is accepted", setting=setting)


def _seconds(setting: str, value: float | None, *, optional: bool = False, zero: bool = False) -> None:
    if value is None and optional:
        return
    if value is None or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ConfigError(
            f"{setting} is {value}; seconds {'from 0 up' if zero else 'above 0'} are accepted",
            setting=setting,
        )
