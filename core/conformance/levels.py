"""The levels of conformance, and running them. What a level checks stands in its own module.

Imports nothing that computes until a level is run.
"""

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module

from core.conformance import Options, Result
from core.contracts.platform import Device, Platform
from core.errors import ConfigError

Progress = Callable[[Result], None]

ENDED = "level"
"""Subject of the result that says why a level ended before it was through."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level, which the module of its name checks."""

    name: str
    summary: str

    def check(self, platform: Platform, device: Device, options: Options) -> Iterator[Result]:
        """Everything the level finds; an error that escapes it is a result, too.

        Of the dtypes that were asked for, it is run in those that the device declares. Each of the others is not
        supported, whatever the names of checks must contain.
        """
        from core.execution.dispatch import resolve_execution
        from core.ledger import Ledger

        try:
            resolve_execution(platform, device, Ledger()).set_up()
            asked = tuple(dict.fromkeys(options.dtypes or ()))
            declared = platform.capabilities(device).dtypes if asked else ()
            yield from (self._lacks(dtype, declared) for dtype in asked if dtype not in declared)
            tried = tuple(dtype for dtype in asked if dtype in declared)
            if asked and not tried:
                return
            run_in = replace(options, dtypes=tried or None)
            found = import_module(f"core.conformance.{self.name}").check(platform, device, run_in)
            yield from (result for result in found if options.only in result.name)
        except (Exception, SystemExit) as error:
            problem = f"ended early: {type(error).__name__}: {error}"
            yield Result(level=self.name, subject=ENDED, case=self.name, problem=problem)

    def _lacks(self, dtype: str, declared: tuple[str, ...]) -> Result:
        reason = f"{dtype} is not among its dtypes: {', '.join(declared)}"
        return Result(level=self.name, subject="dtype", case=dtype, unsupported=reason)


LEVELS: Mapping[str, Level] = {
    level.name: level
    for level in (
        Level(name="ops", summary="every kernel against the reference, per dtype and shape"),
        Level(name="attention", summary="paged attention over ragged batches, on a poisoned cache"),
        Level(name="memory", summary="budgets, copied and saved blocks, refusals, statistics"),
        Level(name="communication", summary="each collective over 1, 2 and 4 ranks"),
        Level(
            name="engine",
            summary="answers of tiny models equal to the reference's, whatever happens on the way",
        ),
        Level(name="server", summary="the same over HTTP, from `llm serve`"),
        Level(name="performance", summary="each kernel against the device's own memory and arithmetic"),
    )
}
"""In the order in which they are worth running: what a later one needs, an earlier one has tried."""

DEFAULT = ("ops", "attention", "memory", "communication", "engine")
"""What is run when nobody says otherwise."""


def named(asked: Collection[str]) -> tuple[str, ...]:
    """Each of these once, in the order of LEVELS; the default for none. Raises ConfigError for what there is not."""
    for name in asked:
        if name not in LEVELS:
            close = get_close_matches(name, LEVELS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(LEVELS)}"
            raise ConfigError(f"no level is named {name!r}; {hint}", setting="level")
    return tuple(name for name in LEVELS if name in (asked or DEFAULT))


def run(
    platform: Platform,
    device: Device,
    levels: Iterable[str],
    options: Options,
    progress: Progress = lambda result: None,
) -> list[Result]:
    """Every result of these levels, in order; `progress` is told of each as it comes."""
    results: list[Result] = []
    for name in levels:
        for result in LEVELS[name].check(platform, device, options):
            progress(result)
            results.append(result)
    return results


def command(platform: str, result: Result, options: Options) -> str:
    """The command line that runs a check again, alone."""
    words = ["llm", "conformance", "--platform", platform, "--level", result.level]
    words += ["--dtype", result.dtype] if result.dtype else []
    words += ["--quick"] if options.quick else []
    return shlex.join(words if result.subject == ENDED else [*words, "--only", result.name])
