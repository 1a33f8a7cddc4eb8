"""The kit in a vendor's own test run, and that nobody else's run notices it."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KIT = ("--pyargs", "core.conformance")
ENGINE = ("--platform", "simulated", "--conformance-level", "engine", "--conformance-quick", *KIT)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pytest_run(tmp_path: Path) -> Run:
    """pytest_run("--platform", "cpu", VARIABLE="x"): pytest in an empty project, where the plugin is installed."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    installed = entry_points(group="pytest11", name="core-conformance")
    plugin = () if installed else ("-p", "core.conformance.pytest_plugin")

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:asyncio",
                "-ra",
                *plugin,
                *arguments,
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_each_subject_of_a_level_is_a_test(pytest_run: Run) -> None:
    done = pytest_run("-v", *ENGINE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "simulated: engine: answers of tiny models " in done.stdout
    for name in ("engine-greedy-float32", "engine-preemption-float32", "engine-steps-float32"):
        assert f"test_platform[{name}] PASSED" in done.stdout
    assert "test_platform[engine-weights-float32] SKIPPED" in done.stdout
    assert "int8 is not among its weight_formats" in done.stdout


def test_what_is_wrong_is_the_text_of_the_failure(pytest_run: Run) -> None:
    done = pytest_run(*ENGINE, LLM_SIMULATED="oom_after=0")
    assert done.returncode == 1
    assert "greedy, as a batch, float32: raised OutOfDeviceMemory: " in done.stdout
    again = "--level engine --dtype float32 --quick --only 'greedy, as a batch'"
    assert f"  llm conformance --platform simulated {again}\n" in done.stdout
    assert "Traceback" not in done.stdout


def test_without_a_platform_it_is_skipped_with_the_reason(pytest_run: Run) -> None:
    done = pytest_run(*KIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no platform was named; add --platform NAME" in done.stdout
    assert "1 skipped" in done.stdout


def test_what_there_is_not_is_named(pytest_run: Run) -> None:
    done = pytest_run("--platform", "cpu", "--conformance-level", "op", *KIT)
    assert done.returncode == 2
    assert "no level is named 'op'; did you mean ops?" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_project_with_an_option_of_that_name_runs_as_before(pytest_run: Run, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--platform', default='theirs')\n"
    )
    (tmp_path / "test_theirs.py").write_text(
        "import sys\n\n"
        "def test_theirs(request):\n"
        "    assert request.config.getoption('--platform') == 'theirs'\n"
        "    assert 'core.conformance.pytest_plugin' in sys.modules\n"
        "    assert not {'torch', 'core.discovery', 'core.config', 'core.contracts'} & set(sys.modules)\n"
    )
    done = pytest_run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
