"""`llm platforms`: what hardware can be used here, and what was chosen from it for a model."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import engine as engines
from cli.help import SectionedCommand, command_tree
from cli.options import Given, takes
from cli.tables import ENGINE
from cli.terminal import Status, write_json, write_table
from core.contracts.versions import text

if TYPE_CHECKING:
    from core.discovery import FoundPlatform, Plugins

app = command_tree(help="Every platform package, and whether it can run here.", invoke_without_command=True)


@app.callback()
def _list(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Every platform package with its state and the reason; plugins that failed to load follow."""
    if context.invoked_subcommand is not None:
        return
    from core.discovery import load_plugins

    plugins = load_plugins()
    if json:
        write_json(as_dict(plugins))
        return
    columns = ("platform", "state", "reason", "what it is", "contract", "distribution")
    write_table("Platforms", columns, [_row(found) for found in plugins.platforms])
    if plugins.failures:
        write_table(
            "Plugins that failed to load", ("plugin", "reason"), [_failure(f) for f in plugins.failures]
        )


@app.command(cls=SectionedCommand)
@takes(ENGINE)
def explain(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No status on standard error.")] = False,
    *,
    engine: Given,
) -> None:
    """Who serves each part of a model, and why not others.

    The model is loaded, so that what is shown is what would run.
    """
    config = engines.engine_config(engine)
    with engines.opened(config, Status(quiet=quiet)) as llm:
        info, choices = llm.info, llm.ledger.as_dicts()
    if json:
        facts = {"model": info.model, "platform": info.platform, "device": info.device, "dtype": info.dtype}
        write_json({**facts, "choices": choices})
        return
    title = f"{info.model} on {info.platform} ({info.device}), {info.dtype}"
    write_table(title, ("part", "served by", "detail", "rejected"), [_choice(choice) for choice in choices])


def as_dict(plugins: "Plugins") -> dict[str, Any]:
    """Platforms and failures as plain data."""
    return {
        "platforms": [
            {
                "name": found.name,
                "available": found.probe.available,
                "reason": found.probe.reason,
                "error": found.error,
                "devices": [device.name for device in found.probe.devices],
                "device_type": found.device_type,
                "contract": list(found.contract),
                "distribution": found.distribution,
                "summary": found.summary,
            }
            for found in plugins.platforms
        ],
        "failures": [{"plugin": failure.plugin, "reason": failure.reason} for failure in plugins.failures],
    }


def _row(found: "FoundPlatform") -> tuple[str, ...]:
    contract = text(found.contract)
    return found.name, found.state, found.probe.reason, found.summary, contract, found.distribution


def _failure(failure: Any) -> tuple[str, str]:
    return failure.plugin, failure.reason


def _choice(choice: dict[str, Any]) -> tuple[str, ...]:
    rejected = "\n".join(f"{entry['provider']}: {entry['reason']}" for entry in choice["rejected"])
    return choice["what"], choice["provider"], choice["detail"], rejected
