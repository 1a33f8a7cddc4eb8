"""From what the user asked for to settings in which every value is concrete.

Uses what the model and the platform say; reads no file and takes no memory.
"""

from core.config import QUANTIZATIONS, EngineConfig, Settings
from core.contracts.model import ModelDescription, StateShape
from core.contracts.platform import Capabilities, Defaults
from core.errors import ConfigError


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
    max_model_len = config.max_model_len or description.context
    max_num_batched_tokens, chunk = _resolve_step(config, defaults)
    if description.whole:
        max_model_len, max_num_batched_tokens = _resolve_whole(config, max_model_len, max_num_batched_tokens)
    return Settings(
        dtype=dtype,
        quantization=_resolve_quantization(config, dtype, capabilities, stored),
        seed=config.seed,
        max_model_len=max_model_len,
        max_model_len_asked=config.max_model_len is not None,
        max_num_seqs=_resolve_max_num_seqs(config, capabilities, defaults),
        max_num_batched_tokens=max_num_batched_tokens,
        prefill_chunk_size=chunk,
        block_size=block_size,
        kv_cache_memory=_resolve_memory(config, defaults),
        memory_share=config.memory_share or 1.0,
        kv_cache_dtype=_resolve_kv_cache_dtype(config, dtype, capabilities, description),
        enable_prefix_caching=config.enable_prefix_caching and not description.whole,
        scheduling_policy=config.scheduling_policy,
        whole=description.whole,
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


def _resolve_whole(config: EngineConfig, longest: int, most: int) -> tuple[int, int]:
    """Longest sequence and tokens of a step, where a step must hold the longest: what nobody asked for gives way."""
    asked = config.max_num_batched_tokens
    if asked is None:
        return longest, max(longest, most)
    if config.max_model_len is not None and longest > asked:
        raise ConfigError(
            f"max_num_batched_tokens is {asked:,} and max_model_len {longest:,}; this model computes a text in one "
            f"step, so set max_num_batched_tokens to {longest} or more",
            setting="max_num_batched_tokens",
        )
    return min(longest, asked), asked


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


def _resolve_kv_cache_dtype(
    config: EngineConfig, dtype: str, capabilities: Capabilities, description: ModelDescription
) -> str:
    asked = config.kv_cache_dtype
    if asked == "auto":
        return dtype
    if all(isinstance(shape, StateShape) for shape in description.layers):
        raise ConfigError(
            f"kv_cache_dtype is {asked}; this model keeps states, and no keys and values",
            setting="kv_cache_dtype",
        )
    if asked not in capabilities.kv_cache_dtypes:
        accepted = ", ".join(["auto", *sorted(capabilities.kv_cache_dtypes)])
        raise ConfigError(
            f"kv_cache_dtype is {asked}; this device accepts {accepted}", setting="kv_cache_dtype"
        )
    return asked


def _resolve_memory(config: EngineConfig, defaults: Defaults) -> int | None:
    if config.kv_cache_memory is not None:
        return int(config.kv_cache_memory)
    usual = defaults.kv_cache_memory
    return None if usual is None else int(usual * (config.memory_share or 1.0))
