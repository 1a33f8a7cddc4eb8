"""Level "engine": whole answers of tiny models, equal to the reference's whatever happens on the way.

Requests are alone or together, cut into chunks, preempted, aborted, forked, found in the cache; the tokens stay. A
device without float32 is compared within the rounding of its dtype, and the name of each case says how far.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from core.conformance import Options, Result, trials
from core.conformance.trials import AGREEMENT, BRIEF, EXACT
from core.conformance.workbench import NotSupported, Workbench
from core.contracts.platform import Device, Platform
from core.contracts.quantization import MADE
from core.errors import UnsupportedShape

LEVEL = "engine"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One check. run: gives the problem, or ""; raises NotSupported, or what the platform refuses with.

    rounds  whether the comparison is within the dtype's rounding, where it has any
    """

    subject: str
    case: str
    run: Callable[[Workbench], str]
    rounds: bool = True


def check(platform: Platform, device: Device, options: Options) -> Iterator[Result]:
    """Every trial in float32, or in the device's first dtype; in the others, that the likeliest tokens agree."""
    dtypes = options.dtypes or platform.capabilities(device).dtypes
    main = EXACT if EXACT in dtypes else dtypes[0]
    length = BRIEF if options.quick else 2 * BRIEF
    with TemporaryDirectory(prefix="conformance-") as folder:

        def bench(dtype: str) -> Workbench:
            return Workbench(platform, device, Path(folder), dtype, seed=options.seed, length=length)

        shared = bench(main)
        tried = [(trial, shared) for trial in _trials(quick=options.quick)]
        rounding = [dtype for dtype in dtypes if dtype != EXACT and not options.quick]
        tried += [(_AGREEMENT, bench(dtype)) for dtype in rounding]
        for trial, side in tried:
            found = _named(trial, side)
            if options.only in found.name:
                yield _result(trial, side, found)


def _named(trial: Trial, bench: Workbench) -> Result:
    """A result of which nothing is known but the name."""
    dtype = bench.ours.dtype
    within = f", within {bench.margin:g}" if trial.rounds and dtype != EXACT else ""
    return Result(level=LEVEL, subject=trial.subject, case=f"{trial.case}{within}", dtype=dtype)


def _result(trial: Trial, bench: Workbench, found: Result) -> Result:
    bench.figures = {}
    problem = unsupported = ""
    try:
        problem = trial.run(bench)
    except (NotSupported, UnsupportedShape) as reason:
        unsupported = str(reason)
    except Exception as error:
        problem = " ".join(f"raised {type(error).__name__}: {error}".split())[:400]
    return replace(found, problem=problem, unsupported=unsupported, figures=bench.figures)


def _trials(*, quick: bool) -> Iterator[Trial]:
    yield from _TRIALS
    formats = list(MADE)[:1] if quick else list(MADE)
    for name in formats:
        yield Trial(
            subject="weights",
            case=f"quantised to {name} while loaded",
            run=trials.quantized(name),
            rounds=False,
        )


_AGREEMENT = Trial(
    subject="agreement", case=f"at least {AGREEMENT:.0%} of likeliest tokens", run=trials.agreeing
)

_TRIALS: tuple[Trial, ...] = (
    Trial(subject="greedy", case="one by one", run=trials.greedy(together=False)),
    Trial(subject="greedy", case="as a batch", run=trials.greedy()),
    Trial(subject="greedy", case="in chunks of 16", run=trials.greedy(max_num_batched_tokens=16)),
    Trial(subject="greedy", case="without a prefix cache", run=trials.greedy(enable_prefix_caching=False)),
    Trial(subject="greedy", case="a head that is the embedding", run=trials.greedy(trials.tied)),
    Trial(subject="window", case="as a batch", run=trials.greedy(Workbench.windowed)),
    Trial(
        subject="window",
        case="in chunks of 16",
        run=trials.greedy(Workbench.windowed, max_num_batched_tokens=16),
    ),
    Trial(subject="preemption", case="more sequences than the cache holds", run=trials.preempted),
    Trial(subject="abort", case="neighbours leave in the middle", run=trials.aborted),
    Trial(subject="prefix", case="a prompt again, and one that begins alike", run=trials.reused),
    Trial(subject="forks", case="three answers to one prompt", run=trials.forked),
    Trial(subject="seeds", case="twice", run=trials.seeded_again, rounds=False),
    Trial(subject="seeds", case="in another order", run=trials.seeded_backwards, rounds=False),
    Trial(subject="cache", case="kept in int8", run=trials.cached_in_int8, rounds=False),
    Trial(subject="steps", case="a replayed script", run=trials.replayed(crowded=False), rounds=False),
    Trial(
        subject="steps",
        case="a replayed script in a small cache",
        run=trials.replayed(crowded=True),
        rounds=False,
    ),
)
