"""`llm doctor`: what of this machine is used, what is missing, what that costs, and what to do about it.

One finding a line; the files doctor_*.py make them. With a "problem" among them the command leaves with 1.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli import engine as engines
from cli.doctor_finding import Finding
from cli.failures import FAILED
from cli.options import Given, takes
from cli.tables import ENGINE
from cli.terminal import Status, write, write_json

if TYPE_CHECKING:
    from core.config import EngineConfig


@takes(ENGINE)
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No status on standard error.")] = False,
    *,
    engine: Given,
) -> None:
    """What of this machine is used, what is missing, and what that costs. Leaves with 1 on a problem.

    With --model, also how that model would fill the memory, and what each kernel that no platform brings takes
    of its steps. For that the model is loaded and run, as the other engine options say.
    """
    config, status = engines.engine_config(engine), Status(quiet=quiet)
    findings: list[Finding] = []
    for finding in examine(config, engine, status):
        findings.append(finding)
        if not json:
            status.clear()
            write(finding.line())
    status.clear()
    if json:
        write_json([asdict(finding) for finding in findings])
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(FAILED)


def examine(config: "EngineConfig", given: Given, status: Status) -> Iterator[Finding]:
    """Every finding: the machine, the plugins, and the model when one is given."""
    from cli.doctor_machine import machine
    from cli.doctor_plugins import plugins
    from core.discovery import load_plugins

    found = load_plugins()
    yield from machine(found)
    yield from plugins(found, config.platform)
    if "model" in given:
        from cli.doctor_model import model

        yield from model(config, found, status)
    elif unused := [name for name in given if name != "platform"]:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        yield Finding("options", "note", f"{named}: of no meaning without a model", "name one with --model")
