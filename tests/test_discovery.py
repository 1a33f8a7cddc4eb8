"""Plugins are loaded one by one: a broken one is left out with its reason, and everything else goes on.

Each plugin here is a module of its own, found through an entry point as an installed one would be.
"""

import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from core.contracts import VERSIONS
from core.discovery import Plugins, collect, installed, load_plugins
from core.errors import NoPlatform
from core.hookspecs import GROUP

GOOD = """
    from core import hookimpl
    from core.contracts.platform import Capabilities, Device, Platform, Probe

    class Good(Platform):
        contract = (2, 0)
        name = "{name}"
        device_type = "cpu"
        priority = {priority}

        def probe(self):
            return Probe(available=True, reason="always there", devices=(Device(name="d", torch_device="cpu"),))

        def capabilities(self, device):
            return Capabilities()
"""
BRING = """
    @hookimpl
    def core_platforms():
        return [Good]
"""

Load = Callable[..., Plugins]


def good(title: str = "good", rank: int = 5, body: str = "", **replaced: str) -> str:
    """A plugin with one platform; `body` is added to the class, `replaced` swaps pieces of its source."""
    source = textwrap.dedent(GOOD.format(name=title, priority=rank))
    source += textwrap.indent(textwrap.dedent(body), "    ")
    for old, new in replaced.items():
        line = next(line for line in source.splitlines() if line.strip().startswith(f"{old} ="))
        source = source.replace(line, f"    {new}" if new else "")
    return source + textwrap.dedent(BRING)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """load(name=source, ...): one entry point for each; a name may stand for several as [(name, source)]."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def load(*pairs: tuple[str, str], **sources: str) -> Plugins:
        points = []
        for name, source in [*pairs, *sources.items()]:
            module = f"plugin_{len(made)}_{name}"
            made.append(module)
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
            points.append(EntryPoint(name=name, value=module, group=GROUP))
        return collect(points)

    yield load
    for module in made:
        sys.modules.pop(module, None)


def reason(plugins: Plugins, plugin: str) -> str:
    """Why a plugin was left out; it and nothing else failed."""
    (failure,) = plugins.failures
    assert failure.plugin == plugin
    assert "\n" not in failure.reason
    return failure.reason


def problems(plugins: Plugins) -> list[str]:
    """Everything that was left out: plugins and parts of them, and platforms that break their contract."""
    broken = [found.probe.reason for found in plugins.platforms if found.platform is None]
    return [failure.reason for failure in plugins.failures] + broken


def names(plugins: Plugins) -> list[str]:
    return [found.name for found in plugins.platforms if found.platform is not None]


def test_ours_are_found_through_the_same_door() -> None:
    plugins = load_plugins()
    assert {"cpu", "simulated"} <= set(names(plugins))
    assert {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"} <= {
        *plugins.architectures
    }
    assert {"", "wheel", "modelscope"} <= {*plugins.sources}
    assert "smollm2-135m" in plugins.aliases
    assert plugins.failures == ()


def test_a_plugin_brings_a_platform(load: Load) -> None:
    plugins = load(good=good())
    assert plugins.failures == ()
    platform, device = plugins.select_platform("good")
    assert (platform.name, device.name) == ("good", "d")


class TestBrokenModule:
    BROKEN = {
        "an import that is missing": (
            "import no_such_module_at_all",
            "ModuleNotFoundError.*no_such_module_at_all",
        ),
        "an error when imported": (
            "raise RuntimeError('no driver\\nsecond line')",
            "RuntimeError: no driver",
        ),
        "an error without a word": ("raise KeyError", "KeyError"),
        "an exit when imported": ("raise SystemExit(3)", "SystemExit: 3"),
        "an error of another language": (
            "class Panic(BaseException): pass\nraise Panic('unwrapped a None')",
            "Panic: unwrapped a None",
        ),
        "a syntax error": ("def (", "SyntaxError"),
        "a hook that does not exist": (
            "from core import hookimpl\n@hookimpl\ndef core_platform():\n    return []",
            "core_platform",
        ),
        "a hook with arguments of its own": (
            "from core import hookimpl\n@hookimpl\ndef core_platforms(device):\n    return []",
            "device",
        ),
    }

    @pytest.mark.parametrize("broken", BROKEN)
    def test_it_is_left_out_with_its_reason_and_the_others_work(self, load: Load, broken: str) -> None:
        source, expected = self.BROKEN[broken]
        plugins = load(bad=source, good=good())
        assert re.search(expected, reason(plugins, "bad"))
        assert names(plugins) == ["good"]

    def test_its_reason_is_part_of_every_no_platform_error(self, load: Load) -> None:
        plugins = load(bad="raise OSError('libtoy.so is missing')")
        with pytest.raises(NoPlatform, match=r"bad +failed to load: OSError: libtoy\.so is missing"):
            plugins.select_platform("auto")
        with pytest.raises(NoPlatform, match=r"'bat'.*\n.*libtoy\.so is missing"):
            plugins.select_platform("bat")


class TestBrokenHook:
    ANSWERS = {
        "raises": ("raise ValueError('no')", "ValueError: no"),
        "exits": ("raise SystemExit('no')", "SystemExit: no"),
        "gives nothing": ("return None", "None"),
        "gives a number": ("return 7", "7|int"),
        "gives a list of numbers": ("return [7]", "7"),
        "gives a list of texts": ("return ['abc']", "abc"),
        "gives a list of none": ("return [None]", "None"),
        "gives classes of its own": ("return [type('Thing', (), {'name': 'x', 'scheme': 'x'})]", "Thing"),
        "raises half way": ("yield from ()\n    raise ValueError('half')", "half"),
    }

    @pytest.mark.parametrize("answer", ANSWERS)
    @pytest.mark.parametrize(
        "hook",
        [
            "core_platforms",
            "core_architectures",
            "core_model_sources",
            "core_model_aliases",
            "core_model_fallbacks",
            "core_telemetry",
        ],
    )
    def test_an_answer_of_the_wrong_kind_loses_only_itself(self, load: Load, hook: str, answer: str) -> None:
        body, expected = self.ANSWERS[answer]
        source = f"from core import hookimpl\n@hookimpl\ndef {hook}():\n    {body}"
        plugins = load(bad=source, good=good())
        (problem,) = problems(plugins)
        assert re.search(expected, problem)
        assert names(plugins) == ["good"]
        assert (plugins.architectures, plugins.sources, plugins.aliases) == ({}, {}, {})

    def test_an_alias_that_names_no_text_is_left_out(self, load: Load) -> None:
        source = "from core import hookimpl\n@hookimpl\ndef core_model_aliases():\n    return {'a': 5, 'b': 'folder'}"
        plugins = load(bad=source)
        assert "'a'" in reason(plugins, "bad")
        assert plugins.aliases == {"b": "folder"}


class TestBrokenPlatform:
    CASES = {
        "no name": (good(name=""), "name is not set"),
        "a name that is no text": (good(name="name = 7"), "name.*7"),
        "a name that means something else": (good("auto"), "name is 'auto', which is how a user leaves"),
        "no device type": (good(device_type=""), "device_type is not set"),
        "no contract version": (good(contract=""), "contract is not set"),
        "an older major version": (
            good(contract="contract = (0, 9)"),
            r"contract 0\.9; this core takes 1\.0 to 2\.0",
        ),
        "a newer major version": (
            good(contract="contract = (3, 0)"),
            r"contract 3\.0; .*: update this engine",
        ),
        "a version that nobody had": (
            good(contract="contract = (1, 1_000_000_000)"),
            r"contract 1\.1000000000; this core takes",
        ),
        "a version below zero": (good(contract="contract = (1, -3)"), r"contract 1\.-3; this core takes"),
        "a version in a list": (good(contract="contract = [2, 0]"), r"\(major, minor\) is expected"),
        "a version that is no pair": (good(contract="contract = 1"), "contract is 1;.*is expected"),
        "a version of texts": (good(contract="contract = ('1', '0')"), "contract"),
        "a priority that is no number": (good(priority="priority = 'high'"), "priority.*'high'"),
        "a missing method": (
            good().replace("def capabilities", "def _capabilities"),
            r"capabilities\(\) is missing",
        ),
        "a misspelt method": (
            good(body="\ndef atention(self, spec, device):\n    return None\n"),
            r"atention\(\) is not part of the contract, did you mean attention\?",
        ),
        "a public method of its own": (
            good(body="\ndef warm_up_everything(self):\n    return None\n"),
            r"warm_up_everything\(\) is not part of the contract; name private methods with a leading underscore",
        ),
        "a changed signature": (
            good(body="\ndef memory(self, device, size):\n    return None\n"),
            r"memory\(device, size\) should be memory\(device\)",
        ),
        "a method that is a class without a signature": (good(body="\nmemory = type\n"), "memory"),
        "a method that is a value": (good(body="\nmemory = 5\n"), "memory"),
        "no platform at all": (good().replace("return [Good]", "return [int]"), "int.*not a subclass"),
        "an instance": (good().replace("return [Good]", "return [Good()]"), "not a subclass"),
    }

    @pytest.mark.parametrize("case", CASES)
    def test_a_broken_contract_is_named_and_the_others_work(self, load: Load, case: str) -> None:
        source, expected = self.CASES[case]
        plugins = load(bad=source, good=good("other"))
        (problem,) = problems(plugins)
        assert re.search(expected, problem)
        assert names(plugins) == ["other"]
        assert plugins.select_platform("auto")[0].name == "other"

    def test_everything_wrong_is_in_one_report(self, load: Load) -> None:
        source = good(
            contract="contract = (9, 9)",
            body="\ndef atention(self):\n    pass\ndef memory(self):\n    pass\n",
        )
        (found,) = load(bad=source).platforms
        assert found.error is not None
        for piece in (
            "contract 9.9",
            "did you mean attention?",
            "memory() should be memory(device)",
        ):
            assert piece in found.error
        assert found.error in found.probe.reason

    def test_named_it_fails_closed_with_its_reason(self, load: Load) -> None:
        plugins = load(bad=good("toy", contract="contract = (9, 9)"), good=good())
        with pytest.raises(NoPlatform, match=r"platform toy cannot run: breaks its contract.*9\.9"):
            plugins.select_platform("toy")
        assert plugins.select_platform("auto")[0].name == "good"

    def test_private_helpers_and_inherited_methods_are_its_own_affair(self, load: Load) -> None:
        source = good(body="\ndef _helper(self, anything):\n    return None\n")
        source = source.replace("return [Good]", "return [type('Better', (Good,), {'name': 'better'})]")
        assert names(load(good=source)) == ["better"]

    def test_so_is_what_a_mixin_brings_and_what_the_first_parameter_is_called(self, load: Load) -> None:
        source = good(
            body="""
            @classmethod
            def native_builds(cls):
                return ()

            def memory(this, device):
                return None
            """
        ).replace(
            "class Good(Platform)",
            "class Mixin:\n    def forward(self):\n        pass\n\nclass Good(Mixin, Platform)",
        )
        assert names(load(good=source)) == ["good"]

    def test_a_newer_minor_version_is_refused_and_an_older_one_accepted(self, load: Load) -> None:
        major, minor = VERSIONS["platform"]
        newer = load(bad=good(contract=f"contract = ({major}, {minor + 1})"))
        assert names(newer) == []
        for older in range(minor + 1):
            assert names(load(good=good(contract=f"contract = ({major}, {older})"))) == ["good"]


class TestProbe:
    PROBES = {
        "raises": ("raise OSError('bus error')", "OSError: bus error"),
        "exits": ("raise SystemExit(1)", "SystemExit"),
        "gives nothing": ("return None", "must return a Probe"),
        "gives a number": ("return float('nan')", "must return a Probe"),
        "gives a bool": ("return True", "must return a Probe"),
        "is available without a device": (
            "return Probe(available=True, reason='yes')",
            "at least one device",
        ),
        "names devices by text": (
            "return Probe(available=True, reason='', devices=('cpu',))",
            "each a Device",
        ),
        "gives no reason": ("return Probe(available=False, reason=None)", "reason"),
    }

    @staticmethod
    def source(body: str) -> str:
        return good("toy", rank=99, body=f"\ndef probe(self):\n    {body}\n")

    @pytest.mark.parametrize("probe", PROBES)
    def test_a_broken_probe_makes_its_platform_unavailable(self, load: Load, probe: str) -> None:
        body, expected = self.PROBES[probe]
        plugins = load(toy=self.source(body), good=good())
        found = next(p for p in plugins.platforms if p.name == "toy")
        assert not found.probe.available
        assert re.search(expected, found.probe.reason)
        assert plugins.select_platform("auto")[0].name == "good"
        with pytest.raises(NoPlatform, match=expected):
            plugins.select_platform("toy")

    def test_a_platform_that_cannot_run_says_why_when_it_is_named(self, load: Load) -> None:
        absent = self.source("return Probe(available=False, reason='no device node /dev/toy0')")
        plugins = load(toy=absent, good=good())
        with pytest.raises(NoPlatform, match="platform toy cannot run: no device node /dev/toy0"):
            plugins.select_platform("toy")
        assert plugins.select_platform("auto")[0].name == "good"
        with pytest.raises(NoPlatform, match=r"(?s)no platform can run.*toy +no device node.*llm platforms"):
            load(toy=absent).select_platform("auto")

    def test_a_probe_that_does_not_come_back_is_left_behind(
        self, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("core.examination.PROBE_SECONDS", 0.2)
        plugins = load(toy=self.source("import threading; threading.Event().wait()"), good=good())
        found = next(p for p in plugins.platforms if p.name == "toy")
        assert (
            found.probe.reason
            == "its probe failed: TimeoutError: the probe of toy did not come back within 0.2 s"
        )
        assert plugins.select_platform("auto")[0].name == "good"

    def test_what_a_manifest_declares_must_be_known(self, load: Load) -> None:
        declares = (
            "Capabilities(features=frozenset({'sliding_windows'}), block_sizes=(16, 0), dtypes=('bf16',))"
        )
        (found,) = load(
            toy=good(body=f"\ndef capabilities(self, device):\n    return {declares}\n")
        ).platforms
        assert found.error is not None
        for piece in ("did you mean sliding_window?", "block_sizes has 0", "dtypes declares 'bf16'"):
            assert piece in found.error

    def test_a_manifest_of_another_kind_or_none_is_a_reason(self, load: Load) -> None:
        for body, expected in (
            ("return {}", "must return Capabilities"),
            ("raise OSError('gone')", "OSError: gone"),
        ):
            plugins = load(
                toy=good(body=f"\ndef capabilities(self, device):\n    {body}\n"), good=good("other")
            )
            assert names(plugins) == ["other"]
            assert re.search(expected, problems(plugins)[0])

    def test_a_constructor_that_raises_is_a_reason_too(self, load: Load) -> None:
        plugins = load(
            toy=good(body="\ndef __init__(self):\n    raise MemoryError('all gone')\n"), good=good("other")
        )
        assert names(plugins) == ["other"]


class TestAuto:
    def test_takes_the_highest_priority(self, load: Load) -> None:
        plugins = load(a=good("a", 1), b=good("b", 30), c=good("c", 2))
        assert plugins.select_platform("auto")[0].name == "b"

    def test_never_takes_a_negative_priority(self, load: Load) -> None:
        plugins = load(soft=good("soft", -1))
        with pytest.raises(NoPlatform, match="no platform can run"):
            plugins.select_platform("auto")
        assert plugins.select_platform("soft")[0].name == "soft"

    def test_an_unknown_name_is_answered_with_the_closest_and_all_others(self, load: Load) -> None:
        plugins = load(a=good("accelerator"), b=good("board"))
        with pytest.raises(
            NoPlatform, match=r"(?s)'accelerater'; did you mean accelerator\?.*accelerator .*board "
        ):
            plugins.select_platform("accelerater")

    def test_with_nothing_installed_it_says_so(self) -> None:
        with pytest.raises(NoPlatform, match="none is installed"):
            collect([]).select_platform("auto")


class TestTakenNames:
    def test_a_platforms_name_belongs_to_the_first(self, load: Load) -> None:
        plugins = load(first=good("same", 1), second=good("same", 2))
        assert "'same' is already taken by first" in reason(plugins, "second")
        assert [p.platform.priority for p in plugins.platforms if p.platform] == [1]

    def test_a_broken_one_does_not_keep_a_name_from_one_that_works(self, load: Load) -> None:
        plugins = load(a=good("same", contract="contract = (0, 9)"), b=good("same"))
        assert names(plugins) == ["same"]
        assert "contract 0.9" in reason(plugins, "a")

    def test_two_plugins_of_one_name_never_take_each_other_down(self, load: Load) -> None:
        plugins = load(("same", good("a")), ("same", good("b")))
        assert names(plugins) == ["a"]
        assert "a plugin of this name is already there" in reason(plugins, "same")

    ARCHITECTURE = """
        from core import hookimpl
        from core.contracts.model import Architecture
        @hookimpl
        def core_architectures():
            return [Architecture(name="Same", family="{who}", describe=print, build=print)]
    """
    SOURCE = """
        from core import hookimpl
        from core.contracts.source import ModelSource
        class Source(ModelSource):
            contract, scheme, summary = (1, 0), "same", "{who}"
            def fetch(self, reference, progress): ...
            def cached(self): return []
        @hookimpl
        def core_model_sources():
            return [Source]
    """
    ALIAS = """
        from core import hookimpl
        @hookimpl
        def core_model_aliases():
            return {{"same": "{who}"}}
    """

    def test_so_do_those_of_architectures_sources_and_aliases(self, load: Load) -> None:
        def pair(source: str) -> Plugins:
            return load(first=source.format(who="first"), second=source.format(who="second"))

        architectures, sources, aliases = pair(self.ARCHITECTURE), pair(self.SOURCE), pair(self.ALIAS)
        assert architectures.architectures["Same"].family == "first"
        assert sources.sources["same"].summary == "first"
        assert aliases.aliases["same"] == "first"
        for plugins in (architectures, sources, aliases):
            assert "already taken by first" in reason(plugins, "second")

    def test_a_source_that_lacks_a_method_is_left_out(self, load: Load) -> None:
        plugins = load(bad=self.SOURCE.format(who="x").replace("def cached", "def _cached"))
        assert "cached" in reason(plugins, "bad")
        assert plugins.sources == {}


class TestReplacing:
    """A plugin that replaces something of the core's is left out, and what it replaced is put back."""

    PATCHES = {
        "a function": "import core.config\ncore.config.parse_bytes = lambda *a: 0",
        "a method": "from core.config import EngineConfig\nEngineConfig.from_keywords = lambda *a: None",
        "a method, behind its own name": (
            "import functools\nfrom core.config import EngineConfig\n"
            "ours = EngineConfig.from_keywords\n"
            "EngineConfig.from_keywords = functools.wraps(ours)(lambda *a: None)"
        ),
        "a constant": "import core.config\ncore.config.DTYPES = ()",
        "something, before it fails": "import core.config\ncore.config.parse_bytes = 1\nimport no_such_module",
        "a class": "import core.errors\nclass Mine(Exception): pass\ncore.errors.EngineDead = Mine",
    }

    @pytest.mark.parametrize("patch", PATCHES)
    def test_it_is_named_and_undone(self, load: Load, patch: str) -> None:
        import core.config
        import core.errors

        def ours() -> tuple[object, ...]:
            method = vars(core.config.EngineConfig)["from_keywords"]
            return core.config.parse_bytes, core.config.DTYPES, method, core.errors.EngineDead

        before = ours()
        plugins = load(bad=f"{self.PATCHES[patch]}\n{good()}", good=good("other"))
        assert re.search(
            r"replaced core\.(config|errors)\.\S+; plugins replace nothing", reason(plugins, "bad")
        )
        assert names(plugins) == ["other"]
        assert before == ours()

    @pytest.mark.parametrize("place", ["def core_platforms():", "def probe(self):"])
    def test_so_it_is_when_a_hook_or_a_probe_does_it(self, load: Load, place: str) -> None:
        import core.config

        before, source = core.config.parse_bytes, good()
        (line,) = [line for line in source.splitlines() if place in line]
        within = " " * (len(line) - len(line.lstrip()) + 4)
        patch = f"{line}\n{within}import core.config\n{within}core.config.parse_bytes = None"
        plugins = load(bad=source.replace(line, patch), good=good("other"))
        assert "replaced core.config.parse_bytes;" in reason(plugins, "bad")
        assert names(plugins) == ["other"]
        assert core.config.parse_bytes is before


def test_an_architecture_whose_name_is_no_text_loses_only_itself(load: Load) -> None:
    source = """
        from core import hookimpl
        from core.contracts.model import Architecture

        @hookimpl
        def core_architectures():
            return [Architecture(name=["Llama"], family="llama", describe=dict, build=dict)]
    """
    plugins = load(bad=source, good=good())
    assert "its name is ['Llama']; a text is expected" in reason(plugins, "bad")
    assert names(plugins) == ["good"]


def test_a_distribution_that_is_installed_in_two_versions_is_named_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0", "2.0"):
        folder = tmp_path / version / f"vendor_of_acme-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vendor-of-acme\nVersion: {version}\n")
        (folder / "entry_points.txt").write_text("[core.plugins]\nacme = no_such_vendor_of_acme\n")
        monkeypatch.syspath_prepend(str(tmp_path / version))
    points = [point for point in installed() if point.name == "acme"]
    assert [point.dist.version for point in points if point.dist] == ["2.0", "1.0"]
    points = [EntryPoint("acme", "core.ledger", GROUP)._for(point.dist) for point in points]
    assert reason(collect(points), "acme") == (
        "a plugin of this name is already there, from vendor-of-acme 2.0; this one is from vendor-of-acme 1.0"
    )
