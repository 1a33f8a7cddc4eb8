"""A test for each part of a platform that the kit tries, in each dtype; see `pytest_plugin` for how to run them.

What there is to report is known once it was tried, so the levels run while pytest collects. A line says which.
"""

from collections.abc import Iterable, Sequence

import pytest

from core.conformance import Options, Result
from core.conformance.levels import LEVELS, command, named, run
from core.conformance.pytest_plugin import LEVEL, PLATFORM, QUICK
from core.discovery import load_plugins
from core.errors import CoreError


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A parameter for each group of results; a skipped one when no platform was named."""
    config = metafunc.config
    name: str | None = config.getoption(PLATFORM, default=None)
    if name is None:
        reason = f"no platform was named; add {PLATFORM} NAME"
        metafunc.parametrize("results", [pytest.param((), marks=pytest.mark.skip(reason=reason), id="none")])
        return
    try:
        levels = named(config.getoption(LEVEL, default=None) or ())
        platform, device = load_plugins().select_platform(name)
    except CoreError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    found: list[Result] = []
    for level in levels:
        _tell(config, f"{platform.name}: {level}: {LEVELS[level].summary}")
        found += run(platform, device, [level], _options(config))
    groups = grouped(found)
    metafunc.parametrize("results", list(groups.values()), ids=list(groups))


def test_platform(results: Sequence[Result], pytestconfig: pytest.Config) -> None:
    """What is wrong, and how to run it again; skipped where nothing of it is supported."""
    name, options = str(pytestconfig.getoption(PLATFORM)), _options(pytestconfig)
    wrong = [f"{result}\n  {command(name, result, options)}" for result in results if result.problem]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
    if not any(result.passed for result in results):
        pytest.skip("; ".join(dict.fromkeys(result.unsupported for result in results)))


def grouped(results: Iterable[Result]) -> dict[str, tuple[Result, ...]]:
    """Results by level, subject and dtype, under one name for the three."""
    groups: dict[str, tuple[Result, ...]] = {}
    for result in results:
        name = "-".join(filter(None, (result.level, result.subject, result.dtype)))
        groups[name] = (*groups.get(name, ()), result)
    return groups


def _options(config: pytest.Config) -> Options:
    return Options(quick=bool(config.getoption(QUICK, default=False)))


def _tell(config: pytest.Config, line: str) -> None:
    """Past the capture of output, which is on while pytest collects."""
    reporter, capture = map(config.pluginmanager.get_plugin, ("terminalreporter", "capturemanager"))
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.write_line(line)
