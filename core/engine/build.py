"""From what the user asked for to a running engine, in the order in which things can go wrong cheaply."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from core.clock import StageClock
from core.config import EngineConfig
from core.contracts.platform import Defaults, Device, Platform
from core.contracts.runner import Runner, RunnerContext
from core.discovery import Plugins, load_plugins
from core.engine.architecture import find_architecture
from core.engine.budget import CachePlan, cache_groups, check_weights, plan_cache
from core.engine.engine import Engine, EngineInfo
from core.engine.purpose import summary, with_purpose
from core.errors import BadCheckpoint, ContractViolation, RequestError
from core.integrity import foreign, refusal
from core.ledger import Ledger
from core.resolution import resolve
from core.sampling_params import SamplingParams
from core.weights.checkpoint import Checkpoint, open_checkpoint
from core.weights.formats import WeightFormats
from core.weights.sources import locate_model

Progress = Callable[[str], None]

_SAMPLING_KEYS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def _silent(what: str | Path) -> None:
    return


def build_engine(
    config: EngineConfig,
    progress: Progress = _silent,
    *,
    plugins: Plugins | None = None,
    located: Callable[[Path], None] = _silent,
) -> Engine:
    """Find platform and model, resolve every "auto", load, and allocate the cache.

    located  told where the tokenizer is, unless it is skipped, before anything is loaded

    Raises the CoreError of whatever is wrong; nothing is left behind.
    """
    plugins = plugins or load_plugins()
    platform, device = plugins.select_platform(config.platform)
    path, tokenizer_path = _paths(config, plugins, progress)
    checkpoint = open_checkpoint(path, plugins.architectures, plugins.quantizations, config.load_format)
    context = decide(config, platform, device, checkpoint, plugins)
    eos = eos_token_ids(checkpoint, context.description.vocab_size)
    defaults = sampling_defaults(config, checkpoint)
    if not config.skip_tokenizer_init:
        located(tokenizer_path)
    progress(f"loading {config.model} in {context.settings.dtype} on {platform.name}")
    runner, plan = _loaded(context)
    return Engine(
        info=_info(config, context, plan, (path, tokenizer_path), eos, defaults),
        settings=context.settings,
        groups=context.groups,
        num_blocks=plan.num_blocks,
        shapes=context.capabilities.scheduling,
        runner=runner,
        ledger=context.ledger,
        clock=context.clock,
    )


def _info(
    config: EngineConfig,
    context: RunnerContext,
    plan: CachePlan,
    paths: tuple[Path, Path],
    eos: list[int],
    defaults: dict[str, Any],
) -> EngineInfo:
    """The facts, once everything is loaded. paths  of model and tokenizer"""
    settings = context.settings
    return EngineInfo(
        model=config.model,
        model_path=str(paths[0]),
        tokenizer_path=None if config.skip_tokenizer_init else str(paths[1]),
        platform=context.platform.name,
        device=context.device.name,
        dtype=settings.dtype,
        quantization=_quantization(context),
        kv_cache_dtype=settings.kv_cache_dtype,
        architecture=context.architecture.name,
        pooling=context.description.pooling,
        max_model_len=plan.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        scheduling_policy=settings.scheduling_policy,
        vocab_size=context.description.vocab_size,
        eos_token_ids=eos,
        sampling_defaults=defaults,
        num_kv_tokens=plan.num_tokens,
        block_size=settings.block_size,
        prefix_caching=settings.enable_prefix_caching,
        kv_cache_bytes=plan.total_bytes,
        ledger=context.ledger.as_dicts(),
    )


def _paths(config: EngineConfig, plugins: Plugins, progress: Progress) -> tuple[Path, Path]:
    """Where the model is, and where its tokenizer is."""
    path = locate_model(config.model, config.revision, plugins.sources, plugins.aliases, progress)
    if config.tokenizer is None:
        return path, path
    return path, locate_model(config.tokenizer, None, plugins.sources, plugins.aliases, progress)


def decide(
    config: EngineConfig,
    platform: Platform,
    device: Device,
    checkpoint: Checkpoint,
    plugins: Plugins,
) -> RunnerContext:
    """What model and settings come to on the platform. Everything decided, nothing taken yet."""
    architecture = find_architecture(config, checkpoint, plugins)
    description = with_purpose(architecture.describe(checkpoint.config), checkpoint, config.task)
    capabilities = platform.capabilities(device)
    ledger = Ledger()
    ledger.record("platform", platform.name, f"{device.name} ({device.torch_device})")
    ledger.record("architecture", architecture.name, architecture.family)
    if description.pooling is not None:
        ledger.record("pooling", "core", summary(description.pooling))
    if checkpoint.quant_method is not None:
        ledger.record("checkpoint", checkpoint.quant_method, checkpoint.packing())
    defaults: Any = platform.defaults(description, device)
    if not isinstance(defaults, Defaults):
        raise ContractViolation(
            f"platform {platform.name}: defaults() returned {defaults!r}; Defaults are expected"
        )
    # A fallback puts weights together itself, unpacked: nothing is held as it is stored.
    native = plugins.architectures.get(architecture.name) is architecture
    stored = checkpoint.formats() if native else frozenset[str]()
    return RunnerContext(
        settings=resolve(config, description, capabilities, defaults, stored),
        description=description,
        architecture=architecture,
        checkpoint=checkpoint,
        groups=cache_groups(description),
        platform=platform,
        device=device,
        capabilities=capabilities,
        ledger=ledger,
        clock=StageClock(),
    )


def _quantization(context: RunnerContext) -> str:
    """What the setting has come to: "none", or names of formats."""
    asked = context.settings.quantization
    if asked != "stored":
        return asked
    return ", ".join(sorted(context.checkpoint.formats() & context.capabilities.weight_formats))


def _loaded(context: RunnerContext) -> tuple[Runner, CachePlan]:
    """A runner with its weights and its cache; closed again when one of them fails."""
    runner = runner_for(context)
    try:
        plan = _load(runner, context)
        if replaced := foreign(type(context.platform).__module__.partition(".")[0]):
            raise ContractViolation(f"platform {context.platform.name} {refusal(replaced)}")
        return runner, plan
    except BaseException:
        runner.close()
        raise


def _load(runner: Runner, context: RunnerContext) -> CachePlan:
    """Weights, then the cache, each checked against the memory before it is taken."""
    check_weights(context.settings, weight_bytes(context), runner.memory_statistics().free)
    runner.load()
    plan = plan_cache(
        context.settings,
        context.groups,
        [runner.storage_bytes(group) for group in context.groups],
        context.capabilities.alignment_bytes,
        runner.memory_statistics().free,
    )
    runner.allocate_cache(plan.num_blocks)
    return plan


def weight_bytes(context: RunnerContext) -> int:
    """Of the whole model, in the formats in which its weights would be held."""
    formats = WeightFormats(
        checkpoint=context.checkpoint,
        dtype=context.settings.dtype,
        quantization=context.settings.quantization,
        accepted=context.capabilities.weight_formats,
    )
    return formats.weight_bytes()


def _check_layers(context: RunnerContext) -> None:
    """The device's manifest must accept every layer, whoever runs it."""
    from core.execution.dispatch import check_capabilities

    settings = context.settings
    for spec in settings.attention_specs(context.description):
        check_capabilities(context.platform, context.capabilities, spec)


def runner_for(context: RunnerContext) -> Runner:
    """The platform's own, or the core's. It has loaded nothing, and the ledger says who serves it."""
    _check_layers(context)
    own: Any = context.platform.runner(context)
    if own is not None and not isinstance(own, Runner):
        returned = f"platform {context.platform.name}: runner() returned a {type(own).__name__}"
        raise ContractViolation(f"{returned}: None or a subclass of core.contracts.runner.Runner is expected")
    if own is not None:
        context.ledger.record("runner", context.platform.name, type(own).__name__)
        return own
    from core.execution.runner import ModelRunner

    context.ledger.record("runner", "core", ModelRunner.__name__)
    return ModelRunner(context)


def eos_token_ids(checkpoint: Checkpoint, vocab_size: int) -> list[int]:
    """Tokens that end an answer: generation_config.json's, else config.json's."""
    value: Any = checkpoint.generation_config.get("eos_token_id")
    if value is None:
        value = checkpoint.config.get("eos_token_id")
    listed = cast(list[Any], value) if isinstance(value, list) else [value]
    if value is None:
        return []
    for token in listed:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise BadCheckpoint(
                f"{checkpoint.path}: eos_token_id is {value!r:.80}; expected a token id from 0 to {vocab_size - 1}, "
                "or a list of them"
            )
    return listed


def sampling_defaults(config: EngineConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """The model's own sampling defaults under our names, unless generation_config="core"."""
    if config.generation_config == "core":
        return {}
    found = {ours: checkpoint.generation_config.get(theirs) for theirs, ours in _SAMPLING_KEYS.items()}
    found = {name: value for name, value in found.items() if value is not None}
    try:
        SamplingParams.from_defaults(found)
    except RequestError as error:
        raise BadCheckpoint(
            f'{checkpoint.path}: generation_config.json: {error}. Correct it, or pass generation_config="core"'
        ) from None
    return found
