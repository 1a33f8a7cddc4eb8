"""Reading a config.json with checks: what is missing, or cannot be, is refused by its key."""

import math
from collections.abc import Mapping
from typing import Any

from core.errors import ConfigError
from core.layers.settings import ROPE_KEYS

Config = Mapping[str, Any]


class ConfigReading:
    """A config, read with a family's own names for keys and its values for those that are left out.

    architecture  whose config it is, for errors
    defaults      values of keys that the config leaves out, which is another thing than null
    keys          the family's spelling of Llama's keys

    Every method raises ConfigError naming a key that is missing or unacceptable.
    """

    def __init__(
        self,
        architecture: str,
        config: Config,
        defaults: Config | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        self.architecture = architecture
        self._config, self._defaults, self._keys = config, defaults or {}, keys or {}

    def value(self, name: str, default: Any = None) -> Any:
        """What the config says, under the family's spelling or Llama's; if nothing, what the family's default is.

        `default` stands for what is null, and for what neither has.
        """
        spelt = self._keys.get(name, name)
        for place in (self._config, self._defaults):
            for key in (spelt, name):
                if key in place:
                    return default if place[key] is None else place[key]
        return default

    def positive(self, name: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refusal(name, value, "a whole number above 0 is expected")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number above 0."""
        value = self.value(name, default)
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not (real and math.isfinite(value) and value > 0):
            raise self.refusal(name, value, "a number above 0 is expected")
        return float(value)

    def optional(self, name: str) -> float | None:
        """A number above 0, or None when the config leaves it out."""
        return None if self.value(name) is None else self.number(name, 1.0)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.value(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, value, "true or false is expected")
        return value

    def expect(self, name: str, expected: Any, why: str) -> None:
        """Refuse a config that says anything else of this key."""
        value = self.value(name, expected)
        if value != expected:
            raise ConfigError(
                f"{self._keys.get(name, name)} is {value!r:.80}; {self.architecture} here {why}"
            )

    def refusal(self, name: str, value: Any, expected: str) -> ConfigError:
        return ConfigError(f"config.json: {self._keys.get(name, name)} is {value!r:.80}; {expected}")

    def check_scaling(self, scaling: Mapping[str, Any], rotary_dim: int) -> None:
        """Refuse a block about rotation that lacks what its `rope_type` needs."""
        kind = scaling["rope_type"]
        if kind not in ROPE_KEYS:
            known = ", ".join(ROPE_KEYS)
            raise ConfigError(f"rope_type is {kind!r}; this engine knows {known}", setting="rope_scaling")
        if nested := [key for key, value in scaling.items() if isinstance(value, Mapping)]:
            raise self.refusal("rope_parameters", nested, "one block for all layers is expected")
        for key in ROPE_KEYS[kind]:
            value: Any = scaling.get(key)
            if key.endswith("_factor") and kind == "longrope":
                if not isinstance(value, list) or len(value) != rotary_dim // 2:  # pyright: ignore[reportUnknownArgumentType]
                    raise self.refusal(key, value, f"{rotary_dim // 2} numbers are expected, for {kind}")
            elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise self.refusal(key, value, f"a number above 0 is expected, for {kind}")
