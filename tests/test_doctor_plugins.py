"""`llm doctor` of plugins: every probe and what is wrong, in the words that everybody else uses."""

import importlib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Answer, Run, called

from cli.doctor_finding import Finding
from core.contracts.versions import VERSIONS, text
from core.discovery import load_plugins
from core.hookspecs import GROUP

PLATFORM = """
    from core import hookimpl
    from core.contracts.platform import Capabilities, Device, Platform, Probe

    class Toy(Platform):
        contract, name, device_type, priority = {contract}, "toy", "cpu", -50

        def probe(self):
            {probe}

        def capabilities(self, device):
            return Capabilities()

    @hookimpl
    def core_platforms():
        return [Toy]
"""
DEVICE = 'Device(name="a toy", torch_device="cpu")'
THERE = f'return Probe(available=True, reason="always there", devices=({DEVICE},))'


def platform(probe: str = THERE, contract: tuple[int, int] = VERSIONS["platform"]) -> str:
    return PLATFORM.format(probe=probe, contract=contract)


Install = Callable[..., None]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """llm("doctor") runs the command in this process."""

    def run(*arguments: object) -> Answer:
        return called(monkeypatch, capsys, *arguments)

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install("vendor", plugin=source): a distribution with these plugins, beside what is installed here."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def install(distribution: str, version: str = "1.0", **sources: str) -> None:
        folder = tmp_path / f"{distribution}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = [f"[{GROUP}]"]
        for plugin, source in sources.items():
            module = f"{distribution}_{plugin}"
            made.append(module)
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
            lines.append(f"{plugin} = {module}")
        (folder / "entry_points.txt").write_text("\n".join(lines))
        importlib.invalidate_caches()
        load_plugins.cache_clear()

    load_plugins.cache_clear()
    yield install
    load_plugins.cache_clear()
    for module in made:
        sys.modules.pop(module, None)


HANG = "import threading; threading.Event().wait()"
WRONG: dict[str, tuple[str, str]] = {
    "raises on import": ("raise ImportError('libwreck.so.1 not found')", "libwreck.so.1 not found"),
    "leaves when it is imported": ("raise SystemExit(3)", "SystemExit: 3"),
    "hangs in its probe": (platform(HANG), "did not come back within 0.5 s"),
    "raises in its probe": (platform("raise OSError('bus error')"), "OSError: bus error"),
    "returns another type from its probe": (platform("return True"), "must return a Probe, not True"),
    "returns another type from a hook": (
        "from core import hookimpl\n@hookimpl\ndef core_platforms():\n    return [7]",
        "7 is not a subclass",
    ),
    "declares a contract that is unknown": (platform(contract=(9, 9)), "platform contract 9.9"),
    "has a method that is signed otherwise": (
        platform().replace("def capabilities(self, device)", "def capabilities(self)"),
        r"capabilities() should be capabilities(device)",
    ),
}


def reasons(answer: Answer) -> list[str]:
    """What `llm platforms --json` says is wrong."""
    found = json.loads(answer.out)
    broken = [platform["reason"] for platform in found["platforms"] if platform["error"]]
    return broken + [failure["reason"] for failure in found["failures"]]


def said_everywhere(llm: Run, caplog: pytest.LogCaptureFixture) -> str:
    """The one thing that is wrong here, once it is found that everybody says it in the same words."""
    (words,) = reasons(llm("platforms", "--json"))
    answer = llm("doctor", "--json")
    (problem,) = (each for each in answer.findings().values() if words in each.found)
    assert (answer.code, problem.verdict) == (1, "problem")
    assert problem.next_step
    refused = llm("generate", "hello", "--platform", "none-of-this-name")
    assert refused.code == 1
    assert words in refused.err
    logged = [record.getMessage() for record in caplog.records if record.name == "core.discovery"]
    assert [words in message for message in logged] == [True]
    return words


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_plugin_is_said_in_the_same_words_everywhere(
    wrong: str,
    llm: Run,
    install: Install,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "hangs" in wrong:
        monkeypatch.setattr("core.examination.PROBE_SECONDS", 0.5)
    source, expected = WRONG[wrong]
    install("vendor", plugin=source)

    assert re.search(re.escape(expected), said_everywhere(llm, caplog))


def test_a_plugin_that_is_installed_twice_is_said_in_the_same_words_everywhere(
    llm: Run, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("vendor", "1.0", toy=platform())
    install("nightly", "2.0.dev1", toy=platform())

    words = said_everywhere(llm, caplog)
    assert "already there" in words
    assert "vendor" in words and "nightly" in words
    assert llm("doctor", "--json").findings()["platform toy"].verdict == "ok"


def test_a_probe_is_told_as_llm_platforms_tells_it(llm: Run, install: Install) -> None:
    install("vendor", toy=platform())

    shown = {each["name"]: each for each in json.loads(llm("platforms", "--json").out)["platforms"]}
    found = llm("doctor", "--json").findings()
    for name, each in shown.items():
        state = "available" if each["available"] else "unavailable"
        assert found[f"platform {name}"].found == f"{state}: {each['reason']}"
    assert found["platform toy"] == Finding("platform toy", "ok", "available: always there")
    assert found["toy device"].found == "a toy (cpu)"


def test_hardware_that_is_not_there_is_a_problem_only_when_it_is_asked_for(
    llm: Run, install: Install
) -> None:
    install("vendor", toy=platform('return Probe(available=False, reason="no toy on the bus")'))

    unasked = llm("doctor", "--json").findings()
    assert unasked["platform toy"] == Finding("platform toy", "note", "unavailable: no toy on the bus")
    asked = llm("doctor", "--json", "--platform", "toy")
    assert asked.code == 1
    assert asked.findings()["platform toy"].verdict == "problem"
    assert asked.findings()["selected"].found == "platform toy cannot run: no toy on the bus"


def test_the_platform_that_would_run_is_named_with_its_device(llm: Run) -> None:
    assert llm("doctor", "--json", "--platform", "simulated").findings()["selected"] == Finding(
        "selected", "ok", "simulated on simulated accelerator, as asked"
    )
    assert llm("doctor", "--json").findings()["selected"].found.endswith("the best that can run here")
    unknown = llm("doctor", "--json", "--platform", "simulate")
    assert unknown.code == 1
    assert "did you mean simulated?" in unknown.findings()["selected"].found


def test_a_platform_of_an_older_contract_is_noted_and_the_contracts_are_named(
    llm: Run, install: Install
) -> None:
    install("vendor", toy=platform(contract=(1, 0)))

    found = llm("doctor", "--json").findings()
    now = text(VERSIONS["platform"])
    assert found["platform toy"].verdict == "ok"
    assert found["toy contract"].verdict == "note"
    assert found["toy contract"].found == f"written for platform contract 1.0, and adapted to {now}"
    assert f"platform {now} (takes 1.0 to {now})" in found["contracts"].found
    assert "simulated contract" not in found


def test_text_and_json_say_the_same(llm: Run) -> None:
    written = llm("doctor").out.splitlines(keepends=True)
    listed = [Finding(**each) for each in json.loads(llm("doctor", "--json").out)]

    # What is available of the memory changes from one look to the next.
    assert [line for line in written if "host memory" not in line] == [
        found.line() for found in listed if found.subject != "host memory"
    ]


def test_what_a_platform_raises_where_nobody_expects_it_is_a_finding(llm: Run, install: Install) -> None:
    raising = "\n        def native_builds(self):\n            raise ValueError('no builds\\nat all')\n"
    install("vendor", toy=platform().replace("\n    @hookimpl", f"{raising}\n    @hookimpl"))

    found = llm("doctor", "--json").findings()["toy kernels"]
    assert found == Finding(
        "toy kernels", "problem", "ValueError: no builds at all", "update or uninstall vendor 1.0"
    )


def test_a_setting_that_this_machine_refuses_is_not_called_the_platforms_fault(
    llm: Run, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_CPU_ISA", "imaginary")
    install("vendor", toy=platform())

    answer = llm("doctor", "--json", "--platform", "cpu")
    found = answer.findings()["platform cpu"]
    assert answer.code == 1
    assert found.found.startswith("unavailable: LLM_CPU_ISA is 'imaginary'; native")
    assert "uninstall" not in found.next_step


def test_options_of_a_model_are_not_ignored_in_silence(llm: Run) -> None:
    found = llm("doctor", "--json", "--block-size", "16", "--platform", "cpu").findings()["options"]

    assert (found.verdict, found.next_step) == ("note", "name one with --model")
    assert "--block-size" in found.found and "--platform" not in found.found
