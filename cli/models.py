"""`llm models`: what can be loaded, and what is on this machine already."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import takes
from cli.terminal import write_json, write_table
from core.config import DEFAULT_MODEL, format_bytes

if TYPE_CHECKING:
    from core.discovery import Plugins


@takes()
def models(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """What can be loaded, and what is on this machine."""
    from core.discovery import load_plugins

    found = as_dict(load_plugins())
    if json:
        write_json(found)
        return
    architectures = [
        (a["name"], a["family"], "yes" if a["gguf"] else "no", a["plugin"]) for a in found["architectures"]
    ]
    write_table("Architectures", ("architecture", "family", "GGUF", "plugin"), architectures)
    quantizations = [(q["name"], q["plugin"]) for q in found["quantizations"]]
    write_table("Quantised models", ("quant_method", "plugin"), quantizations)
    aliases = [(_marked(name), target) for name, target in found["aliases"].items()]
    write_table("Short names", ("name", "stands for"), aliases)
    cached = [(m["source"], m["name"], format_bytes(m["size_bytes"]), m["path"]) for m in found["cached"]]
    write_table("On this machine", ("source", "model", "size", "path"), cached)
    if found["failures"]:
        write_table(
            "Sources that could not be asked",
            ("source", "reason"),
            [tuple(f.values()) for f in found["failures"]],
        )


def _marked(alias: str) -> str:
    return f"{alias} (default)" if alias == DEFAULT_MODEL else alias


def as_dict(plugins: "Plugins") -> dict[str, Any]:
    """Architectures, quantizations, aliases and cached models as plain data. One failing source leaves the others."""
    cached: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for scheme, source in plugins.sources.items():
        try:
            models = source.cached()
        except Exception as error:  # a plugin's code: it may raise anything
            failures.append({"source": scheme or "hub", "reason": f"{type(error).__name__}: {error}"})
            continue
        cached += [
            {
                "source": scheme or "hub",
                "name": model.name,
                "path": str(model.path),
                "size_bytes": model.size_bytes,
            }
            for model in models
        ]
    return {
        "architectures": [
            {
                "name": name,
                "family": a.family,
                "gguf": a.gguf is not None,
                "plugin": a.build.__module__.partition(".")[0],
            }
            for name, a in plugins.architectures.items()
        ],
        "quantizations": [
            {"name": name, "plugin": q.read.__module__.partition(".")[0]}
            for name, q in plugins.quantizations.items()
        ],
        "aliases": plugins.aliases,
        "cached": cached,
        "failures": failures,
    }
