"""The kit in somebody else's test run:  pytest --platform NAME --pyargs core.conformance

Every pytest run in an environment that has this distribution loads this module. So it, and the package it is in, import
nothing of the core; and it adds its options only to a run that asks for the kit: another project may have a --platform
of its own.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

PLATFORM, LEVEL, QUICK = "--platform", "--conformance-level", "--conformance-quick"

_KIT = re.compile(r"(^|[/\\])core[./\\]conformance($|::|[/\\]|\.test_platform)")


def pytest_load_initial_conftests(
    early_config: "pytest.Config", parser: "pytest.Parser", args: list[str]
) -> None:
    """Before the command line is read to its end: the options, if something of the kit is among the arguments."""
    if not any(_KIT.search(argument) for argument in args if not argument.startswith("-")):
        return
    group = parser.getgroup("conformance", "conformance of a platform")
    group.addoption(PLATFORM, metavar="NAME", help="platform to try, or auto")
    group.addoption(
        LEVEL,
        metavar="LEVEL",
        action="append",
        help="level to run, may be repeated; without it those that llm conformance runs",
    )
    group.addoption(QUICK, action="store_true", help="the part that shows most in little time")
