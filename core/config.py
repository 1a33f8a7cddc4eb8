"""What the user asked for, and what it resolves to. Both are frozen; nothing changes after start-up.

`EngineConfig` is the asking: every field has a default, None and "auto" mean "choose for me". In `Settings` every
value is concrete; `core.resolution` makes them of what was asked for, the model and the platform.
"""

import os
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from core.contracts.attention import AttentionShape, AttentionSpec
from core.contracts.model import ModelDescription
from core.contracts.quantization import MADE
from core.errors import ConfigError

DEFAULT_MODEL = "smollm2-135m"
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", *MADE)
KV_CACHE_DTYPES = ("int8",)
POLICIES = ("fcfs", "priority")
LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")
TASKS = ("auto", "generate", "embed", "classify")

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
    revision                branch, tag or commit of the model, and of the tokenizer that is its own
    task                    generate, embed, classify; auto: what the model is made for
    model_impl              native: an architecture that a plugin declares; transformers: its own code, with our
                            attention and cache; auto: native where there is one
    load_format             safetensors, gguf; dummy: random weights for a config.json, to measure with; auto: what
                            is there
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
    memory_share            how much of the memory that it would take unasked an engine takes for its cache, above 0 up
                            to 1; None: all of it, beside other engines of one server an equal part
    kv_cache_dtype          int8: keys and values in 8 bits, a scale for each token and head; auto: in the dtype
    enable_prefix_caching   reuse the cache of prompts that begin alike
    scheduling_policy       "fcfs", or "priority" (lower numbers first)
    generation_config       "auto" takes sampling defaults from the model, "core" takes ours
    skip_tokenizer_init     work on token ids only
    trust_remote_code       run the code that a checkpoint comes with, where its architecture has no other
    """

    model: str = DEFAULT_MODEL
    tokenizer: str | None = None
    revision: str | None = None
    task: str = "auto"
    model_impl: str = "auto"
    load_format: str = "auto"
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
    memory_share: float | None = None
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
        _one_of("task", self.task, TASKS)
        _one_of("dtype", self.dtype, ("auto", *DTYPES))
        _one_of("quantization", self.quantization, ("auto", *QUANTIZATIONS))
        _one_of("kv_cache_dtype", self.kv_cache_dtype, ("auto", *KV_CACHE_DTYPES))
        _one_of("scheduling_policy", self.scheduling_policy, POLICIES)
        _one_of("load_format", self.load_format, LOAD_FORMATS)
        _one_of("generation_config", self.generation_config, ("auto", "core"))
        if self.kv_cache_memory is not None:
            memory = parse_bytes(self.kv_cache_memory, "kv_cache_memory")
            if memory == 0:
                raise ConfigError(
                    f"kv_cache_memory is {self.kv_cache_memory!r}; more than 0 is needed, or leave it out",
                    setting="kv_cache_memory",
                )
            object.__setattr__(self, "kv_cache_memory", memory)
        self._check_share()

    def _check_share(self) -> None:
        share = self.memory_share
        if share is None:
            return
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"memory_share is {share!r}; a number above 0 up to 1 is accepted", setting="memory_share"
            )
        if self.kv_cache_memory is not None:
            raise ConfigError(
                "memory_share has no meaning beside kv_cache_memory; leave one of them out",
                setting="memory_share",
            )

    def _check_texts_and_switches(self) -> None:
        for name in ("model", "tokenizer", "revision", "model_impl", "platform"):
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
    whole           every sequence is computed in one step, so that a step holds the longest
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
    whole: bool = False
    memory_share: float = 1.0

    def attention_spec(self, shape: AttentionShape) -> AttentionSpec:
        """What layers of this shape ask of attention."""
        kept = None if self.kv_cache_dtype == self.dtype else self.kv_cache_dtype
        return AttentionSpec(**asdict(shape), dtype=self.dtype, block_size=self.block_size, cache_dtype=kept)

    def attention_specs(self, description: ModelDescription) -> tuple[AttentionSpec, ...]:
        """What a model asks of attention, each kind once."""
        shapes = dict.fromkeys(shape for shape in description.layers if isinstance(shape, AttentionShape))
        return tuple(map(self.attention_spec, shapes))


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ConfigError(f"{name} is {value!r}; accepted: {', '.join(accepted)}", setting=name)
