"""The configuration of a comparison: a TOML file, read and checked before anything runs.

Paths in it are relative to the file. Everything that is wrong with it is said in one sentence.
"""

import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import MODES, NAMES
from measure import CASES


class ConfigurationError(Exception):
    """The configuration cannot be used; the message says why and what is accepted."""


@dataclass(frozen=True)
class EngineConfig:
    """One engine: what runs it, and the model that it reads in each mode."""

    name: str
    program: str
    models: dict[str, str]
    options: dict[str, Any]
    environment: dict[str, str]
    cases: tuple[str, ...]


@dataclass(frozen=True)
class ServedConfig:
    """The served part of a round: one mode of every engine that has it."""

    mode: str = "bf16"
    rates: tuple[float, ...] = (2.0, 8.0)
    requests: int = 32
    cold_starts: int = 1
    port: int = 18_100


@dataclass(frozen=True)
class Config:
    """A comparison; `model` is its name in the results."""

    model: str
    results: Path
    engines: tuple[EngineConfig, ...]
    rounds: int = 3
    threads: int = 2
    repeats: int = 3
    offline_requests: int = 64
    cache_gib: int = 4
    timeout_s: int = 900
    served: ServedConfig | None = None

    @property
    def modes(self) -> list[str]:
        return [mode for mode in MODES if any(mode in engine.models for engine in self.engines)]


_KEYS = ("model", "results", "engines", "served", "cases")
_NUMBERS = ("rounds", "threads", "repeats", "offline_requests", "cache_gib", "timeout_s")
_ENGINE_KEYS = ("program", "models", "options", "environment", "cases")
_SERVED_KEYS = ("mode", "rates", "requests", "cold_starts", "port")


def read(path: Path) -> Config:
    """The configuration in a file. Raises ConfigurationError."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from None
    try:
        return _config(table, path.resolve().parent)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _config(table: dict[str, Any], folder: Path) -> Config:
    _known(table, (*_KEYS, *_NUMBERS), "the file")
    cases = _cases(table.get("cases", list(CASES)), "cases")
    numbers = {name: _positive(table[name], name) for name in _NUMBERS if name in table}
    engines = _typed(table, "engines", dict, "the file")
    for name in engines:
        if name not in NAMES:
            raise ConfigurationError(f"unknown engine {name!r}; known: {', '.join(NAMES)}")
    config = Config(
        model=_typed(table, "model", str, "the file"),
        results=folder / _typed(table, "results", str, "the file"),
        engines=tuple(_engine(name, engines[name], cases, folder) for name in engines),
        served=_served(table["served"]) if "served" in table else None,
        **numbers,
    )
    if not config.engines:
        raise ConfigurationError("it names no engine under [engines]")
    if config.served is not None and not any(config.served.mode in e.models for e in config.engines):
        raise ConfigurationError(f"[served] asks for mode {config.served.mode}, which no engine has")
    return config


def _engine(name: str, table: dict[str, Any], cases: tuple[str, ...], folder: Path) -> EngineConfig:
    where = f"[engines.{name}]"
    _known(table, _ENGINE_KEYS, where)
    models = _typed(table, "models", dict, where)
    if not models:
        raise ConfigurationError(f"{where} has no model: name one for a mode, models = {{ bf16 = PATH }}")
    _known(models, MODES, f"{where} models")
    for mode in models:
        if not (folder / models[mode]).exists():
            raise ConfigurationError(
                f"{where} has no model for {mode}: {folder / models[mode]} is not there; "
                "make it, or take the mode out"
            )
    own = table.get("cases")
    return EngineConfig(
        name=name,
        program=_program(_typed(table, "program", str, where), folder, where),
        models={mode: str(folder / model) for mode, model in models.items()},
        options=table.get("options", {}),
        environment={key: str(value) for key, value in table.get("environment", {}).items()},
        cases=cases if own is None else _cases(own, f"{where} cases"),
    )


def _program(given: str, folder: Path, where: str) -> str:
    """A name is looked up as a shell would; a path is kept as it is, for a virtual environment is found through it."""
    path = Path(given).expanduser()
    found = shutil.which(folder / path) if "/" in given else shutil.which(given)
    if found is None:
        raise ConfigurationError(f"{where} cannot be run: {given} is no program")
    return str(found)


def _served(table: dict[str, Any]) -> ServedConfig:
    _known(table, _SERVED_KEYS, "[served]")
    chosen: dict[str, Any] = dict(table)
    if chosen.get("mode", "bf16") not in MODES:
        raise ConfigurationError(f"[served] mode is {chosen['mode']!r}; known: {', '.join(MODES)}")
    rates = chosen.get("rates", [2.0, 8.0])
    if not isinstance(rates, list) or not all(isinstance(rate, int | float) and rate > 0 for rate in rates):
        raise ConfigurationError(f"[served] rates is {rates!r}; it is a list of requests a second")
    for name in {"requests", "cold_starts", "port"} & set(chosen):
        _positive(chosen[name], f"[served] {name}", least=0 if name == "cold_starts" else 1)
    chosen["rates"] = tuple(map(float, rates))
    return ServedConfig(**chosen)


def _known(table: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(table) - set(names))
    if unknown:
        raise ConfigurationError(f"{where} has an unknown key {unknown[0]!r}; known: {', '.join(names)}")


def _typed(table: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if not isinstance(table.get(name), kind):
        raise ConfigurationError(f"{where} lacks {name!r}, a {'table' if kind is dict else 'string'}")
    return table[name]


def _positive(value: object, name: str, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name} is {value!r}; it is a whole number of at least {least}")
    return value


def _cases(given: object, name: str) -> tuple[str, ...]:
    if not isinstance(given, list) or set(given) - set(CASES):
        raise ConfigurationError(f"{name} is {given!r}; it is a list out of {', '.join(CASES)}")
    return tuple(given)
