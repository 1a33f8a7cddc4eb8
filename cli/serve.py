"""`llm serve`: the HTTP server in front of an engine, or of several."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Given, takes
from cli.tables import ENGINE, SERVER
from core.config import DEFAULT_MODEL


@takes(ENGINE.without("model"), SERVER)
def serve(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"{ENGINE.help['model'][:-1]}; several are separated by spaces.",
            envvar="LLM_MODEL",
            metavar="MODEL",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    default: Annotated[
        str | None,
        typer.Option(
            help="The model of requests that name none.", envvar="LLM_DEFAULT", show_default="the first"
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with any of these options; the command line and the environment go before it.",
            envvar="LLM_CONFIG",
        ),
    ] = None,
    *,
    engine: Given,
    server: Given,
) -> None:
    """Serve models over HTTP (OpenAI's API)."""
    from cli.config_file import read_config

    file = read_config(config)
    engines, settings = file.engines(model or (), engine, default), file.settings(server)
    from server.run import serve as run

    code = run(engines, settings)
    if code:
        raise typer.Exit(code)
