"""What a user gets from `pip install`: the wheel's contents, its commands, and that it runs by itself."""

import os
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

import core

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {".py", ".cpp", ".h", ".txt", ".json", ".html", ".css", ".js", ".svg"}
PACKAGES = {"core", "platforms", "plugins", "models", "server", "cli"}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
METADATA = f"core-{core.__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built here with the build backend alone: no network, no isolated environment."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.iterdir()
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def run(installed: Path, statement: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-c", statement]
    result = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def metadata(wheel: zipfile.ZipFile) -> Message:
    return message_from_string(wheel.read(f"{METADATA}/METADATA").decode())


def test_the_wheel_installs_these_names_and_no_other(wheel: zipfile.ZipFile) -> None:
    assert {name.partition("/")[0] for name in wheel.namelist()} == PACKAGES | {METADATA}


def test_the_wheel_holds_every_module_kernel_source_and_page_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    expected = {str(p.relative_to(ROOT)) for p in files if p.suffix in SHIPPED}
    shipped = {name for name in wheel.namelist() if not name.startswith(METADATA)}
    assert shipped == expected


def test_every_folder_of_modules_is_a_package(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    folders = {name.rpartition("/")[0] for name in names if name.endswith(".py")}
    assert {folder for folder in folders if f"{folder}/__init__.py" not in names} == set()


def test_the_licence_is_inside(wheel: zipfile.ZipFile) -> None:
    assert wheel.read(f"{METADATA}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata(wheel)["License-Expression"] == "Apache-2.0"


def test_name_version_and_requirements_are_those_of_the_project(wheel: zipfile.ZipFile) -> None:
    found = metadata(wheel)
    assert (found["Name"], found["Version"]) == ("core", PROJECT["version"])
    assert PROJECT["version"] == core.__version__
    required = [text for text in found.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert len(required) == len(PROJECT["dependencies"])
    assert any(text.startswith("torch<2.14,>=2.11") for text in required)  # lets pip take the CPU build


def test_the_command_and_the_plugins_are_declared(wheel: zipfile.ZipFile) -> None:
    declared = ConfigParser()
    declared.optionxform = str  # type: ignore[assignment,method-assign]
    declared.read_string(wheel.read(f"{METADATA}/entry_points.txt").decode())
    assert dict(declared["console_scripts"]) == {"llm": "cli.main:main"}
    assert dict(declared["core.plugins"]) == PROJECT["entry-points"]["core.plugins"]


def test_the_command_of_the_wheel_runs_without_the_repository(installed: Path, tmp_path: Path) -> None:
    statement = (
        "import sys; from importlib.metadata import entry_points; sys.argv = ['llm', '--version']; "
        "(script,) = entry_points(group='console_scripts', name='llm'); script.load()()"
    )
    assert run(installed, statement, tmp_path).strip() == f"llm {core.__version__}"


def test_the_wheel_finds_its_own_plugins(installed: Path, tmp_path: Path) -> None:
    statement = (
        "from core.discovery import load_plugins; import core, models; found = load_plugins(); "
        "print(core.__file__, models.__file__, *(p.name for p in found.platforms), *found.failures, sep='\\n')"
    )
    where, models, *names = run(installed, statement, tmp_path).split()
    assert Path(where).parent.parent == Path(models).parent.parent == installed
    assert {"cpu", "simulated"} <= set(names)
