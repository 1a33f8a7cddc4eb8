"""The Python files of a plugin, found and parsed. None is imported, and one that cannot be read is a finding."""

import ast
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from core.plugin_kit.findings import Finding


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file.

    path     as it is shown
    module   what Python would import it as, "acme.kernels"
    package  whether it is an __init__.py
    """

    path: str
    module: str
    package: bool
    tree: ast.Module


def read(root: Path) -> tuple[list[Source], list[Finding]]:
    """Every file at or below `root`, and what is wrong with those that cannot be read.

    Raises ConfigError when nothing is there, or no Python file.
    """
    if not root.exists():
        raise ConfigError(f"nothing is at {root}; give the folder of a plugin, or a file of it")
    files = python_files(root)
    if not files:
        raise ConfigError(f"{root} holds no Python file; give the folder of a plugin, or a file of it")
    base = root if root.is_dir() else root.parent
    sources: list[Source] = []
    findings: list[Finding] = []
    for file in files:
        shown = file.relative_to(base).as_posix()
        found = parsed(file, shown)
        if isinstance(found, Source):
            sources.append(found)
        else:
            line, problem = found
            findings.append(Finding(path=shown, line=line, rule="unreadable", message=problem, breaks=True))
    return sources, findings


def python_files(root: Path) -> list[Path]:
    """In order. No link to a folder is followed; hidden folders and virtual environments are left out."""
    if not root.is_dir():
        return [root]
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not _left_out(Path(folder) / name))
        found += [Path(folder) / name for name in sorted(names) if name.endswith(".py")]
    return found


def parsed(file: Path, shown: str) -> Source | tuple[int, str]:
    """A file's source, or the line and what is wrong with it."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return 1, "cannot be read: it is no regular file"
        content = file.read_bytes()
    except OSError as error:
        return 1, f"cannot be read: {(error.strerror or str(error)).lower()}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler has to say of style is the author's affair
            tree = ast.parse(content, filename=shown)
    except SyntaxError as error:
        return max(1, error.lineno or 1), f"cannot be read: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return 1, f"cannot be read: {str(error) or type(error).__name__}"
    return Source(path=shown, module=_module(file), package=file.stem == "__init__", tree=tree)


def _left_out(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name == "__pycache__" or (folder / "pyvenv.cfg").exists()


def _module(file: Path) -> str:
    """Folders that hold an __init__.py are packages; the first one that does not is on Python's path."""
    file = file.absolute()
    parts = [] if file.stem == "__init__" else [file.stem]
    for folder in file.parents:
        if not (folder / "__init__.py").is_file():
            break
        parts.insert(0, folder.name)
    return ".".join(parts)
