"""`llm bench`: how fast this engine is here, in this process, without HTTP; and any server, with it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import engine as engines
from cli import measure
from cli.bench_serve import serve
from cli.failures import UsageError
from cli.help import SectionedCommand, command_tree
from cli.options import Given, takes
from cli.report import write_figures
from cli.tables import ENGINE
from cli.terminal import Status, check_writable, write_json
from cli.workload import WORKLOAD, Prompt, Workload, make_prompts, workload_of

if TYPE_CHECKING:
    from core.config import EngineConfig
    from core.llm import LLM

app = command_tree(
    help="Measure throughput or latency of an engine in this process, or of a server over HTTP.",
    no_args_is_help=True,
)

Json = Annotated[
    Path | None, typer.Option("--json", help="Write the figures as JSON to this file; - prints them.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No status on standard error.")]
Temperature = Annotated[
    float, typer.Option(help="Sampling temperature; 0 takes the likeliest token.", min=0.0)
]
LATENCY = {"num_prompts": 1, "input_len": 32}


@app.command(cls=SectionedCommand)
@takes(WORKLOAD, ENGINE)
def throughput(
    warmup: Annotated[int, typer.Option(help="Requests to run before the clock starts.", min=0)] = 1,
    temperature: Temperature = 0.0,
    json: Json = None,
    quiet: Quiet = False,
    *,
    workload: Given,
    engine: Given,
) -> None:
    """Send all requests at once: requests, output tokens and total tokens per second, and percentiles."""
    load = workload_of({**workload, "seed": engine.get("seed", 0)})
    check_writable(json)
    status = Status(quiet=quiet)
    with engines.opened(_config(engine), status) as llm:
        prompts = _prompts(llm, load, load.num_prompts)
        if warmup:
            status("warming up")
            before = Workload(num_prompts=warmup, input_len=16, output_len=4, seed=load.seed + 1)
            measure.measure(llm, _prompts(llm, before, warmup), temperature=temperature, name="warmup")
        status(f"running {len(prompts)} requests")
        run = measure.measure(llm, prompts, temperature=temperature, name="run")
        status.clear()
        _report(llm, measure.throughput(run), json)


@app.command(cls=SectionedCommand)
@takes(
    WORKLOAD.without("num_prompts").showing(input_len=str(LATENCY["input_len"])),
    ENGINE,
)
def latency(
    batch_size: Annotated[int, typer.Option(help="Requests at once.", min=1)] = 1,
    warmup: Annotated[int, typer.Option(help="Batches to run before the clock starts.", min=0)] = 1,
    iterations: Annotated[int, typer.Option(help="Batches to measure.", min=1)] = 5,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of a step goes.")] = False,
    temperature: Temperature = 0.0,
    json: Json = None,
    quiet: Quiet = False,
    *,
    workload: Given,
    engine: Given,
) -> None:
    """Send one batch after the other: time to first token, per output token, and per request."""
    load = workload_of({**workload, "seed": engine.get("seed", 0)}, **LATENCY)
    check_writable(json)
    status = Status(quiet=quiet)
    with engines.opened(_config(engine), status) as llm:
        # Every batch has prompts of its own, so that none is found in the prefix cache.
        prompts = _prompts(llm, load, batch_size * (warmup + iterations))
        runs: list[measure.Run] = []
        stages = measure.Stages(llm.engine.clock)
        for index in range(warmup + iterations):
            status(f"batch {index + 1} of {warmup + iterations}")
            if index == warmup:
                stages = measure.Stages(llm.engine.clock)
            batch = prompts[index * batch_size : (index + 1) * batch_size]
            runs.append(measure.measure(llm, batch, temperature=temperature, name=f"batch-{index}"))
        status.clear()
        measured = runs[warmup:]
        requests = sum(len(run.timings) for run in measured)
        batches = measure.summary([run.seconds for run in measured])
        figures = {
            "batch_size": batch_size,
            "iterations": len(measured),
            "requests": requests,
            "batch_latency_ms": batches,
            **(stages.figures() if profile else {}),
        }
        _report(llm, {**figures, **measure.latencies(measured)}, json)


app.command(cls=SectionedCommand)(serve)


def _config(engine: Given) -> "EngineConfig":
    """Raises UsageError for a task of which nothing is timed here."""
    if engine.get("task", "auto") not in ("auto", "generate"):
        raise UsageError(f"--task is {engine['task']}; what is timed here is generating, so leave it out")
    return engines.engine_config(engine)


def _prompts(llm: "LLM", load: Workload, count: int) -> list[Prompt]:
    tokenizer = None if llm.info.tokenizer_path is None else llm.get_tokenizer()
    return make_prompts(
        replace(load, num_prompts=count),
        vocab_size=llm.info.vocab_size,
        max_model_len=llm.info.max_model_len,
        encode=None if tokenizer is None else tokenizer.encode,
    )


def _report(llm: "LLM", figures: dict[str, Any], json: Path | None) -> None:
    """Figures on stdout as a table, or where --json says."""
    info = llm.info
    names = ("model", "platform", "device", "dtype", "quantization", "kv_cache_dtype")
    setting = {name: getattr(info, name) for name in names}
    if json is not None:
        write_json({**setting, **figures}, json)
        if str(json) == "-":
            return
    title = f"{info.model} on {info.platform} ({info.device}), {info.dtype}, quantization {info.quantization}"
    write_figures(title, figures)
