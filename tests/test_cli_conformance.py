"""`llm conformance`: what it prints, what it writes, and how it leaves."""

import json
import re
import shlex
from pathlib import Path

import pytest
from commands import Answer, Run, called

from core.conformance.certificate import read


@pytest.fixture
def conformance(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """conformance("--platform", "cpu") runs the command in this process."""

    def run(*arguments: object) -> Answer:
        return called(monkeypatch, capsys, "conformance", *arguments)

    return run


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated device has no memory to give."""
    monkeypatch.setenv("LLM_SIMULATED", "oom_after=0")


ENGINE = ("--platform", "simulated", "--level", "engine", "--quick")
MEMORY = ("--platform", "simulated", "--level", "memory", "--quick")


def test_a_sound_platform_gets_a_table_a_certificate_and_0(conformance: Run, tmp_path: Path) -> None:
    path = tmp_path / "simulated.json"
    found = conformance(*MEMORY, "--certificate", path, "--sign-off", "A. Vendor")
    assert found.code == 0, found.out + found.err
    for heading in ("level", "checks", "passed", "wrong", "not supported", "seconds"):
        assert heading in found.out
    assert "Conformance of simulated (simulated accelerator)" in found.out
    assert "\nwrong  " not in found.out and "not supported  " not in found.out
    written = read(path)
    last = found.out.rstrip().splitlines()[-1]
    assert last == f"{written.checks} checks, nothing wrong. The platform is {written.lines}."
    assert written.checks >= 16 and written.lines.python > 300
    assert (written.platform, written.distribution, written.quick) == ("simulated", "core", True)
    assert written.signed_off_by == "A. Vendor"
    assert list(written.levels) == ["memory"]
    assert found.err.splitlines()[:2] == ["simulated: memory", "simulated: memory: statistics"]
    assert found.err.count("simulated: memory: statistics\n") == 1, "a line a subject, not a line a check"


def test_what_is_wrong_is_shown_with_the_command_that_tries_it_again(conformance: Run, broken: None) -> None:
    found = conformance(*ENGINE, "--quiet")
    assert (found.code, found.err) == (1, "")
    lines = found.out.splitlines()[2:]  # after what is not supported
    assert lines[0].startswith("wrong  engine: greedy, one by one, float32: raised OutOfDeviceMemory: ")
    again = (
        "conformance --platform simulated --level engine --dtype float32 --quick --only 'greedy, one by one'"
    )
    assert lines[1] == f"  llm {again}"
    assert len([line for line in lines if line.startswith("wrong  engine: greedy, ")]) == 3
    assert "wrong  engine: greedy: 2 more; --json has them all" in lines
    summary = re.fullmatch(r"(\d+) checks, (\d+) wrong\. The platform is .*", lines[-1])
    assert summary is not None
    assert int(summary[1]) >= int(summary[2]) > 10

    alone = conformance(*shlex.split(again)[1:], "--json", "--quiet")
    assert alone.code == 1
    (result,) = json.loads(alone.out)["levels"]["engine"]["results"]
    assert (result["subject"], result["case"]) == ("greedy", "one by one")


def test_what_is_not_supported_is_a_line_for_each_reason(conformance: Run) -> None:
    found = conformance(*ENGINE, "--only", "weights")
    assert found.code == 0
    first, second, *_ = found.out.splitlines()
    assert (first, second) == ("not supported  engine: 1 check: int8 is not among its weight_formats", "")
    assert found.out.splitlines()[-1].startswith("1 check, nothing wrong. ")


def test_only_checks_in_the_dtypes_that_were_asked_for_are_run(conformance: Run) -> None:
    options = (
        "--dtype",
        "float16",
        "--dtype",
        "bfloat16",
        "--only",
        "what was asked for",
        "--json",
        "--quiet",
    )
    found = conformance(*MEMORY, *options)
    assert found.code == 0
    document = json.loads(found.out)
    assert "sha256" not in document, "checks were left out, so it certifies nothing"
    results = document["levels"]["memory"]["results"]
    assert [(result["case"], result["dtype"]) for result in results] == [
        ("what was asked for", "float16"),
        ("what was asked for", "bfloat16"),
    ]


def test_a_name_that_no_check_has_is_an_error(conformance: Run) -> None:
    found = conformance(*MEMORY, "--only", "nonsense", "--quiet")
    assert (found.code, found.out) == (1, "")
    assert found.err == "error: no check of memory has 'nonsense' in its name\n"


def test_json_is_the_certificate_and_nothing_else(conformance: Run, broken: None, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    found = conformance(*ENGINE, "--json", "--certificate", path, "--sign-off", "me")
    assert found.code == 1
    assert json.loads(found.out) == json.loads(path.read_text())
    assert json.loads(found.out)["signed_off_by"] == "me"
    assert read(path).wrong > 0, "what is wrong is certified, too"


def test_levels_run_once_each_in_their_own_order(conformance: Run, broken: None) -> None:
    found = conformance(*ENGINE, "--level", "memory", "--level", "engine", "--json", "--quiet")
    assert list(json.loads(found.out)["levels"]) == ["memory", "engine"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("--platform", "cpu", "--level", "engin"), 2, "no level is named 'engin'; did you mean engine?"),
        (
            ("--platform", "cpu", "--level", "xyz"),
            2,
            "no level is named 'xyz'; known: ops, attention, memory",
        ),
        (
            ("--platform", "cpu", "--dtype", "int3"),
            2,
            "--dtype: dtype is 'int3'; accepted: float32, bfloat16",
        ),
        (("--platform", "cpu", "--sign-off", "me"), 2, "add --certificate FILE, or --json"),
        (("--platform", "cpu", "--only", "x", "--certificate", "x"), 2, "a certificate is of whole levels"),
        (("--platform", "cpu", "--dtype", "float32", "--certificate", "x"), 2, "is of whole levels"),
        (("--platform", "cpu", "--only", "x", "--json", "--sign-off", "me"), 2, "is of whole levels"),
        (("--platform", "cpu", "--dtype", "float32", "--json", "--sign-off", "me"), 2, "is of whole levels"),
        (("--platform", "cpx"), 1, "no platform is named 'cpx'; did you mean cpu?"),
        (("--platform", "tpu"), 1, "platform tpu cannot run: "),
        (("--level", "ops"), 2, "--platform"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_runs(
    conformance: Run, arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    found = conformance(*arguments)
    assert (found.code, found.out) == (code, "")
    assert complaint in found.err


def test_a_certificate_without_a_folder_is_refused_before_anything_runs(
    conformance: Run, tmp_path: Path
) -> None:
    path = tmp_path / "absent" / "file.json"
    found = conformance(*ENGINE, "--certificate", path)
    assert (found.code, found.out) == (1, "")
    assert found.err == f"error: cannot write {path}: there is no folder {path.parent}\n"


def test_a_certificate_that_cannot_be_written_is_an_error_in_words(
    conformance: Run, broken: None, tmp_path: Path
) -> None:
    found = conformance(*ENGINE, "--quiet", "--certificate", tmp_path)
    assert (found.code, found.out) == (1, "")
    assert found.err == f"error: cannot write {tmp_path}: is a directory\n"
