"""Contracts have versions: none changes silently, every change is explained, and the version before still works."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from core.conformance.attention import check_attention
from core.conformance.kernels import check_kernels
from core.contracts.changelog import CHANGES, changes_since
from core.contracts.communication import Group
from core.contracts.platform import Device, Platform
from core.contracts.surface import Surface, differences, history, surface
from core.contracts.validation import platform_problems
from core.contracts.versions import CHAPTERS, LAST_MINOR, VERSIONS, version_problem
from core.discovery import Plugins, collect
from core.execution.dispatch import resolve_communication, signature_of
from core.hookspecs import GROUP
from core.ledger import Ledger
from core.plugin_kit.versions import known_versions
from core.reference import KERNELS

TESTS = Path(__file__).parent


def now(contract: str) -> Surface:
    """The contract as its classes have it."""
    kernels = {name: signature_of(kernel) for name, kernel in KERNELS.items()}
    return surface(contract, kernels if contract == "platform" else None)


def known(contract: str) -> list[tuple[int, int]]:
    """Every version that was written down, oldest first."""
    names = [path.name for path in files("core.contracts").joinpath("history").iterdir()]
    versions = [name.removeprefix(f"{contract}-").removesuffix(".json") for name in names if contract in name]
    return sorted(tuple(map(int, version.split("."))) for version in versions)  # type: ignore[misc]


class TestHistory:
    @pytest.mark.parametrize("contract", VERSIONS)
    def test_a_contract_is_what_its_current_version_says(self, contract: str) -> None:
        written = history(contract, VERSIONS[contract])
        changed = differences(written, now(contract))
        assert changed == {}, (
            "the contract has changed: give it a new version in core/contracts/versions.py, explain the change in "
            "changelog.py, and write its file with  python -m core.contracts.surface"
        )

    @pytest.mark.parametrize("contract", VERSIONS)
    def test_every_difference_between_two_versions_is_explained_and_nothing_else_is(
        self, contract: str
    ) -> None:
        versions = known(contract)
        assert versions[-1] == VERSIONS[contract]
        for before, after in pairwise(versions):
            found = differences(history(contract, before), history(contract, after))
            explained = {c.name: c.kind for c in CHANGES if (c.contract, c.version) == (contract, after)}
            assert found == explained

    def test_only_a_major_version_removes_or_changes_and_says_what_becomes_of_older_plugins(self) -> None:
        for change in CHANGES:
            if change.kind != "added":
                assert change.version[1] == 0, change
                assert change.todo and change.adapted, change
            assert change.version <= VERSIONS[change.contract]

    def test_the_page_for_people_is_one_for_programs_too(self) -> None:
        page = (TESTS.parent / "docs" / "contract-changelog.md").read_text()
        listed = json.loads(page.rpartition("```json")[2].partition("```")[0])
        assert [entry["name"] for entry in listed] == [change.name for change in CHANGES]

    def test_every_module_of_the_contracts_is_a_chapter_of_one(self) -> None:
        apart = {"__init__", "versions", "surface", "changelog", "adapters", "validation"}
        modules = {path.stem for path in (TESTS.parent / "core" / "contracts").glob("*.py")} - apart
        assert modules == {chapter for chapters in CHAPTERS.values() for chapter in chapters}

    def test_changes_since_a_version_are_those_that_came_after_it(self) -> None:
        assert changes_since("platform", VERSIONS["platform"]) == []
        assert {change.version for change in changes_since("platform", (1, 0))} == {(2, 0)}


class TestVersions:
    def test_this_major_version_and_the_one_before_are_taken(self) -> None:
        major, minor = VERSIONS["platform"]
        for stated in ((major, 0), (major, minor), (major - 1, 0)):
            assert version_problem("platform", stated) is None

    def test_the_last_minor_version_of_one_that_is_still_taken_is_the_last_there_was(self) -> None:
        for (contract, major), minor in LAST_MINOR.items():
            assert major == VERSIONS[contract][0] - 1
            assert max(version for version in known_versions(contract) if version[0] == major) == (
                major,
                minor,
            )

    @pytest.mark.parametrize(
        ("stated", "expected"),
        [
            ((9, 0), "written for platform contract 9.0; this core takes 1.0 to 2.0: update this engine"),
            ((2, 1), "written for platform contract 2.1; .*: update this engine"),
            ((0, 5), "written for platform contract 0.5; .*contract-changelog.md for what changed since 0.5"),
            (None, "contract is not set; this core keeps platform contract 2.0"),
            ("2.0", "contract is '2.0'; .*expected"),
            ((True, False), "expected"),
            ((2, 0, 0), "expected"),
        ],
    )
    def test_any_other_is_refused_in_words(self, stated: Any, expected: str) -> None:
        problem = version_problem("platform", stated)
        assert problem is not None
        assert re.search(expected, problem)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    """The toy platform as it was under version 1.0, found through an entry point."""
    source = TESTS / "toy_platform_v1" / "toy_platform_v1"
    shutil.copytree(source, tmp_path / "toy_platform_v1", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield collect([EntryPoint("toy-v1", "toy_platform_v1", GROUP)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_platform_v1"]:
        del sys.modules[name]


class TestTheVersionBefore:
    def opened(self, plugins: Plugins) -> tuple[Platform, Device]:
        assert plugins.failures == ()
        return plugins.select_platform("toy-v1")

    def test_its_platform_is_accepted_as_it_is(self, old: Plugins) -> None:
        platform, _ = self.opened(old)
        assert platform.contract == (1, 0)
        assert type(platform).__name__ == "ToyPlatform"

    def test_it_keeps_every_promise(self, old: Plugins) -> None:
        platform, device = self.opened(old)
        for dtype in platform.capabilities(device).dtypes:
            results = [*check_kernels(platform, device, dtype), *check_attention(platform, device, dtype, 16)]
            assert [str(result) for result in results if result.problem] == []

    def test_its_communication_is_called_as_it_was_written(self, old: Plugins) -> None:
        platform, device = self.opened(old)
        communication = resolve_communication(platform, Group(rank=0, size=1), device, Ledger())
        assert torch.equal(communication.all_reduce(torch.ones(3)), torch.ones(3))
        communication.close()

    def test_one_that_has_no_communication_gets_the_references(self, old: Plugins) -> None:
        platform, device = self.opened(old)
        bare = type("Bare", (type(platform).__mro__[1],), {"communication": Platform.communication})
        from core.contracts.adapters import adapt

        assert adapt(bare)().communication(Group(rank=0, size=1), device) is None

    def test_what_was_wrong_then_is_wrong_now(self, old: Plugins) -> None:
        platform, _ = self.opened(old)
        written = type(platform).__mro__[1]
        assert platform_problems(written) == []
        new = type("New", (written,), {"communication": lambda self, group, device: None})
        assert platform_problems(new) == ["communication(group, device) should be communication(group)"]
        claims = type("Claims", (written,), {"contract": VERSIONS["platform"]})
        assert platform_problems(claims) == ["communication(group) should be communication(group, device)"]
