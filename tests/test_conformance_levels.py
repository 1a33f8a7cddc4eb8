"""Running levels: what ends one early is a result, and a check can be run again alone."""

import shlex
from collections.abc import Mapping

import pytest
from bare_platform import CPU, Bare
from mutant_platforms import DEVICE, Sound, WrongKernels

from core.conformance import Options, Result
from core.conformance.levels import DEFAULT, LEVELS, command, named, run
from core.contracts.attention import AttentionSpec
from core.contracts.execution import Execution
from core.contracts.kernels import Implementation
from core.contracts.platform import Device
from core.errors import ConfigError

FLOAT32 = Options(dtypes=("float32",), quick=True)


def test_levels_are_named_once_each_in_the_order_in_which_they_run() -> None:
    assert named(["engine", "ops", "engine"]) == ("ops", "engine")
    assert named([]) == DEFAULT
    assert tuple(LEVELS)[: len(DEFAULT)] == DEFAULT
    with pytest.raises(ConfigError, match=r"no level is named 'opps'; did you mean ops\?"):
        named(["ops", "opps"])


def test_a_dtype_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="dtype is 'float64'; accepted: float32, bfloat16, float16"):
        Options(dtypes=("float32", "float64"))


@pytest.mark.parametrize("level", LEVELS)
def test_a_dtype_that_the_device_does_not_declare_is_not_supported_once_in_every_level(level: str) -> None:
    asked = Options(dtypes=("float16", "float16"), only="a name that no check has")

    (found,) = run(Sound(), DEVICE, [level], asked)

    assert (found.level, found.name, found.status) == (level, "dtype, float16", "not supported")
    assert found.unsupported == "float16 is not among its dtypes: float32"


@pytest.mark.parametrize("level", ["ops", "attention", "memory", "communication", "engine"])
def test_a_level_is_run_in_the_dtypes_that_were_asked_for_and_are_declared(level: str) -> None:
    refused, *others = run(
        Bare(dtypes=("bfloat16", "float32")), CPU, [level], Options(dtypes=("float16", "float32"), quick=True)
    )

    assert (refused.case, refused.status) == ("float16", "not supported")
    assert {result.dtype for result in others} - {""} == {"float32"}


@pytest.mark.parametrize("error", [RuntimeError("no driver"), SystemExit("no driver")])
def test_what_ends_a_level_is_a_result_whatever_was_asked_for(error: BaseException) -> None:
    class Broken(Sound):
        def execution(self, device: Device) -> Execution:
            raise error

    told: list[Result] = []
    options = Options(only="a name that no check has")
    (found,) = run(Broken(), DEVICE, ["memory"], options, told.append)
    assert told == [found]
    assert found.problem == f"ended early: {type(error).__name__}: no driver"
    assert command("broken", found, options) == "llm conformance --platform broken --level memory"


def test_the_command_for_a_wrong_check_names_that_check_alone() -> None:
    wrong = [result for result in run(WrongKernels(), DEVICE, ["ops"], FLOAT32) if result.problem]
    first = wrong[0]
    words = shlex.split(command("wrong-kernels", first, FLOAT32))
    assert words[:6] == ["llm", "conformance", "--platform", "wrong-kernels", "--level", "ops"]
    assert words[6:] == ["--dtype", "float32", "--quick", "--only", first.name]
    again = run(WrongKernels(), DEVICE, ["ops"], Options(dtypes=("float32",), quick=True, only=words[-1]))
    assert str(first) in map(str, again)
    assert all(first.name in result.name for result in again)


def test_kernels_and_attention_that_are_not_asked_for_are_not_tried() -> None:
    class Counting(Sound):
        """Notes which attention it is asked for, and offers a norm that fails."""

        asked: list[AttentionSpec] = []

        def attention(self, spec: AttentionSpec, device: Device) -> None:
            self.asked.append(spec)

        def kernels(self, device: Device) -> Mapping[str, Implementation]:
            return {"rms_norm": Implementation(function=lambda x, weight, eps: 1 / 0)}

    platform = Counting()
    found = run(platform, DEVICE, ["ops", "attention"], Options(only="a window of 4, "))
    assert {spec.sliding_window for spec in platform.asked} == {4}
    assert [result.name for result in found] == ["attention, a window of 4, blocks of 16"]
    (norm, *others) = run(platform, DEVICE, ["ops"], Options(quick=True, only="rms_norm, "))
    assert "ZeroDivisionError" in norm.problem
    assert all("rms_norm" in result.subject for result in others)
