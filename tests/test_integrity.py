"""Nobody replaces anything of ours: it is noticed, named, and undone where what was there is known."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import core.config
from core.config import EngineConfig
from core.integrity import Watch, foreign, refusal


@pytest.fixture
def vendor() -> Iterator[ModuleType]:
    """A package of somebody else's, with something to put in the place of ours."""
    module = ModuleType("vendor_of_chips")
    exec_in(module, "def theirs(*given): ...")
    exec_in(module, "class Theirs: ...")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def exec_in(module: ModuleType, source: str) -> None:
    exec(source, vars(module))  # noqa: S102


@pytest.fixture
def kept() -> Iterator[None]:
    before = core.config.parse_bytes, vars(EngineConfig)["from_keywords"]
    yield
    core.config.parse_bytes = before[0]
    EngineConfig.from_keywords = before[1]  # type: ignore[method-assign]


def test_nothing_is_found_where_nothing_was_done() -> None:
    watch = Watch()
    assert watch.replaced("vendor_of_chips") == []
    assert foreign("vendor_of_chips") == []


@pytest.mark.usefixtures("kept")
def test_a_function_that_was_replaced_is_named_and_put_back(vendor: ModuleType) -> None:
    watch, ours = Watch(), core.config.parse_bytes
    core.config.parse_bytes = vendor.theirs
    (found,) = watch.replaced(vendor.__name__)
    assert str(found) == "core.config.parse_bytes"
    assert core.config.parse_bytes is ours
    assert watch.replaced(vendor.__name__) == []


@pytest.mark.usefixtures("kept")
def test_so_is_a_method(vendor: ModuleType) -> None:
    watch, ours = Watch(), vars(EngineConfig)["from_keywords"]
    EngineConfig.from_keywords = vendor.theirs  # type: ignore[method-assign]
    (found,) = watch.replaced(vendor.__name__)
    assert str(found) == "core.config.EngineConfig.from_keywords"
    assert vars(EngineConfig)["from_keywords"] is ours


@pytest.mark.usefixtures("kept")
def test_what_was_deleted_is_put_back(vendor: ModuleType) -> None:
    watch, ours = Watch(), core.config.parse_bytes
    del core.config.parse_bytes
    assert [str(each) for each in watch.replaced(vendor.__name__)] == ["core.config.parse_bytes"]
    assert core.config.parse_bytes is ours


def test_of_a_module_that_came_later_what_is_defined_elsewhere_gives_it_away(vendor: ModuleType) -> None:
    watch = Watch()
    late = ModuleType("core.came_late")
    exec_in(late, "def ours(): ...")
    vars(late)["ours"].__module__ = late.__name__
    sys.modules[late.__name__] = late
    try:
        vars(late)["other"] = vendor.theirs
        assert [str(each) for each in watch.replaced(vendor.__name__)] == ["core.came_late.other"]
        assert [str(each) for each in foreign(vendor.__name__)] == ["core.came_late.other"]
        assert foreign("another_vendor") == []
    finally:
        del sys.modules[late.__name__]


def test_our_own_packages_are_not_strangers() -> None:
    for package in ("platforms", "models", "plugins"):
        assert foreign(package) == []


def test_what_is_added_or_counted_is_nobodys_affair() -> None:
    watch = Watch()
    module: Any = core.config
    module.a_number_of_mine = 3
    try:
        assert watch.replaced("vendor_of_chips") == []
    finally:
        del module.a_number_of_mine


def test_the_refusal_names_everything(vendor: ModuleType) -> None:
    late = ModuleType("core.came_late")
    sys.modules[late.__name__] = late
    try:
        vars(late).update(theirs=vendor.theirs, Theirs=vendor.Theirs)
        told = refusal(foreign(vendor.__name__))
    finally:
        del sys.modules[late.__name__]
    assert told.startswith("replaced core.came_late.theirs, core.came_late.Theirs; plugins replace nothing")
