"""`llm plugin check` reads a plugin's sources, runs none of them, and names the line of everything that it finds."""

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from typer.testing import CliRunner

from cli.plugin import app
from core.contracts.changelog import Change
from core.errors import ConfigError
from core.plugin_kit.check import check
from core.plugin_kit.findings import Finding, Report

TESTS = Path(__file__).parent
PLATFORM = """
    from core.contracts.platform import Capabilities, Device, Platform, Probe

    class Toy(Platform):  # class
        contract = (2, 0)  # contract
        name = "toy"
        device_type = "cpu"

        def probe(self):
            return Probe(available=False, reason="no")

        def capabilities(self, device):
            return Capabilities()
"""

Checked = Callable[..., Report]


def platform(body: str = "", **replaced: str) -> str:
    """A platform; `body` is added to the class, `replaced` swaps what its attributes are set to."""
    source = textwrap.dedent(PLATFORM)
    for name, value in replaced.items():
        line = next(line for line in source.splitlines() if line.strip().startswith(f"{name} ="))
        source = source.replace(line, f"    {value}" if value else "")
    return source + textwrap.indent(textwrap.dedent(body), "    ")


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    """checked(source, other=source, against="1.0"): the report about these files; the first is plugin.py."""

    def checked(source: str = "", against: str | None = None, **files: str) -> Report:
        for name, text in {"plugin": source, **files}.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
        return check(tmp_path, against)

    return checked


def marked(source: str, mark: str = "# here") -> int:
    """The line that a mark stands in."""
    lines = textwrap.dedent(source).splitlines()
    (found,) = [number for number, line in enumerate(lines, 1) if mark in line]
    return found


@pytest.mark.parametrize("example", ["level2_static", "level2_platform"])
def test_a_runner_may_have_stages_of_its_own(checked: Checked, example: str) -> None:
    assert [str(each) for each in checked((TESTS / f"{example}.py").read_text()).findings] == []


def only(report: Report) -> Finding:
    assert len(report.findings) == 1, [str(each) for each in report.findings]
    return report.findings[0]


class TestWhatIsTaken:
    PRIVATE = {
        "a module": ("import core.engine.scheduler  # here", "core.engine.scheduler is private"),
        "a module of the top": ("from core import clock  # here", "core.clock is private"),
        "a name": ("from core.config import parse_bytes  # here", "core.config.parse_bytes is private"),
        "a name in a function": (
            "def f():\n    from core.config import parse_bytes  # here\n    return parse_bytes",
            "core.config.parse_bytes is private",
        ),
        "a name with an underscore": (
            "from core.reference.norm import _EPS  # here",
            "core.reference.norm._EPS is private",
        ),
        "a name reached through the package": (
            "import core\nx = core.config.parse_bytes  # here",
            "core.config.parse_bytes is private",
        ),
        "a module that is loaded by name": (
            "from importlib import import_module\nx = import_module('core.engine.link')  # here",
            "core.engine.link is private",
        ),
        "a name that another module imports": (
            "from core.contracts.runner import Capabilities  # here",
            "take core.contracts.platform.Capabilities",
        ),
    }

    @pytest.mark.parametrize("case", PRIVATE)
    def test_what_is_private_works_for_now(self, checked: Checked, case: str) -> None:
        source, expected = self.PRIVATE[case]
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("private", marked(source), False)
        assert expected in finding.message

    MISSING = {
        "a class": (
            "from core.contracts.platform import Platfrom  # here",
            "core.contracts.platform has no Platfrom, did you mean Platform?",
        ),
        "a module": (
            "import core.contracts.atention  # here",
            "core.contracts has no atention, did you mean attention?",
        ),
        "a module whose name is taken": (
            "from core.engines import Engine  # here",
            "core has no engines, did you mean engine?",
        ),
        "a name of the package": ("from core import SampelingParams  # here", "did you mean SamplingParams?"),
        "a name of the package that is reached": ("import core\ncore.Llms  # here", "core has no Llms"),
    }

    @pytest.mark.parametrize("case", MISSING)
    def test_what_is_not_there_breaks(self, checked: Checked, case: str) -> None:
        source, expected = self.MISSING[case]
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("missing", marked(source), True)
        assert expected in finding.message

    @pytest.mark.parametrize("module", ["platforms.cpu", "server.app", "cli.main", "models.llama", "plugins"])
    def test_other_parts_of_the_engine_promise_nothing(self, checked: Checked, module: str) -> None:
        finding = only(checked(f"import os\nimport {module}"))
        assert (finding.rule, finding.line, finding.breaks) == ("house", 2, False)
        assert module in finding.message

    def test_what_is_public_is_not_spoken_of(self, checked: Checked) -> None:
        source = """
            import core
            import core.contracts.platform as contract
            from core import LLM, hookimpl, __version__
            from core.conformance import Options
            from core.conformance.levels import run
            from core.contracts import VERSIONS, platform
            from core.contracts.execution import Forward
            from core.contracts.quantization import INT8, Weight
            from core.errors import ConfigError
            from core.hookspecs import GROUP
            from core.layers.layer import ComposedLayer
            from core.reference import KERNELS
            from core.reference.norm import rms_norm
            import pathlib, torch.nn

            print(core.LLM, core.__name__, contract.Device, platform.Device.__name__, KERNELS.items())
        """
        assert checked(source).findings == ()

    def test_its_own_modules_are_its_own_whatever_they_are_called(self, checked: Checked) -> None:
        report = checked(
            "from models import a\nimport server\nfrom . import models",
            models="from plugin import x",
            server="",
        )
        assert report.findings == ()

    def test_a_name_that_is_hidden_is_something_else(self, checked: Checked) -> None:
        source = """
            from core.contracts import platform

            def f(platform, core):
                platform.nothing = core.nothing
                return [core.x for core in platform]
        """
        assert checked(source).findings == ()


class TestMethods:
    WRONG = {
        "unknown": (
            "def atention(self, spec, device):  # here\n    return None",
            "Toy.atention() is not part of the contract, did you mean attention?",
        ),
        "public and its own": (
            "def warm_everything_up(self):  # here\n    return None",
            "Toy.warm_everything_up() is not part of the contract; name private methods with",
        ),
        "with another parameter": (
            "def memory(self, device, size):  # here\n    return None",
            "Toy.memory(device, size) should be memory(device); Platform in platform contract 2.0",
        ),
        "with one too few": (
            "def communication(self, group):  # here\n    return None",
            "Toy.communication(group) should be communication(group, device)",
        ),
        "with rest parameters": (
            "def memory(self, *args, **more):  # here\n    return None",
            "memory(*args, **more) should be memory(device)",
        ),
        "decorated": (
            "@cached\n@twice()\ndef memory(self):  # here\n    return None",
            "Toy.memory() should be memory(device)",
        ),
        "a value": ("memory = 5  # here", "Toy.memory is no plain method; memory(device) is expected"),
        "a property": (
            "@property\ndef memory(self):  # here\n    return None",
            "Toy.memory is no plain method",
        ),
        "a lambda": ("memory = lambda self: None  # here", "Toy.memory() should be memory(device)"),
        "a class": ("class Cache:  # here\n    pass", "Toy.Cache() is not part of the contract"),
    }

    @pytest.mark.parametrize("case", WRONG)
    def test_one_that_departs_from_the_contract_breaks(self, checked: Checked, case: str) -> None:
        body, expected = self.WRONG[case]
        source = platform(body)
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("method", marked(source), True)
        assert expected in finding.message

    def test_one_that_is_missing_is_named_at_its_class(self, checked: Checked) -> None:
        source = platform().replace("def capabilities", "def _capabilities")
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("method", marked(source, "# class"), True)
        assert "Toy.capabilities(device) is missing" in finding.message

    def test_an_attribute_that_nobody_sets_is_named_at_the_class(self, checked: Checked) -> None:
        source = platform().replace("name = ", "nmae = ", 1)
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("method", marked(source, "# class"), True)
        assert "Toy.name is not set; Platform in platform contract 2.0" in finding.message

    def test_everything_wrong_is_in_one_report(self, checked: Checked) -> None:
        body = "def memory(self): ...\ndef atention(self): ..."
        report = checked(platform(body).replace("def probe", "def _probe"))
        assert [finding.rule for finding in report.findings] == ["method"] * 3
        assert report.breaking == 3

    def test_private_methods_properties_and_classmethods_are_its_own_affair(self, checked: Checked) -> None:
        body = """
            def _own(self, anything): ...
            @property
            def size(self): ...
            @classmethod
            def made(cls): ...
        """
        assert checked(platform(body)).findings == ()

    def test_what_a_base_class_brings_in_another_file_counts(self, checked: Checked) -> None:
        plugin = """
            from base import Base as Below

            class Toy(Below):
                contract = (2, 0)
                name = device_type = "toy"
                def probe(self): ...
        """
        base = """
            from abc import abstractmethod
            from core.contracts.platform import Platform

            class Base(Platform):
                def capabilities(self, device): ...
                def memory(self): ...  # here
                @abstractmethod
                def _kind(self): ...
        """
        finding = only(checked(plugin, base=base))
        assert (finding.path, finding.line) == ("base.py", marked(base))

    def test_what_an_unknown_base_class_brings_nobody_can_say(self, checked: Checked) -> None:
        source = """
            from elsewhere import Mixture
            from core.contracts.platform import Platform

            class Toy(Mixture, Platform):
                contract = (2, 0)
        """
        assert checked(source).findings == ()

    @pytest.mark.parametrize(
        ("import_line", "base"),
        [
            ("import core.contracts.memory", "core.contracts.memory.Memory"),
            ("from core.contracts import memory as m", "m.Memory"),
            ("from core.contracts.memory import *", "Memory"),
            ("from core.reference.memory import HostMemory", "HostMemory"),
        ],
    )
    def test_a_contracts_class_is_known_by_any_road(
        self, checked: Checked, import_line: str, base: str
    ) -> None:
        source = f"{import_line}\n\nclass Own({base}):\n    def statistcs(self): ...  # here\n"
        messages = {finding.line: finding.message for finding in checked(source).findings}
        assert "did you mean statistics?" in messages[marked(source)]

    def test_other_classes_of_a_plugin_are_its_own_affair(self, checked: Checked) -> None:
        source = """
            from dataclasses import dataclass
            from core.contracts.attention import AttentionShape
            from core.contracts.model import Model

            @dataclass(frozen=True, kw_only=True)
            class Shape(AttentionShape):
                def area(self): ...

            class Decoder(Model):
                def anything(self): ...

            class Alone:
                def probe(self, a, b): ...
        """
        assert checked(source).findings == ()


class TestVersions:
    STATED = {
        "none": ("", "contract is not set; this core keeps platform contract 2.0", "# class"),
        "a later one": (
            "contract = (9, 0)  # here",
            "written for platform contract 9.0; this core takes 1.0 to 2.0",
            "# here",
        ),
        "a text": ("contract = '2.0'  # here", "contract is '2.0'; (major, minor) is expected", "# here"),
        "one of many": ("contract, extra = (9, 1), 2  # here", "platform contract 9.1", "# here"),
    }

    @pytest.mark.parametrize("case", STATED)
    def test_one_that_is_not_taken_breaks(self, checked: Checked, case: str) -> None:
        line, expected, mark = self.STATED[case]
        source = platform(contract=line)
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("contract", marked(source, mark), True)
        assert expected in finding.message

    def test_one_that_only_running_would_tell_is_mentioned(self, checked: Checked) -> None:
        source = platform(contract="contract = tuple([2, 0])  # here")
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("contract", marked(source), False)

    def test_so_it_is_of_sources_architectures_and_quantizations(self, checked: Checked) -> None:
        source = """
            from typing import ClassVar
            from core.contracts.model import Architecture
            from core.contracts.packing import Quantization
            from core.contracts.source import ModelSource

            class Shelf(ModelSource):
                contract: ClassVar[tuple[int, int]] = (4, 0)  # shelf
                scheme = summary = "shelf"
                def fetch(self, reference, progress): ...
                def cached(self): ...

            OWN = Architecture(name="a", family="a", describe=print, build=print, contract=(7, 0))  # here
            ROWS = Quantization(name="rows", read=print, contract=(3, 1))  # rows
        """
        shelf, own, rows = checked(source).findings
        assert (shelf.line, own.line, rows.line) == (
            marked(source, "# shelf"),
            marked(source),
            marked(source, "# rows"),
        )
        assert "source contract 4.0" in shelf.message
        assert "model contract 7.0" in own.message
        assert "quantization contract 3.1" in rows.message

    def test_a_plugin_of_the_version_before_works_and_is_told_what_changed(self) -> None:
        folder = TESTS / "toy_platform_v1"
        finding = only(check(folder))
        file = folder / finding.path
        assert finding.line == marked(file.read_text(), "def communication")
        assert (finding.rule, finding.breaks) == ("changed", False)
        for piece in ("in platform 2.0", "add the parameter device", "called without the device"):
            assert piece in finding.message
        assert check(folder, "1.0").findings == ()

    def test_compared_with_an_older_one_what_came_later_breaks(self, checked: Checked) -> None:
        source = """
            from core.contracts.attention import AttentionShape, AttentionSpec
            from core.contracts.memory import HostBlocks, Memory  # import

            AttentionShape(num_heads=1, num_kv_heads=1, head_dim=1, scale=1.0, soft_cap=2.0)  # shape
            AttentionSpec(num_heads=1, alibi=True, dtype="x", block_size=1)  # spec
        """
        assert checked(source).findings == ()
        report = checked(source, "1.0")
        assert [finding.line for finding in report.findings] == [
            marked(source, mark) for mark in ("# import", "# shape", "# spec")
        ]
        assert all("it came with 2.0" in finding.message for finding in report.findings)
        assert report.breaking == 3

    def test_what_came_after_the_version_that_is_stated_is_mentioned(self, checked: Checked) -> None:
        source = platform(contract="contract = (1, 0)")
        source += "\nfrom core.contracts.attention import AttentionShape\n"
        source += "AttentionShape(num_heads=1, num_kv_heads=1, head_dim=1, scale=1.0, alibi=True)  # here\n"
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("keyword", marked(source), False)
        assert "not in platform contract 1.0, which is stated, it came with 2.0" in finding.message

    def test_what_the_changelog_tells_the_author_to_do_is_told(
        self, checked: Checked, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def change(kind: Literal["changed", "removed"], name: str, todo: str) -> Change:
            return Change(
                contract="platform", version=(2, 0), kind=kind, name=name, what="is gone", todo=todo
            )

        changed = change("changed", "kernel rms_norm", "take eps first")
        removed = change("removed", "platform.Capabilities.warp_size", "leave it out")
        monkeypatch.setattr("core.plugin_kit.uses.CHANGES", (changed,))
        monkeypatch.setattr("core.plugin_kit.versions.CHANGES", (removed,))
        source = platform(contract="contract = (1, 0)")
        source += "\nfrom core.contracts.kernels import Implementation\n"
        source += 'OWN = {"rms_norm": Implementation(function=print)}  # kernel\n'
        source += "Capabilities(warp_size=32)  # field\n"
        kernel, field = checked(source).findings
        assert (kernel.line, field.line) == (marked(source, "# kernel"), marked(source, "# field"))
        assert kernel.message == "kernel rms_norm changed in platform 2.0: is gone; take eps first"
        assert field.message.endswith("is not in platform contract 2.0, it was removed in 2.0: leave it out")
        assert kernel.breaks and field.breaks

    def test_a_plugin_that_states_a_newer_one_is_refused_by_the_older(self, checked: Checked) -> None:
        source = platform("def communication(self, group, device): ...  # here")
        stated, method = checked(source, "1.0").findings
        assert (stated.line, method.line) == (marked(source, "# contract"), marked(source))
        assert "a core that keeps 1.0 refuses it: state (1, 0), and both take it" in stated.message
        assert "should be communication(group);" in method.message

    @pytest.mark.parametrize("version", ["9.9", "2", "two", "", "2.0.0", "-1.0", "02.0"])
    def test_one_that_does_not_exist_is_refused_with_those_that_do(
        self, checked: Checked, version: str
    ) -> None:
        with pytest.raises(
            ConfigError, match=r"does not exist; of the platform contract there are 1\.0, 2\.0"
        ):
            checked(platform(), version)

    def test_one_of_another_contract_than_the_plugins_is_refused(self, checked: Checked) -> None:
        with pytest.raises(ConfigError, match=r"of the source contract there is 1\.0"):
            checked("from core.contracts.source import ModelSource", "2.0")


class TestUses:
    KEYWORDS = {
        "of a manifest": (
            "from core.contracts.platform import Capabilities\nx = Capabilities(head_size=(64,))  # here",
            "Capabilities(head_size=) is not in platform contract 2.0, did you mean head_dims?",
        ),
        "through a module": (
            "import core.contracts.platform as p\nx = p.Device(\n    name='x',\n    torchdevice='cpu',  # here\n)",
            "Device(torchdevice=) is not in platform contract 2.0, did you mean torch_device?",
        ),
        "of a model": (
            "from core.contracts.model import Architecture\nx = Architecture(builds=print)  # here",
            "Architecture(builds=) is not in model contract 1.0, did you mean build?",
        ),
        "of a quantization": (
            "from core.contracts.packing import Quantization\nx = Quantization(reads=print)  # here",
            "Quantization(reads=) is not in quantization contract 1.0, did you mean read?",
        ),
    }

    @pytest.mark.parametrize("case", KEYWORDS)
    def test_a_keyword_that_a_data_class_lacks_breaks(self, checked: Checked, case: str) -> None:
        source, expected = self.KEYWORDS[case]
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("keyword", marked(source), True)
        assert expected in finding.message

    MANIFESTS = {
        "a feature": (
            'frozenset({"sliding_window", "soft_capp"})',
            "features declares 'soft_capp', which the contract does not know; did you mean soft_cap?",
        ),
        "a format": ("['q9_9']", "weight_formats declares 'q9_9', which the contract does not know; known:"),
        "a size": ("(16, 0)", "block_sizes has 0; a whole number above 0 is expected"),
    }

    @pytest.mark.parametrize("case", MANIFESTS)
    def test_what_a_manifest_declares_and_the_contract_does_not_know_breaks(
        self, checked: Checked, case: str
    ) -> None:
        value, expected = self.MANIFESTS[case]
        keyword = expected.partition(" ")[0]
        source = (
            f"from core.contracts.platform import Capabilities\nx = Capabilities({keyword}={value})  # here"
        )
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("manifest", marked(source), True)
        assert expected in finding.message

    def test_a_manifest_that_is_computed_is_left_to_the_start(self, checked: Checked) -> None:
        source = """
            from core.contracts.platform import Capabilities

            def capabilities(known, sizes):
                return Capabilities(features=frozenset(known), block_sizes=sizes, dtypes=("float32",))
        """
        assert checked(source).findings == ()

    def test_inherited_and_unpacked_keywords_are_fine(self, checked: Checked) -> None:
        source = """
            from core.contracts.attention import AttentionSpec

            def spec(**given):
                return AttentionSpec(num_heads=1, scale=1.0, dtype="x", block_size=1, cache_dtype=None, **given)
        """
        assert checked(source).findings == ()

    PATCHES = {
        "a function of a module": (
            "import core.contracts.platform as p\np.FEATURES = {}  # here",
            "core.contracts.platform.FEATURES",
        ),
        "a method": (
            "from core.contracts.platform import Platform\nPlatform.defaults = None  # here",
            "core.contracts.platform.Platform.defaults",
        ),
        "one of several": ("import core\na, core.LLM = 1, 2  # here", "core.LLM"),
        "deleted": ("import core\ndel core.LLM  # here", "core.LLM"),
        "a table": (
            "from core.reference import KERNELS\nKERNELS['linear'] = None  # here",
            "core.reference.KERNELS",
        ),
        "a whole module": ("import sys\nsys.modules['core.errors'] = None  # here", "core.errors"),
        "by setattr": ("import core\nsetattr(core, 'LLM', None)  # here", "core.LLM"),
        "by setattr of a name that is computed": (
            "from core.contracts.memory import Memory\nsetattr(Memory, name, None)  # here",
            "core.contracts.memory.Memory",
        ),
        "in a test": (
            "def test_a(monkeypatch):\n    monkeypatch.setattr('core.errors.CoreError', None)  # here",
            "core.errors.CoreError",
        ),
        "in a mock": (
            "from unittest.mock import patch\nfrom core import errors\n"
            "with patch.object(errors, 'CoreError'):  # here\n    pass",
            "core.errors.CoreError",
        ),
        "in a decorator": (
            "from unittest import mock\n@mock.patch('core.errors.CoreError')  # here\ndef test_a(): ...",
            "core.errors.CoreError",
        ),
    }

    @pytest.mark.parametrize("case", PATCHES)
    def test_what_is_replaced_is_named(self, checked: Checked, case: str) -> None:
        source, name = self.PATCHES[case]
        patches = [finding for finding in checked(source).findings if finding.rule == "patch"]
        assert [(finding.line, finding.breaks) for finding in patches] == [(marked(source), True)]
        assert f"replaces {name};" in patches[0].message

    def test_what_only_looks_like_it_is_left_alone(self, checked: Checked) -> None:
        source = """
            import sys
            import requests
            from core.contracts.platform import Device

            requests.patch("core.example.com/x")
            device = Device(name="x", torch_device="cpu")
            device.name = "y"
            setattr(device, "name", "z")
            sys.modules["mine"] = None
            dict(Device=Device)
            {Device: 1}[Device]
        """
        assert checked(source).findings == ()

    HOOKS = {
        "that does not exist": (
            "from core import hookimpl\n@hookimpl\ndef core_platform():  # here\n    return []",
            "core_platform is no hook; did you mean core_platforms?",
        ),
        "with a parameter of its own": (
            "import core\n@core.hookimpl(tryfirst=True)\ndef core_platforms(device):  # here\n    return []",
            "core_platforms(device) should be core_platforms()",
        ),
        "named otherwise": (
            "from core.hookspecs import hookimpl\n@hookimpl(specname='core_model')\ndef mine():  # here\n    return []",
            "core_model is no hook",
        ),
    }

    @pytest.mark.parametrize("case", HOOKS)
    def test_a_hook_that_would_not_be_called_breaks(self, checked: Checked, case: str) -> None:
        source, expected = self.HOOKS[case]
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("hook", marked(source), True)
        assert expected in finding.message

    def test_a_kernel_that_is_not_declared_breaks(self, checked: Checked) -> None:
        source = """
            from core.contracts.kernels import Implementation

            FOUND = {
                "linear": Implementation(function=print),
                "rms_nrom": Implementation(function=print),  # here
            }
        """
        finding = only(checked(source))
        assert (finding.rule, finding.line, finding.breaks) == ("kernel", marked(source), True)
        assert "'rms_nrom' is not a declared kernel in platform contract 2.0; did you mean rms_norm?" in str(
            finding
        )


class TestReading:
    UNREADABLE = {
        "a syntax error": (b"x = 1\ndef (:\n", 2),
        "bytes that are no UTF-8": (b"x = 1\ny = '\xff'\n", None),
        "a null byte": (b"x = 1\0\n", None),
        "too many brackets": (b"(" * 3000 + b")" * 3000, None),
    }

    @pytest.mark.parametrize("case", UNREADABLE)
    def test_a_file_that_cannot_be_read_is_a_finding_and_the_others_are_read(
        self, checked: Checked, tmp_path: Path, case: str
    ) -> None:
        content, line = self.UNREADABLE[case]
        (tmp_path / "bad.py").write_bytes(content)
        bad, good = checked("import core.config").findings
        assert (bad.path, bad.rule, bad.breaks) == ("bad.py", "unreadable", True)
        assert line in (None, bad.line) and bad.line >= 1
        assert (good.path, good.line) == ("plugin.py", 1)

    def test_an_encoding_that_is_declared_is_honoured(self, checked: Checked, tmp_path: Path) -> None:
        (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xff'\nimport core.config\n")
        assert (only(checked()).path, only(checked()).line) == ("latin.py", 3)

    def test_expressions_of_any_depth_are_walked(self, checked: Checked) -> None:
        report = checked(f"x = {' + '.join(['1'] * 700)}\nimport core.config")
        assert only(report).line == 2

    def test_what_the_compiler_warns_of_is_no_error(self, checked: Checked) -> None:
        assert checked('x = "\\d"\ny = 1 is 1\n').findings == ()

    def test_links_lead_nowhere_twice(self, checked: Checked, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "again").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "loop.py").symlink_to(tmp_path / "loop.py")
        (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
        report = checked("import core.config")
        assert [(finding.path, finding.rule) for finding in report.findings] == [
            ("gone.py", "unreadable"),
            ("loop.py", "unreadable"),
            ("plugin.py", "private"),
        ]
        assert report.files == 3

    def test_a_pipe_is_not_waited_for(self, checked: Checked, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.py")
        assert "no regular file" in only(checked()).message

    def test_hidden_folders_and_environments_are_somebody_elses(
        self, checked: Checked, tmp_path: Path
    ) -> None:
        for folder in (".git", "environment/lib", "__pycache__"):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "other.py").write_text("import core.config")
        (tmp_path / "environment" / "pyvenv.cfg").write_text("")
        assert checked().findings == ()

    def test_one_file_is_enough(self, tmp_path: Path) -> None:
        file = tmp_path / "alone.py"
        file.write_text("import core.config")
        assert only(check(file)).path == "alone.py"

    def test_a_folder_without_python_and_no_folder_at_all_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="holds no Python file"):
            check(tmp_path)
        with pytest.raises(ConfigError, match="nothing is at"):
            check(tmp_path / "nowhere")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        with pytest.raises(ConfigError, match="nothing is at"):
            check(tmp_path / "loop")


class TestOurs:
    def test_the_toy_platform_uses_what_is_public(self) -> None:
        report = check(TESTS / "toy_platform")
        assert [str(finding) for finding in report.findings] == []
        assert (report.files, [*report.against]) == (3, ["platform"])

    @pytest.mark.parametrize(
        ("name", "private"),
        [
            ("simulated", {"core.config.parse_bytes"}),
            ("cpu", {"core.weights.dequantize.dequantized"}),
        ],
    )
    def test_our_platforms_use_no_more_of_the_core_than_this(self, name: str, private: set[str]) -> None:
        findings = check(TESTS.parent / "platforms" / name).findings
        assert {finding.message.partition(" ")[0] for finding in findings} == private
        assert {(finding.rule, finding.breaks) for finding in findings} == {("private", False)}


class TestCommand:
    def run(self, *arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["check", *map(str, arguments)])
        return result.exit_code, result.stdout, result.stderr

    def test_it_names_file_and_line_and_leaves_with_1_on_what_would_break(self, tmp_path: Path) -> None:
        (tmp_path / "plugin.py").write_text("import os\nfrom core import Lllm\nimport core.config\n")
        code, out, _ = self.run(tmp_path)
        assert code == 1
        assert out.splitlines()[0].startswith("plugin.py:2: core has no Lllm")
        assert out.splitlines()[-1] == "2 findings in 1 file, 1 of them would break it; it uses no contract"

    def test_it_leaves_with_0_where_nothing_would(self, tmp_path: Path) -> None:
        (tmp_path / "plugin.py").write_text("import core.config\n")
        assert self.run(tmp_path)[0] == 0

    def test_as_json_it_is_for_programs(self) -> None:
        code, out, _ = self.run(TESTS / "toy_platform_v1", "--against", "1.0", "--json")
        found = json.loads(out)
        assert (code, found["breaking"], found["findings"]) == (0, 0, [])
        assert found["against"] == {"platform": "1.0"}

    def test_a_wrong_version_is_the_command_lines_fault_and_a_missing_folder_is_not(
        self, tmp_path: Path
    ) -> None:
        code, _, err = self.run(tmp_path, "--against", "9.9")
        assert code == 2
        assert "error: --against: version '9.9' does not exist" in err
        code, _, err = self.run(tmp_path / "nowhere")
        assert code == 1
        assert "nothing is at" in err
