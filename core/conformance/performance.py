"""The level "performance": each kernel against what the device's memory and arithmetic can do.

The device's ceilings are measured in the same run, that of its memory anew before every figure, because it drifts with
what else the machine does. That of its arithmetic is torch's product in the dtype or in float32, whichever is faster:
torch's own may be slow in a dtype that a kernel widens first. A kernel that comes near 1 of either has nothing left to
gain. Above 1, a cache has helped, or a quantised product computes in fewer bits than the dtype has. Slow is never wrong
here; what is not finite is.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from core.clock import HOST_STAGES
from core.conformance import Options, Result, driver
from core.conformance.heads import head_dim_for
from core.conformance.kernels import raised
from core.conformance.ops import tried_dtypes
from core.conformance.roofline import LEVEL, Bench, finite
from core.conformance.timing import BRIEF, THOROUGH, Arithmetic, Bandwidth, Ceilings, Effort, Stopwatch
from core.conformance.tiny import CONFIG, write_tiny_model
from core.contracts.platform import Device, Platform
from core.engine.engine import Engine
from core.errors import UnsupportedShape
from core.execution.dispatch import resolve_execution
from core.ledger import Ledger
from core.reference import KERNELS
from core.sampling_params import SamplingParams

_PROMPTS = {f"prompt {i}": [3 + i, *range(10, 17)] for i in range(8)}


def check(platform: Platform, device: Device, options: Options) -> Iterator[Result]:
    """Ceilings, then kernels, dtype by dtype; at last what the host adds to a step."""
    capabilities, effort = platform.capabilities(device), effort_of(options)
    found = Result(level=LEVEL, subject="device", case="memory")
    try:
        watch = stopwatch(platform, device, effort)
        bandwidth = Bandwidth(watch, device.torch_device)
        arithmetic = Arithmetic(watch, device.torch_device, effort, capabilities.dtypes)
        rates = bandwidth.rates()
    except Exception as error:
        yield replace(found, problem=raised(error))
        return
    for case, rate in rates.items():
        yield finite(replace(found, case=case, figures={"bytes_per_second": rate}))
    for dtype in tried_dtypes(capabilities, options):
        yield from _in_dtype(platform, device, dtype, options, watch, bandwidth, arithmetic)
    yield host_overhead(platform, device, options)


def effort_of(options: Options) -> Effort:
    return BRIEF if options.quick else THOROUGH


def stopwatch(platform: Platform, device: Device, effort: Effort) -> Stopwatch:
    """One that waits for the device as its platform does. Sets the process up, as a runner would."""
    execution = resolve_execution(platform, device, Ledger())
    execution.set_up()
    return Stopwatch(execution.synchronize, effort.seconds)


def host_overhead(platform: Platform, device: Device, options: Options) -> Result:
    """What the host adds to a step: of a model so small that its forward pass hides nothing, eight answers at once.

    By the engine's own clock, see `core.clock`.
    """
    capabilities = platform.capabilities(device)
    dtype = tried_dtypes(capabilities, options)[0]
    found = Result(level=LEVEL, subject="engine", case="steps of a tiny model", dtype=dtype)
    side = driver.Side(platform=platform, device=device, dtype=dtype, block_size=capabilities.block_sizes[0])
    try:
        with TemporaryDirectory() as folder:
            head_dim = head_dim_for(capabilities, CONFIG["head_dim"])
            model = write_tiny_model(Path(folder), seed=options.seed, head_dim=head_dim)
            with side.engine(model, enable_prefix_caching=False) as engine:
                return finite(
                    replace(found, figures=_per_step(engine, num_tokens=16 if options.quick else 128))
                )
    except UnsupportedShape as error:
        return replace(found, unsupported=str(error))
    except Exception as error:
        return replace(found, problem=raised(error))


def _in_dtype(
    platform: Platform,
    device: Device,
    dtype: str,
    options: Options,
    watch: Stopwatch,
    bandwidth: Bandwidth,
    arithmetic: Arithmetic,
) -> Iterator[Result]:
    found = Result(level=LEVEL, subject="device", case="product", dtype=dtype)
    try:
        rate, most = arithmetic.rate(dtype), arithmetic.ceiling(dtype)
        bench = Bench(
            platform,
            device,
            dtype,
            options,
            watch=watch,
            effort=effort_of(options),
            ceilings=lambda: Ceilings(max(bandwidth.rates().values()), most),
        )
    except Exception as error:
        yield replace(found, problem=raised(error))
        return
    yield finite(replace(found, figures={"flops_per_second": rate}))
    for kernel in KERNELS.values():
        yield from bench.results(kernel)


def _per_step(engine: Engine, num_tokens: int) -> dict[str, float]:
    """Means over the steps of a second round; the first one warms up. Raises RuntimeError when an answer fails."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    driver.complete(engine, _PROMPTS, params)
    clock = engine.clock
    before, steps_before = dict(clock.seconds), clock.num_steps
    answers = driver.complete(engine, _PROMPTS, params)
    for name, answer in answers.items():
        if answer.error:
            raise RuntimeError(f"the answer to {name} failed: {answer.error}")
    steps = clock.num_steps - steps_before
    spent = {stage: seconds - before[stage] for stage, seconds in clock.seconds.items()}
    host = sum(spent[stage] for stage in HOST_STAGES)
    return {
        "host_seconds_per_step": host / steps,
        "seconds_per_step": sum(spent.values()) / steps,
        "host_share": host / sum(spent.values()),
    }
