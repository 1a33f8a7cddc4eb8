"""What each kernel takes of a model's steps: prompts and decodes, run under a stopwatch and counted apart.

The kernels of the sampler are no part of a model; those are timed on their own.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING

from cli.doctor_watch import Stopwatch
from cli.engine import SAMPLING_FALLBACK
from cli.failures import CommandError
from core.contracts.platform import Device
from core.engine.engine import Engine, SequenceDelta
from core.engine.intake import Intake
from core.errors import CoreError
from core.examination import reason_of
from core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

PROMPT_TOKENS, DECODES, RUNS = 128, 16, 2
SAMPLER_CALLS = 20
SAMPLER = frozenset({"argmax", "sample"})
"""Kernels that the runner calls beside the model."""


@dataclass
class Phase:
    """Steps of one kind, each as `name` says: tokens that they sampled, seconds, and seconds of each kernel."""

    kind: str
    name: str
    answers: int = 0
    seconds: float = 0.0
    kernels: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, seconds: float, kernels: Mapping[str, float]) -> None:
        """One step."""
        self.seconds += seconds
        for name, spent in kernels.items():
            self.kernels[name] = self.kernels.get(name, 0.0) + spent

    @property
    def seconds_each(self) -> float:
        return self.seconds / self.answers

    def share(self, kernel: str) -> float | None:
        """0 to 1; None for what was never called."""
        return None if kernel not in self.kernels else self.kernels[kernel] / self.seconds


def measured(engine: Engine, watch: Stopwatch) -> tuple[Phase, ...]:
    """The steps of prompts, of one sequence at a time; of a model that generates those of the tokens after it, too.

    Raises CommandError when a step fails, or gives no token.
    """
    limit, vocab_size = engine.info.max_model_len, engine.info.vocab_size
    num_output = min(DECODES + 1, max(2, limit // 4))
    num_prompt = max(1, min(PROMPT_TOKENS, limit - num_output))
    params = SamplingParams(**SAMPLING_FALLBACK, max_tokens=num_output, ignore_eos=True)
    intake, pools = Intake(engine.info, None), engine.info.pooling is not None
    prompt, decode = _phases(num_prompt)
    for run in range(RUNS + 1):
        if run == 1:  # the one before has warmed up
            prompt, decode = _phases(num_prompt)
        source = Random(run)  # a prompt of its own, of which nothing is cached
        token_ids = [source.randrange(vocab_size) for _ in range(num_prompt)]
        name = f"doctor-{run}"
        engine.add(
            intake.pooling_request(token_ids, request_id=name)
            if pools
            else intake.request(token_ids, params, request_id=name)
        )
        _answer(engine, watch, prompt, decode)
    return (prompt,) if pools else (prompt, decode)


def add_sampler(
    phases: Sequence[Phase], names: Collection[str], engine: Engine, device: Device, watch: Stopwatch
) -> None:
    """To what a phase took, what these kernels of the reference take for its tokens: each of SAMPLER, timed alone."""
    import torch

    from core import reference

    for name in names:
        timed = watch.timed(name, reference.KERNELS[name].reference)
        with torch.inference_mode():
            arguments = _sampler_arguments(name, engine, device)
            timed(*arguments)
            watch.seconds.pop(name)  # the first call has warmed up
            for _ in range(SAMPLER_CALLS):
                timed(*arguments)
        each = watch.seconds.pop(name) / SAMPLER_CALLS
        for phase in phases:
            phase.add(0.0, {name: each * phase.answers})


def _sampler_arguments(name: str, engine: Engine, device: Device) -> "tuple[Tensor, ...]":
    """One row of logits as long as the model's; `sample` is asked for what `llm generate` asks for."""
    import torch

    from core.reference.sample_cases import sampling_case

    # A model's logits are far from alike; of logits that are, top-p would have to sort every one.
    logits = 8 * torch.randn(1, engine.info.vocab_size, device=device.torch_device)
    if name == "argmax":
        return (logits.to(getattr(torch, engine.info.dtype)),)
    asked = SamplingParams(**SAMPLING_FALLBACK)
    row = (asked.temperature, asked.top_k, asked.top_p, asked.min_p, 0.5)
    case = sampling_case(name, logits, [row])
    return tuple(argument.to(device.torch_device) for argument in case.arguments)


def _phases(num_prompt: int) -> tuple[Phase, Phase]:
    prompt = f"a prompt of {num_prompt} token{'s' if num_prompt != 1 else ''}"
    return Phase("prompt", prompt), Phase("decode", "a decode step")


def _answer(engine: Engine, watch: Stopwatch, prompt: Phase, decode: Phase) -> None:
    """Run what was added; all steps up to the first token are the prompt's."""
    phase = prompt
    while engine.has_work:
        watch.seconds.clear()
        begin = perf_counter()
        deltas = _step(engine)
        phase.add(perf_counter() - begin, watch.seconds)
        for delta in deltas:
            if delta.error is not None:
                raise CommandError(f"the model does not answer a prompt of random tokens: {delta.error}")
        answered = sum(len(delta.token_ids) + (delta.pooled is not None) for delta in deltas)
        phase.answers += answered
        phase = decode if answered else phase


def _step(engine: Engine) -> list[SequenceDelta]:
    try:
        return engine.step()
    except CoreError:
        raise
    except Exception as error:  # whatever a platform raises is a finding
        raise CommandError(f"a step failed: {reason_of(error)}") from error
