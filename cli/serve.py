"""`llm serve`: the HTTP server in front of an engine."""

from typing import Annotated

import typer

from cli.engine import engine_config
from cli.failures import refused_values
from cli.options import Given, takes
from cli.tables import ENGINE, SERVER
from core.config import DEFAULT_MODEL
from server.settings import ServerSettings


@takes(ENGINE.without("model"), SERVER)
def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="Alias, folder, .gguf file, ORG/NAME, or SCHEME:NAME (wheel:, modelscope:).",
            envvar="LLM_MODEL",
        ),
    ] = DEFAULT_MODEL,
    *,
    engine: Given,
    server: Given,
) -> None:
    """Serve a model over HTTP (OpenAI's API)."""
    config = engine_config({"model": model, **engine})
    with refused_values():
        settings = ServerSettings(**server)
    from server.run import serve as run

    code = run(config, settings)
    if code:
        raise typer.Exit(code)
