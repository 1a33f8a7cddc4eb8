"""`llm plugin`: a package to begin a plugin with, and what of a plugin would break with a contract version."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from cli.failures import FAILED, file_errors, refused_values
from cli.help import command_tree
from cli.options import takes
from cli.terminal import write, write_json

app = command_tree(help="Begin a plugin, or check one.", no_args_is_help=True)


@app.command()
@takes()
def new(
    name: Annotated[
        str,
        typer.Argument(help="What the package is to be called, such as acme-platform.", show_default=False),
    ],
    kind: Annotated[
        str,
        typer.Option(
            help="What it brings: platform, model, source, quantization or telemetry.", show_default=False
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where to write it: a folder that is empty, or not there yet. [default: NAME, here]"
        ),
    ] = None,
    contract_version: Annotated[
        str | None,
        typer.Option(help="Contract version that it is written for. [default: this engine's]"),
    ] = None,
) -> None:
    """Write an installable package: a plugin, its tests, a CI file.

    The plugin works and its tests pass as they are.
    """
    from core.plugin_kit.new import plan, write_package

    with refused_values():
        package = plan(name, kind, contract_version)
    home = Path(name) if folder is None else folder
    with file_errors(f"write to {home}"):
        written = write_package(package, home)
    listing = "".join(f"  {path}\n" for path in written)
    write(
        f"{package.distribution}, a {kind} plugin for {kind} contract {package.contract}, in {home}:\n{listing}"
    )
    write(f'\nNext:  cd {quote(str(home))} && pip install -e ".[test]" && pytest\n')


@app.command()
@takes()
def check(
    path: Annotated[
        Path, typer.Argument(help="Folder of a plugin, or one of its files.", show_default=False)
    ],
    against: Annotated[
        str | None,
        typer.Option(help="Contract version to compare with, such as 1.0. [default: this engine's]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compare a plugin's sources with a contract version.

    None of them is run. Leaves with 1 when something would break.
    """
    from core.plugin_kit.check import check as compare
    from core.plugin_kit.versions import versions_against

    with refused_values():
        versions_against(against)
    with file_errors(f"read {path}"):
        report = compare(path, against)
    if json:
        write_json(report.as_dict())
    else:
        write("".join(f"{finding}\n" for finding in report.findings))
        write(f"{report.summary()}\n")
    if report.breaking:
        raise typer.Exit(FAILED)
