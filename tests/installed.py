"""Packages of the tests, installed as a user would install them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def environment_with(source: Path, folder: Path) -> dict[str, str]:
    """The environment of a process that has this package installed, in `folder`."""
    shutil.copytree(source, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    target = folder / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", *install, "--target", str(target), str(folder / "source")],
        check=True,
        capture_output=True,
        timeout=120,
    )
    path = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}
