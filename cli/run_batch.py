"""`llm run-batch`: a file of requests in, a file of answers out, whatever happens in between."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.engine import engine_config
from cli.failures import FAILED, CommandError, UsageError
from cli.options import Given, takes
from cli.tables import ENGINE
from cli.terminal import Status, write
from core.config import DEFAULT_MODEL, EngineConfig

if TYPE_CHECKING:
    from cli.batch.journal import Journal

MAX_CONCURRENCY = 256


@takes(ENGINE.without("model"))
def run_batch(
    model: Annotated[str, typer.Argument(help=ENGINE.help["model"], envvar="LLM_MODEL")] = DEFAULT_MODEL,
    error_file: Annotated[
        Path | None,
        typer.Option(help="Answers of requests that failed.", show_default="the output file"),
    ] = None,
    max_concurrency: Annotated[
        int, typer.Option(help="Requests under way at once.", min=1)
    ] = MAX_CONCURRENCY,
    served_model_name: Annotated[
        str | None, typer.Option(help="What the requests call the model.", show_default="the model's")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No status on standard error.")] = False,
    *,
    input_file: Annotated[
        Path, typer.Option("--input-file", "-i", help="Requests: OpenAI's batch format, one JSON per line.")
    ],
    output_file: Annotated[
        Path, typer.Option("--output-file", "-o", help="Answers; one that is there already is continued.")
    ],
    engine: Given,
) -> None:
    """Answer a file of requests without a server.

    A run that was ended, however it was, goes on where it stood when the same command is given again: no request is
    lost, and none has two answers. The answers stand in the order in which they were finished. Leaves with 1 when
    any request of the file has failed.
    """
    from cli.batch.requests import custom_ids

    _check_files(input_file, output_file, error_file)
    config = engine_config({"model": model, **engine})
    asked = custom_ids(input_file)
    with _journals(output_file, error_file) as (answers, failures):
        tally = _Tally(len(asked), {**answers.answered, **failures.answered})
        if foreign := next(iter(tally.before.keys() - asked), None):
            raise CommandError(
                f"{output_file} answers custom_id {foreign!r:.80}, which {input_file} does not hold; choose another"
            )
        if len(tally.before) < len(asked):
            run = _Run(config, served_model_name, max_concurrency, Status(quiet=quiet))
            run.answer(input_file, answers, failures, tally)
    write(tally.summary(output_file))
    if tally.failed:
        raise typer.Exit(FAILED)


class _Tally:
    """How many requests have an answer, and how many of them failed."""

    def __init__(self, total: int, before: dict[str, bool]) -> None:
        """before  custom ids that earlier runs have answered, and whether they succeeded"""
        self.total = total
        self.before = before
        self.ended = len(before)
        self.failed = sum(not succeeded for succeeded in before.values())
        self._began = time.monotonic()

    def count(self, succeeded: bool) -> None:
        self.ended += 1
        self.failed += not succeeded

    def summary(self, path: Path) -> str:
        before = f", {len(self.before):,} of them by earlier runs" if self.before else ""
        seconds = time.monotonic() - self._began
        return (
            f"{self.ended - self.failed:,} of {self.total:,} requests succeeded and {self.failed:,} failed"
            f"{before}, in {seconds:.1f} s: {path}\n"
        )


class _Run:
    """The engine and the server's app, for one batch."""

    def __init__(
        self, config: EngineConfig, served_model_name: str | None, max_concurrency: int, status: Status
    ) -> None:
        self._config = config
        self._name = served_model_name
        self._max_concurrency = max_concurrency
        self._status = status

    def answer(self, path: Path, answers: "Journal", failures: "Journal", tally: _Tally) -> None:
        """Answer what has no answer yet. Raises CommandError, and what `AsyncEngine.start` raises."""
        import asyncio

        asyncio.run(self._answer(path, answers, failures, tally))

    async def _answer(self, path: Path, answers: "Journal", failures: "Journal", tally: _Tally) -> None:
        from cli.batch.requests import batch_requests
        from cli.batch.running import Batch
        from core.engine.async_engine import AsyncEngine
        from core.engine.room import Room
        from server.app import create_app
        from server.settings import ServerSettings

        # Nobody else asks: what is under way is bounded by max_concurrency.
        settings = ServerSettings(
            served_model_name=self._name,
            max_queued=10**6,
            max_queued_tokens=10**12,
            max_body_bytes=2**31,
            access_log=False,
            ui=False,
        )
        room = Room(settings.max_queued, settings.max_queued_tokens)
        engine = await AsyncEngine.start(self._config, progress=self._status, room=room)
        try:
            self._status(f"answering {tally.total - tally.ended:,} requests")
            with self._progress(tally) as ended:
                batch = Batch(create_app(engine, settings), lambda: engine.is_alive, answers, failures, ended)
                missing = (r for r in batch_requests(path) if r.custom_id not in tally.before)
                await batch.run(missing, self._max_concurrency)
        finally:
            await engine.close()

    @contextmanager
    def _progress(self, tally: _Tally) -> Iterator[Callable[[bool], None]]:
        """Counts, and shows a bar on a terminal."""
        from tqdm import tqdm

        hidden = True if self._status.quiet else None  # None: unless standard error is a terminal
        with tqdm(total=tally.total, initial=tally.ended, unit=" requests", disable=hidden) as bar:

            def ended(succeeded: bool) -> None:
                tally.count(succeeded)
                bar.set_postfix(failed=tally.failed, refresh=False)
                bar.update()

            self._status.clear()
            yield ended


def _check_files(input_file: Path, output_file: Path, error_file: Path | None) -> None:
    """Raises UsageError when two of them are one."""
    named = {"--input-file": input_file, "--output-file": output_file, "--error-file": error_file}
    seen: dict[Path, str] = {}
    for option, path in named.items():
        if path is not None and (other := seen.setdefault(path.resolve(), option)) != option:
            raise UsageError(f"{other} and {option} are both {path}; each needs a file of its own")


@contextmanager
def _journals(output_file: Path, error_file: Path | None) -> "Iterator[tuple[Journal, Journal]]":
    """For answers, and for answers of requests that failed."""
    from cli.batch.journal import Journal

    with ExitStack() as opened:
        answers = opened.enter_context(Journal(output_file))
        yield answers, answers if error_file is None else opened.enter_context(Journal(error_file))
