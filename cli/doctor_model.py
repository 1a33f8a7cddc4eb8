"""What `llm doctor --model` finds: how the model fills the memory, who serves its kernels, and what fallbacks cost."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from cli.doctor_budget import budget, budget_of, decided
from cli.doctor_cost import SAMPLER, Phase, add_sampler, measured
from cli.doctor_finding import Finding, Verdict
from cli.doctor_watch import watch_for, watched
from cli.terminal import Status
from core.config import EngineConfig
from core.contracts.kernels import Implementation, KernelRequest
from core.contracts.platform import Platform
from core.contracts.runner import RunnerContext
from core.discovery import Plugins
from core.engine.build import build_engine, runner_for
from core.errors import CoreError, NoPlatform
from core.examination import reason_of
from core.execution.dispatch import COMPOSED, REFERENCE
from core.execution.trust import rejection
from core.ledger import Choice
from core.weights.checkpoint import Checkpoint

SOME, MUCH = 0.05, 0.2
"""Of a step: what is worth a note, and what is a good part of the speed."""

FALLBACKS = (REFERENCE, COMPOSED)
"""What a ledger names as provider where a platform serves nothing itself."""


class Advice(NamedTuple):
    """What a user can do about a fallback, "" for nothing; whether the platform's own version gives wrong results."""

    step: str = ""
    wrong: bool = False


def model(config: EngineConfig, plugins: Plugins, status: Status) -> Iterator[Finding]:
    """Every finding. What cannot be loaded is one of them; that no platform can run is known already."""
    try:
        yield from _findings(config, plugins, status)
    except NoPlatform:
        return
    except CoreError as error:
        yield Finding("model", "problem", str(error))
    except Exception as error:  # whatever a platform raises is a finding
        step = f"llm platforms explain --model {config.model} --debug  shows where"
        yield Finding("model", "problem", f"cannot be run: {reason_of(error)}", step)


def _findings(config: EngineConfig, plugins: Plugins, status: Status) -> Iterator[Finding]:
    status(f"looking at {config.model}")
    context = decided(config, plugins, status)
    yield described(context)
    runner = runner_for(context)
    try:
        found = budget_of(context, runner)
    finally:
        runner.close()
    yield from budget(found, context.settings)
    composed = _served_by(context.ledger.choices, COMPOSED)
    watch = watch_for(context.platform, context.device)
    engine = build_engine(config, status, plugins=watched(plugins, composed, watch))
    try:
        status("timing its kernels")
        phases = measured(engine, watch)
        choices = engine.ledger.choices
        fallen = _served_by(choices, *FALLBACKS)
        if engine.info.pooling is None:
            add_sampler(phases, SAMPLER & {*fallen}, engine, context.device, watch)
    finally:
        engine.close()
    yield from speed(phases)
    yield from ledger(choices, phases, context)


def described(context: RunnerContext) -> Finding:
    """The model, and what it is run in."""
    count = context.description.num_parameters or _counted(context.checkpoint)
    size = f"{count / 1e6:,.1f} million parameters"
    where = f"{context.settings.dtype} on {context.platform.name}"
    return Finding("model", "ok", f"{context.architecture.name}, {size}, {where} ({context.checkpoint.path})")


def _counted(checkpoint: Checkpoint) -> int:
    """Numbers in all of its weights."""
    return sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names())


def speed(phases: Sequence[Phase]) -> Iterator[Finding]:
    """How long the measured steps took, which the shares below are parts of."""
    for phase in phases:
        yield Finding(phase.kind, "ok", f"{phase.name} takes {phase.seconds_each * 1e3:.2f} ms")


def ledger(choices: Sequence[Choice], phases: Sequence[Phase], context: RunnerContext) -> Iterator[Finding]:
    """What the platform serves itself, then each fallback with what it takes of a step."""
    platform = context.platform
    own = ", ".join(what for what in _served_by(choices, platform.name) if what != "platform")
    yield Finding(f"{platform.name} serves", "ok", own or "nothing")
    offered = platform.kernels(context.device)
    for choice in choices:
        if choice.provider in FALLBACKS:
            yield fallback(choice, phases, advice(choice.what, offered, context))


def advice(what: str, offered: Mapping[str, Implementation], context: RunnerContext) -> Advice:
    """What a user can do about a fallback of this name.

    offered  the platform's own versions of kernels
    """
    platform, settings, preferred = context.platform, context.settings, context.capabilities.dtypes[0]
    attends = what == "attention" and type(platform).attention is not Platform.attention
    if what not in offered and not attends:
        return Advice()
    request = KernelRequest(dtype=settings.dtype, attention=settings.attention_specs(context.description))
    if what in offered and rejection(offered[what], request) is None:  # then it was tried, and found wrong
        return Advice(
            f"update {platform.name};  llm conformance --platform {platform.name}  shows more", True
        )
    if settings.dtype != preferred:
        return Advice(f"try --dtype {preferred}, which {platform.name} prefers")
    return Advice("change what the reason names")


def fallback(choice: Choice, phases: Sequence[Phase], advice: Advice) -> Finding:
    """What the core does itself: why, and what it takes of each phase."""
    reasons = "; ".join(f"{rejection.provider}: {rejection.reason}" for rejection in choice.rejected)
    detail = f" {'for ' if choice.provider != COMPOSED else ''}{choice.detail}" if choice.detail else ""
    shares = {phase.name: share for phase in phases if (share := phase.share(choice.what)) is not None}
    named = [f"{100 * share:.1f} % of {name}" for name, share in shares.items()]
    cost = ", ".join(named) or "not in these steps"
    verdict, next_step = _judged(max(shares.values(), default=0.0), advice)
    return Finding(choice.what, verdict, f"{choice.provider}{detail}: {cost} ({reasons})", next_step)


def _judged(share: float, advice: Advice) -> tuple[Verdict, str]:
    if advice.wrong:
        return "problem", advice.step
    if share < SOME:
        return "ok", ""
    if not advice.step:
        return "note", "only a version of the platform's own would be faster: docs/writing-a-platform.md"
    return ("problem" if share >= MUCH else "note"), advice.step


def _served_by(choices: Sequence[Choice], *providers: str) -> list[str]:
    """What these serve, in the order of the ledger, each once."""
    return list(dict.fromkeys(choice.what for choice in choices if choice.provider in providers))
