"""The clock: one engine in one mode does the work of `workload.py`, and one line of JSON says how fast.

    PYTHON measure.py vllm --model FOLDER --mode bf16 --out results.jsonl

PYTHON is the interpreter of the engine's own environment. All figures are wall time around `generate`, with the model
loaded and after a warm-up. Time per output token is the time for 128 new tokens less that for one, over 127, on fresh
prompts, so that no prefix cache helps. Thread pinning is in the environment: `run.py` sees to it.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import workload
from engines import MODES, NAMES, Engine, Settings, adapter

CASES = ("answer", "single", "prefill", "decode", "shared", "offline")
NEW_TOKENS = 128


class WrongAnswer(Exception):
    """The engine's float32 answer to a known prompt is wrong, so its speed means nothing."""


class Measurement:
    """The figures of one engine: each case adds its columns."""

    def __init__(self, engine: Engine, *, exact: bool, repeats: int, offline_requests: int) -> None:
        self._engine = engine
        self._exact = exact
        self._repeats = repeats
        self._offline_requests = offline_requests
        self._seed = 100
        self.figures: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

    def run(self, cases: list[str]) -> None:
        """Run the cases in this order. One that fails leaves its error, and the next goes on."""
        self._time(1, 32, 4)
        self._time(2, 64, 4)
        named: dict[str, Callable[[], None]] = {name: getattr(self, f"_{name}") for name in CASES}
        for case in cases:
            start = time.perf_counter()
            try:
                named[case]()
            except WrongAnswer:
                raise
            except Exception as error:
                self.figures[f"{case}_error"] = repr(error)[:300]
            self.seconds[case] = round(time.perf_counter() - start, 1)

    def _timed(self, prompts: list[list[int]], num_new: int) -> float:
        start = time.perf_counter()
        outputs = self._engine.generate(prompts, num_new)
        took = time.perf_counter() - start
        wrong = sum(len(output) != num_new for output in outputs) + abs(len(prompts) - len(outputs))
        if wrong:
            raise ValueError(f"{wrong} of {len(prompts)} outputs are not {num_new} tokens long")
        return took

    def _time(self, count: int, length: int, num_new: int) -> float:
        """Seconds for prompts that were never used before."""
        self._seed += 1
        return self._timed(workload.batch(count, length, self._seed), num_new)

    def _answer(self) -> None:
        begun = self._engine.generate([workload.CAPITAL], 24)[0]
        right = begun[: len(workload.ANSWER)] == workload.ANSWER
        self.figures["answer_ok"] = right
        if self._exact and not right:
            raise WrongAnswer(f"the float32 answer begins with {begun}, not with {workload.ANSWER}")

    def _single(self) -> None:
        first = median([self._time(1, 128, 1) for _ in range(self._repeats)])
        whole = median([self._time(1, 128, NEW_TOKENS) for _ in range(self._repeats)])
        self.figures["ttft128_ms"] = 1e3 * first
        self.figures["tpot1_ms"] = 1e3 * (whole - first) / (NEW_TOKENS - 1)

    def _prefill(self) -> None:
        took = median([self._time(1, 2048, 1) for _ in range(self._repeats)])
        self.figures["prefill2048_tok_s"] = 2048 / took

    def _decode(self) -> None:
        for count, repeats in ((4, min(2, self._repeats)), (16, 1), (32, 1)):
            rates: list[float] = []
            for _ in range(repeats):
                one = self._time(count, 64, 1)
                many = self._time(count, 64, NEW_TOKENS)
                rates.append(count * (NEW_TOKENS - 1) / (many - one))
            self.figures[f"decode_b{count}_tok_s"] = median(rates)

    def _shared(self) -> None:
        self.figures["shared_cold_s"] = self._timed(workload.shared(), 16)
        self.figures["shared_warm_s"] = self._timed(workload.shared_again(), 16)

    def _offline(self) -> None:
        prompts = workload.offline(self._offline_requests)
        self.figures["offline_out_tok_s"] = len(prompts) * NEW_TOKENS / self._timed(prompts, NEW_TOKENS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=NAMES)
    parser.add_argument("--model", required=True, help="folder or file that the engine reads")
    parser.add_argument("--model-name", help="name in the results [default: that of the folder or file]")
    parser.add_argument("--mode", choices=MODES, default="bf16")
    parser.add_argument("--program", default="llama-server", help="for llama_cpp: path of llama-server")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-gib", type=int, default=4)
    parser.add_argument("--cases", default=",".join(CASES), help="[default: all]")
    parser.add_argument("--repeats", type=int, default=3, help="for the median of the short cases")
    parser.add_argument("--offline-requests", type=int, default=64)
    parser.add_argument("--options", type=json.loads, default={}, help="of the adapter, as JSON")
    parser.add_argument("--round", type=int, default=1, help="number of the round, for the results")
    parser.add_argument("--out", type=Path, help="file to which the line is appended")
    given = parser.parse_args()
    if unknown := sorted(set(given.cases.split(",")) - set(CASES)):
        parser.error(f"unknown case {unknown[0]!r}; known: {', '.join(CASES)}")
    if min(given.threads, given.cache_gib, given.repeats, given.offline_requests) < 1:
        parser.error("--threads, --cache-gib, --repeats and --offline-requests are at least 1")
    return given


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Load the engine, run the cases, and describe both."""
    settings = Settings(given.program, given.model, given.mode, given.threads, given.cache_gib, given.options)
    start = time.perf_counter()
    engine = adapter(given.engine).load(settings)
    loaded = time.perf_counter() - start
    try:
        work = Measurement(
            engine,
            exact=given.mode == "f32",
            repeats=given.repeats,
            offline_requests=given.offline_requests,
        )
        work.run(given.cases.split(","))
        rss = engine.peak_rss_mb()
    finally:
        engine.close()
    model = given.model_name or os.path.basename(given.model.rstrip("/"))
    about = {"kind": "engine", "model": model, "mode": given.mode, "engine": given.engine}
    about |= {"version": engine.version, "round": given.round, "options": given.options}
    about |= {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    about |= {"repeats": given.repeats, "offline_requests": given.offline_requests}
    return about | work.figures | {"load_s": loaded, "peak_rss_mb": rss, "seconds": work.seconds}


def main() -> None:
    given = arguments()
    try:
        line = measured(given)
    except (WrongAnswer, ValueError) as error:
        raise SystemExit(f"{given.engine}: {error}") from None
    text = json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()})
    print(text, flush=True)
    if given.out is not None:
        with given.out.open("a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
