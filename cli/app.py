"""The command tree. Importing it imports typer and every command's options, and nothing that computes."""

from typing import Annotated

import typer

from cli import bench, kernels, platforms, plugin
from cli.chat import chat
from cli.conformance import conformance
from cli.doctor import doctor
from cli.environment import collect_env
from cli.generate import generate
from cli.help import SectionedCommand, command_tree
from cli.models import models
from cli.run_batch import run_batch
from cli.serve import serve
from core import __version__

app = command_tree()
app.command(cls=SectionedCommand)(generate)
app.command(cls=SectionedCommand)(chat)
app.command(cls=SectionedCommand)(serve)
app.command("run-batch", cls=SectionedCommand)(run_batch)
app.add_typer(bench.app, name="bench")
app.add_typer(platforms.app, name="platforms")
app.add_typer(kernels.app, name="kernels")
app.add_typer(plugin.app, name="plugin")
app.command()(models)
app.command()(conformance)
app.command(cls=SectionedCommand)(doctor)
app.command("collect-env")(collect_env)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"llm {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=True)
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and leave."),
    ] = False,
) -> None:
    """An LLM inference and serving engine whose hardware is a plugin."""
