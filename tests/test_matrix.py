"""The support matrix says what was run, where, and what has changed since; what nobody ran says so."""

import importlib.util
import json
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from core.conformance import Result
from core.conformance.certificate import BadCertificate, Certificate, certify, read, write
from core.conformance.levels import LEVELS
from core.discovery import Plugins, collect
from core.hookspecs import GROUP

ROOT = Path(__file__).resolve().parent.parent

Keep = Callable[..., Certificate]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "docs" / "matrix.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    """What pyproject.toml declares, whatever is installed here."""
    return collect(EntryPoint(name, module, GROUP) for name, module in declared().items())


def declared() -> dict[str, str]:
    """Our platforms' entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules: dict[str, str] = project["entry-points"][GROUP]
    return {name: module for name, module in modules.items() if module.startswith("platforms.")}


def results(level: str, passed: int = 0, wrong: int = 0, unsupported: int = 0) -> list[Result]:
    made = [Result(level=level, subject="linear", case=f"good {i}") for i in range(passed)]
    made += [Result(level=level, subject="linear", case=f"bad {i}", problem="off") for i in range(wrong)]
    return made + [
        Result(level=level, subject="linear", case=f"other {i}", unsupported="no") for i in range(unsupported)
    ]


@pytest.fixture
def keep(tmp_path: Path, plugins: Plugins) -> Keep:
    """keep("file", level=results, ...): a certificate of the simulated platform among those that are kept."""

    def keep(
        name: str = "simulated", changes: dict[str, Any] | None = None, **levels: list[Result]
    ) -> Certificate:
        platform = next(each for each in plugins.platforms if each.name == "simulated")
        assert platform.platform is not None
        made = certify(
            platform.platform,
            platform.probe.devices[0],
            {level: (1.0, found) for level, found in levels.items()},
            distribution="core",
        )
        made = msgspec.structs.replace(made, **(changes or {}))
        write(made, tmp_path / f"{name}.json")
        return made

    return keep


def table(text: str, number: int = 0) -> list[dict[str, str]]:
    """The rows of one of a page's tables, each by its head."""
    lines = text.split("\n\n")[number].strip().splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_every_platform_that_is_declared_has_a_row_and_what_nobody_ran_says_so(
    page: ModuleType, plugins: Plugins, tmp_path: Path
) -> None:
    rows = table(page.matrix_levels(plugins, tmp_path))

    assert [row["platform"].strip("`") for row in rows] == [each.name for each in plugins.platforms]
    assert {each.name for each in plugins.platforms} == {*declared()}
    for row in rows:
        assert {row[level] for level in LEVELS} == {"not run"}
    assert {row["checks"] for row in table(page.matrix(plugins, tmp_path))} == {"not run"}


def test_each_level_says_what_passed_what_is_wrong_and_what_is_not_supported(
    page: ModuleType, plugins: Plugins, keep: Keep, tmp_path: Path
) -> None:
    keep(ops=results("ops", 1200, 0, 3), attention=results("attention", 5, 2), memory=[])

    (row,) = (row for row in table(page.matrix_levels(plugins, tmp_path)) if row["platform"] == "`simulated`")
    assert row["ops"] == "1,200 passed, 3 not supported"
    assert row["attention"] == "**2 wrong**, 5 passed"
    assert row["memory"] == row["engine"] == "not run"
    (short,) = (row for row in table(page.matrix(plugins, tmp_path)) if row["platform"] == "`simulated`")
    assert short["checks"] == f"**2 wrong**, 1,205 passed, 3 not supported; 2 of {len(LEVELS)} levels"
    assert short["chosen"] == "only when named"


def test_a_run_says_where_when_with_what_and_who_stands_for_it(
    page: ModuleType, plugins: Plugins, keep: Keep, tmp_path: Path
) -> None:
    made = keep(ops=results("ops", 1), changes={"signed_off_by": "A. Name", "quick": True})

    (run,) = table(page.matrix_levels(plugins, tmp_path), 1)
    assert run["ran on"] == f"simulated accelerator, {made.date[:10]}, the quick part"
    assert f"torch {made.machine['torch']}" in run["with"]
    assert run["its own code"] == str(made.lines)
    assert (run["signed off by"], run["changed since"]) == ("A. Name", "nothing")


def test_what_has_changed_since_a_run_stands_beside_it(
    page: ModuleType, plugins: Plugins, keep: Keep, tmp_path: Path
) -> None:
    keep(ops=results("ops", 1))
    for changes, expected in (
        ({"contracts": {"platform": "1.0"}}, "the platform contract, 1.0 then and "),
        ({"core": "0.0.1"}, "the core, 0.0.1 then and "),
        ({"core_sources_sha256": "0" * 64}, "the core's own code"),
        ({"sources_sha256": "0" * 64}, "the platform's own code"),
    ):
        before = page.matrix_levels(plugins, tmp_path)
        keep(ops=results("ops", 1), changes=changes)
        (run,) = table(page.matrix_levels(plugins, tmp_path), 1)
        assert run["changed since"].startswith(expected)
        assert page.matrix_levels(plugins, tmp_path) != before


def test_two_devices_are_two_rows_and_a_strangers_platform_comes_last(
    page: ModuleType, plugins: Plugins, keep: Keep, tmp_path: Path
) -> None:
    keep("simulated-a", ops=results("ops", 1), changes={"device": "board A"})
    keep("simulated-b", ops=results("ops", 2), changes={"device": "board B"})
    keep("alien", ops=results("ops", 3), changes={"platform": "alien"})

    rows = [(row["platform"], row["checks"]) for row in table(page.matrix(plugins, tmp_path))]
    all_levels = len(LEVELS)
    assert [row for row in rows if row[1] != "not run"] == [
        ("`simulated`", f"1 passed; 1 of {all_levels} levels"),
        ("`simulated`", f"2 passed; 1 of {all_levels} levels"),
        ("`alien`", f"3 passed; 1 of {all_levels} levels"),
    ]
    assert rows[-1][0] == "`alien`"


def test_a_certificate_that_was_edited_stops_the_page(
    page: ModuleType, plugins: Plugins, keep: Keep, tmp_path: Path
) -> None:
    keep(ops=results("ops", 1, 1))
    path = tmp_path / "simulated.json"
    stored = json.loads(path.read_text())
    stored["levels"]["ops"] |= {"passed": 2, "wrong": 0}
    path.write_text(json.dumps(stored))

    with pytest.raises(BadCertificate, match="changed after it was written"):
        page.matrix(plugins, tmp_path)


def test_the_certificates_that_are_kept_are_whole_and_named_after_their_platforms(page: ModuleType) -> None:
    kept = sorted(page.CERTIFICATES.glob("*.json"))
    assert kept
    for path in kept:
        found = read(path)
        assert path.stem.partition("-")[0] == found.platform
        assert found.checks > 0
