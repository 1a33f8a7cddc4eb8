"""`llm kernels`: the C++ kernels, compiled before they are needed: in an image, or while nobody waits."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failures import CommandError, UsageError
from cli.help import command_tree
from cli.options import takes
from cli.terminal import Status, write, write_json

if TYPE_CHECKING:
    from core.native.toolchain import NativeBuild

app = command_tree(help="Kernels in C++ that are compiled on this machine.", no_args_is_help=True)


@app.callback()
def _kernels() -> None:
    """Keeps `build` a command of its own."""


@app.command()
@takes()
def build(
    isa: Annotated[
        str | None,
        typer.Option(help="Level of the instruction set, or all. [default: the one that runs here]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No status on standard error.")] = False,
) -> None:
    """Compile the kernels of every platform that can run here, and print where they are kept."""
    from core.native.toolchain import compiled

    status, built = Status(quiet=quiet), list[dict[str, str | float]]()
    for platform, level, native in _wanted(isa):
        status(f"compiling {level} for {platform}")
        started = time.perf_counter()
        path = compiled(native)
        status.clear()
        seconds = round(time.perf_counter() - started, 1)
        built.append({"platform": platform, "isa": level, "seconds": seconds, "path": str(path)})
        if not json:
            write(f"{platform}  {level}  {seconds:.1f} s  {path}\n")
    if json:
        write_json(built)


def _wanted(isa: str | None) -> "list[tuple[str, str, NativeBuild]]":
    """(platform, level, build). Raises UsageError for a level that no platform here has."""
    from core.discovery import load_plugins

    usable = [f.platform for f in load_plugins().platforms if f.probe.available and f.platform]
    offered = {platform.name: platform.native_builds() for platform in usable}
    offered = {name: builds for name, builds in offered.items() if builds}
    if not offered:
        raise CommandError("no platform that can run here has kernels to compile; see  llm platforms")
    chosen = [
        (name, level, native)
        for name, builds in offered.items()
        for place, (level, native) in enumerate(builds.items())
        if isa in (level, "all") or (isa is None and place == 0)
    ]
    if not chosen:
        known = dict.fromkeys(level for builds in offered.values() for level in builds)
        raise UsageError(f"--isa is {isa!r}; {', '.join(known)} or all are accepted on this machine")
    return chosen
