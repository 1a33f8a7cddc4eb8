"""`llm bench serve`: how fast a server answers, whichever it is."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.failures import FAILED, CommandError, UsageError
from cli.options import Given, takes
from cli.terminal import Status, check_writable, write, write_json
from cli.traffic.settings import LOAD, TARGET, TEXTS, Load, Target, Texts, limits_of

if TYPE_CHECKING:
    from cli.traffic.client import Client
    from cli.traffic.records import Record
    from cli.traffic.texts import Ruler


@takes(TARGET, LOAD, TEXTS)
def serve(
    api_key: Annotated[
        str | None, typer.Option(help="Key to send, if the server wants one.", envvar="LLM_API_KEY")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", help="Write figures and requests as JSON to this file; - prints them."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write charts to this PNG file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No status on standard error.")] = False,
    *,
    target: Given,
    load: Given,
    texts: Given,
) -> None:
    """Load a server that speaks OpenAI's API: throughput, latencies, errors, goodput.

    Requests are streamed. Without --request-rate they go out in a closed loop, --concurrency at once; with it, at
    random moments of that rate, and their times count from the moment that was drawn for them: waiting for a
    place, or for this client, counts. (Tools that count from the sending show less under load.)

    Leaves with 1 when no request was answered.
    """
    import asyncio

    run = _Run(Target(**target), Load(**load), Texts(**texts), Status(quiet=quiet))
    if plot is not None:
        from cli.traffic.plot import imported_figure

        imported_figure()
    check_writable(json, plot)
    records, figures = asyncio.run(run.measured(api_key))
    _report(run, records, figures, json, plot)
    if not figures["completed"]:
        raise typer.Exit(FAILED)


class _Run:
    """One run: the warm-up, then what is measured."""

    def __init__(self, target: Target, load: Load, texts: Texts, status: Status) -> None:
        if target.api == "chat" and texts.vocab_size is not None:
            raise UsageError("--vocab-size sends token ids, which --api chat does not take")
        self.target, self.load, self.texts, self.status = target, load, texts, status
        self.model = target.model

    async def measured(self, api_key: str | None) -> "tuple[list[Record], dict[str, Any]]":
        """What became of each request, and the figures of all. Raises CommandError when the warm-up fails."""
        from cli.traffic.arrivals import drive
        from cli.traffic.client import Client
        from cli.traffic.records import figures_of
        from cli.traffic.texts import make_questions

        async with Client(self.target, api_key) as client:
            self.model = await client.find_model()
            ruler = await self._warmed_up(client)
            questions = make_questions(self.texts, self.load.num_requests, ruler)
            self.status(f"sending {len(questions)} requests")
            count = _Count(len(questions), self.status)
            used, began = time.process_time(), time.perf_counter()
            records = await drive(self.load, questions, client.ask, seed=self.texts.seed, finished=count)
            share = (time.process_time() - used) / (time.perf_counter() - began)
        self.status.clear()
        figures = figures_of(records, limits_of(self.load.slo))
        return records, figures | {"client_cpu_percent": 100 * share}

    async def _warmed_up(self, client: "Client") -> "Ruler":
        from cli.traffic.arrivals import drive
        from cli.traffic.texts import Ruler, probes

        questions = probes(self.texts, self.load.warmup)
        if not questions:
            return Ruler()
        self.status("warming up")
        records = await drive(Load(concurrency=1), questions, client.ask, seed=0)
        if failed := next((record for record in records if record.error is not None), None):
            raise CommandError(
                f"the warm-up's request to {self.target.root} failed: {failed.error}: {failed.detail}"
            )
        return Ruler.of(
            [
                (len(question.prompt), record.num_prompt)
                for question, record in zip(questions, records, strict=True)
                if record.num_prompt is not None
            ]
        )


class _Count:
    """Says how many requests have ended."""

    def __init__(self, total: int, status: Status) -> None:
        self._total, self._status = total, status
        self._ended = self._failed = 0
        self._said_at = 0.0

    def __call__(self, record: "Record") -> None:
        self._ended += 1
        self._failed += record.error is not None
        if (now := time.monotonic()) - self._said_at > 0.2:
            self._said_at = now
            self._status.update(f"{self._ended} of {self._total} requests have ended, {self._failed} failed")


def _report(
    run: _Run, records: "list[Record]", figures: dict[str, Any], json: Path | None, plot: Path | None
) -> None:
    title = f"{run.model} at {run.target.root} ({run.target.api}), {_rhythm(run.load)}"
    if plot is not None:
        from cli.traffic.plot import save_plot

        save_plot(records, limits_of(run.load.slo), title, plot)
    if json is not None:
        settings = {**asdict(run.target), **asdict(run.load), **asdict(run.texts), "model": run.model}
        requests = [record.as_dict() for record in records]
        write_json({"settings": settings, **figures, "requests_sent": requests}, json)
        if str(json) == "-":
            return
    from cli.report import write_figures

    write_figures(title, figures)
    for kind, count in figures["errors"].items():
        example = next(record.detail for record in records if record.error == kind)
        write(f"{count} failed: {kind}: {example}\n")


def _rhythm(load: Load) -> str:
    if load.request_rate is None:
        return f"{load.at_once} at once"
    most = "" if load.at_once is None else f", at most {load.at_once} at once"
    return f"{load.request_rate:g} requests per second{most}"
