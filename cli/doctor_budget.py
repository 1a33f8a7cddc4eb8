"""How a model would fill the memory of a device, counted before any of it is taken.

`core.engine.build` asks platform and model, as it does when an engine starts; only the weights stay where they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cli.doctor_finding import Finding
from core.config import EngineConfig, Settings, format_bytes
from core.contracts.runner import Runner, RunnerContext
from core.discovery import Plugins
from core.engine.budget import CachePlan, check_weights, plan_cache
from core.engine.build import Progress, decide, weight_bytes
from core.weights.checkpoint import open_checkpoint
from core.weights.sources import locate_model

LITTLE_LEFT = 0.05


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes of a device's memory, and what they hold.

    total, free  before anything is loaded
    weights      of the whole model, in the formats in which they would be held
    per_token    of the cache, over all layers; what a sliding window has left behind takes nothing
    per_state    of the cache, over all layers that keep a state of a sequence and nothing of its tokens
    num_tokens   that the cache holds
    """

    total: int
    free: int
    weights: int
    per_token: int
    per_state: int
    num_tokens: int
    plan: CachePlan

    @property
    def left(self) -> int:
        """What neither weights nor cache take."""
        return self.free - self.weights - self.plan.total_bytes


def decided(config: EngineConfig, plugins: Plugins, progress: Progress) -> RunnerContext:
    """What model and settings come to on the platform. Only the headers of the weights are read.

    Raises the CoreError of whatever is wrong, as starting an engine does.
    """
    platform, device = plugins.select_platform(config.platform)
    path = locate_model(config.model, config.revision, plugins.sources, plugins.aliases, progress)
    checkpoint = open_checkpoint(path, plugins.architectures, plugins.quantizations, config.load_format)
    return decide(config, platform, device, checkpoint, plugins)


def budget_of(context: RunnerContext, runner: Runner) -> Budget:
    """What loading would take. Raises InsufficientMemory, in its words, where it does not fit."""
    settings, memory = context.settings, runner.memory_statistics()
    weights = weight_bytes(context)
    check_weights(settings, weights, memory.free)
    storages, alignment = (
        [runner.storage_bytes(g) for g in context.groups],
        context.capabilities.alignment_bytes,
    )
    plan = plan_cache(settings, context.groups, storages, alignment, memory.free - weights)
    held = [0, 0]  # in a block of tokens, and of states
    for group, sizes in zip(context.groups, storages, strict=True):
        held[group.recurrent] += sum(sizes)
    return Budget(
        total=memory.total,
        free=memory.free,
        weights=weights,
        per_token=held[False] // settings.block_size,
        per_state=held[True],
        num_tokens=plan.num_tokens,
        plan=plan,
    )


def budget(found: Budget, settings: Settings) -> Iterator[Finding]:
    """The findings: weights, cache, and what is left."""
    asked, dtype = settings.quantization, settings.dtype
    held = {"none": dtype, "stored": "the formats they are stored in"}.get(asked, f"{asked} and {dtype}")
    weights = f"{format_bytes(found.weights)} in {held}, of {format_bytes(found.free)} that are free"
    yield Finding("weights", "ok", weights)
    yield _cache(found, settings)
    left = f"{format_bytes(found.left)} of {format_bytes(found.total)}, for what a step computes"
    if found.left < LITTLE_LEFT * found.total:
        yield Finding("memory left", "note", f"{left}, which is little", "lower --kv-cache-memory")
    else:
        yield Finding("memory left", "ok", left)


def _cache(found: Budget, settings: Settings) -> Finding:
    length, most = found.plan.max_model_len, settings.max_num_seqs
    # Of a sequence longer than its window, layers hold less than its length: then one fits where this says none.
    whole = max(1, min(most, found.num_tokens // length))
    states = f" and states of {format_bytes(found.per_state)}" if found.per_state else ""
    text = (
        f"{format_bytes(found.plan.total_bytes)} for {found.num_tokens:,} tokens of {format_bytes(found.per_token)} "
        f"in {settings.kv_cache_dtype}{states}; sequences at once: {whole} of {length:,} tokens"
    )
    if whole < most:
        text += f", or {most} of {found.num_tokens // most:,}"
    if length == settings.max_model_len:
        return Finding("KV cache", "ok", text)
    wanted = f"the model was made for {settings.max_model_len:,} tokens"
    step = f"raise --kv-cache-memory towards {format_bytes(found.per_token * settings.max_model_len)}"
    return Finding("KV cache", "note", f"{text}; {wanted}", step)
