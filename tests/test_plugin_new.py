"""`llm plugin new` writes a package that works as it is: installed as a user would, and with tests of its own."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cli.plugin import app
from core import hookspecs
from core.conformance.levels import LEVELS
from core.contracts.versions import VERSIONS
from core.discovery import Plugins, collect
from core.errors import ConfigError
from core.plugin_kit.check import check
from core.plugin_kit.new import KINDS, plan, write_package

NAMES = {
    "platform": "Acme-Board.platform",
    "model": "acme-model",
    "source": "Shelf_of_Acme",
    "quantization": "acme-rows-quantization",
    "telemetry": "acme-journal",
}
ENABLING = '# "rms_norm": Implementation'


def made(folder: Path, kind: str, name: str | None = None, version: str | None = None) -> Path:
    write_package(plan(name or NAMES[kind], kind, version), folder)
    return folder


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


Collected = Callable[[Path], Plugins]


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collected]:
    """collected(folder): what the package brings, found through the entry points that it declares."""
    before = set(sys.modules)

    def collected(folder: Path) -> Plugins:
        monkeypatch.syspath_prepend(str(folder))
        points = project(folder)["entry-points"][hookspecs.GROUP]
        return collect([EntryPoint(name, value, hookspecs.GROUP) for name, value in points.items()])

    yield collected
    for name in set(sys.modules) - before:
        if name.startswith(("acme", "shelf")):
            del sys.modules[name]


def run(
    folder: Path, *command: str, path: str = "", timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    listed = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": listed},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of every kind, "a platform" and so on, all of them installed in "a site"."""
    home = tmp_path_factory.mktemp("a home")
    packages = [str(made(home / f"a {kind}", kind)) for kind in KINDS]
    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = run(home, "-m", "pip", "install", *quiet, "--target", str(home / "a site"), *packages)
    assert done.returncode == 0, done.stderr
    return home


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_its_files_parse_and_hold_no_placeholder(self, kind: str, tmp_path: Path) -> None:
        folder = made(tmp_path, kind)
        written = [path for path in folder.rglob("*") if path.is_file()]
        assert {"pyproject.toml", "README.md", ".gitignore", "ci.yml", "__init__.py", "conftest.py"} <= {
            path.name for path in written
        }
        for path in written:
            text = path.read_text()
            # What is left to the continuous integration and its shell is ${{ … }} and ${ENGINE…}.
            assert re.search(r"\$\{?[a-z]|PACKAGE", text) is None, path
            assert text.endswith("\n") and not text.endswith("\n\n"), path
            if path.suffix == ".py":
                assert ast.get_docstring(ast.parse(text)), path

    def test_the_check_finds_nothing_in_it(self, kind: str, tmp_path: Path) -> None:
        report = check(made(tmp_path, kind))
        assert [str(finding) for finding in report.findings] == []
        assert kind in report.against
        assert report.files >= 4

    def test_it_states_the_contract_of_this_engine_and_is_found_by_it(
        self, kind: str, tmp_path: Path, collected: Collected
    ) -> None:
        plugins = collected(made(tmp_path, kind))
        assert plugins.failures == ()
        if kind == "platform":
            (found,) = plugins.platforms
            assert (found.name, found.state, found.contract) == ("acme-board", "available", VERSIONS[kind])
            assert plugins.select_platform("acme-board")[1].name == "acme-board"
        elif kind == "model":
            (architecture,) = plugins.architectures.values()
            assert (architecture.name, architecture.contract) == ("AcmeForCausalLM", VERSIONS[kind])
        elif kind == "quantization":
            (quantization,) = plugins.quantizations.values()
            assert (quantization.name, quantization.contract) == ("acme-rows", VERSIONS[kind])
        elif kind == "telemetry":
            (telemetry,) = plugins.telemetry.values()
            assert (telemetry.name, telemetry.contract) == ("acme-journal", VERSIONS[kind])
        else:
            (source,) = plugins.sources.values()
            assert (source.scheme, source.contract) == ("shelf-of-acme", VERSIONS[kind])

    def test_loading_it_loads_no_torch(self, kind: str, tmp_path: Path) -> None:
        folder = made(tmp_path, kind)
        module = project(folder)["entry-points"][hookspecs.GROUP].popitem()[1]
        done = run(folder, "-c", f"import sys, {module}; print('torch' in sys.modules)", path=str(folder))
        assert (done.stdout.strip(), done.stderr) == ("False", "")

    def test_installed_its_own_tests_pass(self, kind: str, installed: Path) -> None:
        command = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
        done = run(installed / f"a {kind}", *command, path=str(installed / "a site"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout
        if kind == "platform":
            count = re.search(r"^(\d+) checks of the level ops$", done.stdout, re.MULTILINE)
            assert count is not None and int(count[1]) > 50


def conformance(installed: Path, *options: str, timeout: float) -> dict[str, Any]:
    """Per level, what `llm conformance` says of the platform that was written."""
    command = ("-m", "cli", "conformance", "--platform", "acme-board", "--json", "--quiet", *options)
    done = run(installed, *command, path=str(installed / "a site"), timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["levels"]


def test_a_platform_passes_the_kit_as_it_was_written(installed: Path) -> None:
    asked = ("attention", "memory", "engine")  # level ops is among its own tests
    levels = conformance(installed, "--quick", *(f"--level={name}" for name in asked), timeout=120)
    assert [*levels] == [*asked]
    assert all(found["passed"] > 10 and found["wrong"] == 0 for found in levels.values())


@pytest.mark.slow
def test_a_platform_passes_every_level_whole(installed: Path) -> None:
    levels = conformance(installed, *(f"--level={name}" for name in LEVELS), timeout=500)
    assert [*levels] == [*LEVELS]
    assert all(found["passed"] and found["wrong"] == 0 for found in levels.values())


def test_its_continuous_integration_says_what_it_lacks(tmp_path: Path) -> None:
    workflow = made(tmp_path, "platform") / ".github" / "workflows" / "ci.yml"
    steps = [
        step["run"] for step in yaml.safe_load(workflow.read_text())["jobs"]["test"]["steps"] if "run" in step
    ]
    assert steps[2:] == [
        "llm plugin check .",
        "python -m pytest",
        "llm conformance --platform acme-board --quick",
    ]
    shell = ["bash", "-ec", steps[0]]
    done = subprocess.run(shell, env={}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "ENGINE: set this variable of the repository to what pip should install" in done.stderr


def test_not_installed_its_tests_say_how(tmp_path: Path) -> None:
    folder = made(tmp_path, "source")
    done = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 4
    assert 'is not installed; run  pip install -e ".[test]"' in done.stdout + done.stderr


class TestPlatform:
    def test_its_first_kernel_serves_once_its_line_is_uncommented(
        self, tmp_path: Path, collected: Collected
    ) -> None:
        from core.execution.dispatch import resolve_kernels
        from core.ledger import Ledger

        def provider(folder: Path) -> str:
            platform, device = collected(folder).select_platform("acme-board")
            ledger = Ledger()
            resolve_kernels(platform, device, "float32", ledger)
            return next(choice.provider for choice in ledger.choices if choice.what == "rms_norm")

        folder = made(tmp_path, "platform")
        kernels = folder / "acme_board_platform" / "kernels.py"
        assert kernels.read_text().count(ENABLING) == 1
        assert provider(folder) == "reference"
        kernels.write_text(kernels.read_text().replace(ENABLING, ENABLING.removeprefix("# ")))
        for name in [name for name in sys.modules if name.startswith("acme_board_platform")]:
            del sys.modules[name]
        for stale in folder.rglob("*.pyc"):
            stale.unlink()
        assert provider(folder) == "acme-board"
        assert check(folder).findings == ()

    def test_one_for_the_version_before_is_taken_too(self, tmp_path: Path, collected: Collected) -> None:
        folder = made(tmp_path, "platform", version="1.0")
        (found,) = collected(folder).platforms
        assert (found.state, found.contract) == ("available", (1, 0))
        assert check(folder).findings == check(folder, "1.0").findings == ()

    def test_a_version_that_does_not_exist_is_refused_with_those_that_do(self) -> None:
        with pytest.raises(
            ConfigError, match=r"'3\.7' does not exist; of the platform contract there are 1\.0"
        ):
            plan("acme", "platform", "3.7")
        with pytest.raises(ConfigError, match=r"of the source contract there is 1\.0"):
            plan("acme", "source", "2.0")


class TestNames:
    def test_everything_is_derived_from_one(self) -> None:
        names = plan("Acme.Board_platform", "platform").names
        assert (names.distribution, names.package) == ("acme-board-platform", "acme_board_platform")
        assert (names.short, names.title, names.constant) == ("acme-board", "AcmeBoard", "ACME_BOARD")
        assert plan("acme", "platform").names.short == "acme"

    BAD = {
        "": "cannot name a package",
        "-acme": "cannot name a package",
        "acme_": "cannot name a package",
        "acme board": "cannot name a package",
        "acme/board": "cannot name a package",
        "../acme": "cannot name a package",
        "acmé": "cannot name a package",
        "acme\n": "cannot name a package",
        "a" * 61: "up to 60 letters",
        "3d-board": "imported as 3d_board, which Python cannot; begin with a letter",
        "class": "a keyword of Python",
        "core": "core is taken, by this engine",
        "Platforms": "platforms is taken, by this engine",
        "cpu": "cpu is taken, by this engine",
        "auto": "auto is taken, by this engine",
        "simulated-platform": "simulated is taken, by this engine",
        "json": "json is taken, by Python",
        "torch": "torch is taken, by the installed package torch",
        "tests": "tests is taken",
    }

    @pytest.mark.parametrize("name", BAD)
    def test_one_that_cannot_be_is_refused_in_words(self, name: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(self.BAD[name])):
            plan(name, "platform")

    def test_what_our_models_sources_and_quantizations_are_called_is_taken_for_those(self) -> None:
        with pytest.raises(ConfigError, match="wheel is taken"):
            plan("wheel-source", "source")
        with pytest.raises(ConfigError, match="Qwen3ForCausalLM is taken"):
            plan("qwen3-model", "model")
        with pytest.raises(ConfigError, match="gptq is taken"):
            plan("gptq-quantization", "quantization")

    def test_what_another_installed_plugin_is_called_is_taken_and_its_own_name_is_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        metadata = tmp_path / "acme_platform-0.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-platform\nVersion: 0.1.0\n")
        (metadata / "RECORD").write_text("acme_platform/__init__.py,,\n")
        (metadata / "entry_points.txt").write_text("[core.plugins]\nacme = acme_platform\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert plan("acme-platform", "platform").names.short == "acme"
        with pytest.raises(ConfigError, match="acme is taken, by the installed plugin acme-platform"):
            plan("acme", "platform")

    @pytest.mark.parametrize("kind", ["sampler", "", "alias"])
    def test_a_kind_without_a_hook_is_refused_with_those_that_have_one(self, kind: str) -> None:
        with pytest.raises(ConfigError) as refused:
            plan("acme", kind)
        assert repr(kind) in str(refused.value)
        for known in KINDS.values():
            assert f"{known.name} ({known.hook})" in str(refused.value)

    @pytest.mark.parametrize("kind", ["Platform", "platfrom"])
    def test_a_kind_that_is_misspelt_is_told_the_right_one(self, kind: str) -> None:
        with pytest.raises(ConfigError, match=f"'{kind}' is no kind of plugin; did you mean platform?"):
            plan("acme", kind)

    def test_there_is_a_kind_for_every_hook_that_asks_for_code(self) -> None:
        hooks = {name for name in vars(hookspecs) if name.startswith("core_")}
        assert {kind.hook for kind in KINDS.values()} == hooks - {
            "core_model_aliases",
            "core_model_fallbacks",
        }
        assert KINDS.keys() == VERSIONS.keys()


class TestFolder:
    def test_an_empty_one_is_filled_and_a_new_one_is_made(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for folder in (tmp_path / "empty", tmp_path / "new" / "deep"):
            assert (made(folder, "source") / "shelf_of_acme" / "source.py").is_file()

    def test_one_that_holds_something_is_left_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(ConfigError, match="is not empty"):
            made(tmp_path, "source")
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_file_and_a_link_to_nothing_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ConfigError, match="is a file"):
            made(tmp_path / "file", "source")
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(ConfigError, match="link to nothing"):
            made(tmp_path / "link", "source")


class TestCommand:
    def run(self, *arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["new", *map(str, arguments)])
        return result.exit_code, result.stdout, result.stderr

    def test_it_says_what_it_wrote_and_what_comes_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, out, _ = self.run("acme-model", "--kind", "model")
        assert code == 0
        assert "acme-model, a model plugin for model contract 1.0, in acme-model:" in out
        for path in ("acme_model/family.py", ".github/workflows/ci.yml"):
            assert f"  {path}\n" in out
            assert (tmp_path / "acme-model" / path).is_file()
        assert 'cd acme-model && pip install -e ".[test]" && pytest' in out

    def test_the_next_step_can_be_pasted_wherever_the_folder_is(self, tmp_path: Path) -> None:
        code, out, _ = self.run("acme", "--kind", "source", "--folder", tmp_path / "my source")
        assert code == 0
        assert f"cd '{tmp_path / 'my source'}' && pip install" in out

    def test_what_is_wrong_with_the_command_line_is_named_by_option(self, tmp_path: Path) -> None:
        folder = ("--folder", tmp_path)
        code, _, err = self.run("acme", "--kind", "sampler", *folder)
        assert (code, err.partition(" is no kind")[0]) == (2, "error: --kind: 'sampler'")
        code, _, err = self.run("acme", "--kind", "model", "--contract-version", "8.0", *folder)
        assert (code, err.partition(" does not")[0]) == (2, "error: --contract-version: version '8.0'")
        assert self.run("class", "--kind", "model", *folder)[0] == 2
        assert [*tmp_path.iterdir()] == []

    def test_a_folder_that_is_in_use_cannot_be_helped(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        code, _, err = self.run("acme", "--kind", "model", "--folder", tmp_path)
        assert code == 1
        assert "is not empty" in err
