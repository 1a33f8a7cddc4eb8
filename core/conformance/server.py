"""Level "server": the answers of `llm serve` on a platform, asked for over HTTP as anybody would.

The server is a process of its own, which finds the platform by its name; one that is not installed cannot be served.
Only this machine's loopback address is used, and everything has a time limit.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from core.conformance import Options, Result
from core.conformance.client import PATIENCE_S, Refused, Served, completion, ready, streamed
from core.conformance.driver import Answer
from core.conformance.trials import BRIEF, EXACT
from core.conformance.workbench import Workbench
from core.contracts.platform import Device, Platform
from core.discovery import load_plugins
from core.engine.spawn import environment

LEVEL = "server"

Check = Callable[[Served, Workbench, Path], str]


def check(platform: Platform, device: Device, options: Options) -> Iterator[Result]:
    """Completions whole, streamed and several at once; a refusal beside them; and the end."""
    if platform.name not in [found.name for found in load_plugins().platforms if found.platform]:
        reason = f"{platform.name} is not installed, and a server finds platforms by their names"
        yield Result(level=LEVEL, subject="start", case="llm serve", unsupported=reason)
        return
    dtypes = options.dtypes or platform.capabilities(device).dtypes
    dtype = EXACT if EXACT in dtypes else dtypes[0]
    with TemporaryDirectory(prefix="conformance-") as folder:
        bench = Workbench(platform, device, Path(folder), dtype, seed=options.seed, length=BRIEF)
        model = bench.model()
        bench.expected(model)  # before the server starts, which is to have the device for itself
        process = _started(platform.name, model, dtype, Path(folder))
        try:
            yield from _checked(process, bench, model)
        finally:
            process.kill()


def _started(platform: str, model: Path, dtype: str, folder: Path) -> Served:
    """`llm serve` in a process of its own, with this interpreter's import path; not ready yet."""
    options = ["--platform", platform, "--dtype", dtype, "--port", "0", "--skip-tokenizer-init"]
    output, errors = folder / "output", folder / "errors"
    with output.open("wb") as standard, errors.open("wb") as trouble:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli", "serve", str(model), *options, "--max-num-seqs", "4"],
            stdin=subprocess.DEVNULL,
            stdout=standard,
            stderr=trouble,
            env=environment(),
        )
    return Served(process=process, output=output, errors=errors)


def _checked(process: Served, bench: Workbench, model: Path) -> Iterator[Result]:
    problem = _problem(lambda: ready(process))
    yield _result("start", "ready for requests", bench, problem)
    if problem:
        return
    for subject, case, run in _CHECKS:
        problem = _problem(lambda run=run: run(process, bench, model))
        yield _result(subject, case, bench, problem)
    yield _result("end", "after SIGTERM nothing of it is left", bench, _problem(process.ended))


def _result(subject: str, case: str, bench: Workbench, problem: str) -> Result:
    return Result(level=LEVEL, subject=subject, case=case, dtype=bench.ours.dtype, problem=problem)


def _problem(run: Callable[[], str]) -> str:
    try:
        return run()
    except Exception as error:
        return " ".join(f"raised {type(error).__name__}: {error}".split())[:400]


def _whole(server: Served, bench: Workbench, model: Path) -> str:
    answers = {name: completion(server, prompt, BRIEF) for name, prompt in bench.prompts.items()}
    return _compared(bench, model, answers)


def _streamed(server: Served, bench: Workbench, model: Path) -> str:
    answers = {name: streamed(server, prompt, BRIEF) for name, prompt in bench.prompts.items()}
    return _compared(bench, model, answers)


def _at_once(server: Served, bench: Workbench, model: Path) -> str:
    with ThreadPoolExecutor(len(bench.prompts)) as pool:
        asked = {
            name: pool.submit(streamed if place % 2 else completion, server, prompt, BRIEF)
            for place, (name, prompt) in enumerate(bench.prompts.items())
        }
        answers = {name: future.result(PATIENCE_S) for name, future in asked.items()}
    return _compared(bench, model, answers)


def _refused(server: Served, bench: Workbench, model: Path) -> str:
    """A parameter that is out of range, and a token that the model does not know, beside a good request."""
    name, prompt = list(bench.prompts.items())[-1]
    bad: tuple[tuple[str, list[int], dict[str, float]], ...] = (
        ("temperature", prompt, {"temperature": -1.0}),
        ("prompt", [10**6], {}),
    )
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(streamed, server, prompt, BRIEF)
        for parameter, asked, more in bad:
            try:
                completion(server, asked, BRIEF, **more)
            except Refused as refusal:
                if (refusal.status, refusal.parameter) == (400, parameter):
                    continue
                return f"a bad {parameter} was answered with {refusal.status}, naming {refusal.parameter}"
            return f"a bad {parameter} was not refused"
        return _compared(bench, model, {name: neighbour.result(PATIENCE_S)})


def _compared(bench: Workbench, model: Path, tokens: dict[str, list[int]]) -> str:
    answers = {name: Answer(token_ids=token_ids) for name, token_ids in tokens.items()}
    return bench.compared(bench.expected(model), answers)


_CHECKS: tuple[tuple[str, str, Check], ...] = (
    ("completions", "whole", _whole),
    ("completions", "streamed", _streamed),
    ("completions", "several at once", _at_once),
    ("refusals", "beside a good request", _refused),
)
