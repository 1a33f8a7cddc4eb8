"""Start-up guard for the flat names core, platforms, plugins, models, server and cli.

A user's own `models/` folder or `server.py` that comes first on sys.path would be imported instead of ours
and fail in confusing ways. This looks where Python would find each name, imports none, and says what to do.
"""

from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("core", "platforms", "plugins", "models", "server")
ROOT = Path(__file__).resolve().parent.parent


def shadowing(root: Path = ROOT) -> str | None:
    """What to tell the user when a package of ours is shadowed or missing; None when all is well."""
    lines: list[str] = []
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None:
            lines.append(f"  {name:<10} is missing; expected {root / name}")
            continue
        found = _locations(spec)
        if root / name not in found:
            lines.append(
                f"  {name:<10} comes from {found[0] if found else spec.origin}, not from {root / name}"
            )
    return _message(lines) if lines else None


def _locations(spec: ModuleSpec) -> list[Path]:
    """Folders of a package, or the file of a module."""
    if spec.submodule_search_locations is not None:
        return [Path(place).resolve() for place in spec.submodule_search_locations]
    return [Path(spec.origin).resolve()] if spec.origin else []


def _message(lines: list[str]) -> str:
    listing = "\n".join(lines)
    return (
        f"error: Python finds other modules under the names of llm's own packages.\n{listing}\n"
        "Rename yours, or keep its folder out of PYTHONPATH and start the installed command, `llm`, from an "
        "environment of its own (not `python -m cli` in your folder). If a package is missing, reinstall:  "
        "pip install --force-reinstall core"
    )
