"""Our own platforms pass the kit: its quick part in every test run, all of it in the slow ones."""

from collections.abc import Iterator

import pytest
import torch

from core.conformance import Options, Result
from core.conformance.levels import LEVELS, run
from core.discovery import load_plugins

BRIEF = ("ops", "attention", "memory", "engine")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is set for the simulated device, and torch has its threads again afterwards."""
    monkeypatch.delenv("LLM_SIMULATED", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def tried(name: str, levels: tuple[str, ...], options: Options) -> list[Result]:
    """What these levels find, of which nothing may be wrong."""
    platform, device = load_plugins().select_platform(name)
    results = run(platform, device, levels, options)
    assert [str(result) for result in results if result.problem] == []
    assert {result.level for result in results if result.passed} == set(levels)
    return results


@pytest.mark.parametrize("name", ["cpu", "simulated"])
def test_the_quick_part_finds_nothing_wrong(name: str) -> None:
    results = tried(name, BRIEF, Options(quick=True))

    assert len(results) > 300
    engine = {result.name: result for result in results if result.level == "engine"}
    assert engine["preemption, more sequences than the cache holds"].figures["preemptions"] > 0
    assert engine["window, as a batch"].passed


@pytest.mark.slow
@pytest.mark.parametrize("level", [level for level in LEVELS if level not in ("server", "performance")])
@pytest.mark.parametrize("name", ["cpu", "simulated"])
def test_the_whole_of_a_level_finds_nothing_wrong(name: str, level: str) -> None:
    tried(name, (level,), Options())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "simulated"])
def test_their_kernels_are_measured_and_give_numbers(name: str) -> None:
    tried(name, ("performance",), Options(quick=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "simulated"])
def test_a_server_on_them_answers_as_the_reference_does(name: str) -> None:
    results = tried(name, ("server",), Options(quick=True))

    assert {result.subject for result in results} == {"start", "completions", "refusals", "end"}
