"""`llm doctor --model`: what a model takes of the memory, who serves its kernels, and what fallbacks cost."""

import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from commands import called
from pooling_models import make

import core
from cli.doctor_budget import Budget, budget_of, decided
from cli.doctor_cost import (
    DECODES,
    PROMPT_TOKENS,
    RUNS,
    SAMPLER,
    Phase,
    add_sampler,
    measured,
)
from cli.doctor_finding import Finding
from cli.doctor_model import Advice, advice, fallback, model
from cli.doctor_watch import Stopwatch, watch_for, watched
from cli.terminal import Status
from core import EngineConfig, SamplingParams
from core.contracts.runner import RunnerContext
from core.discovery import Plugins, collect, load_plugins
from core.engine.build import build_engine, runner_for
from core.engine.engine import Engine
from core.engine.intake import Intake
from core.hookspecs import GROUP
from core.ledger import Choice, Rejection

CACHE = 4 * 2**20


def simulated(model: Path, **asked: Any) -> EngineConfig:
    return EngineConfig(model=str(model), platform="simulated", **asked)


def counted(config: EngineConfig) -> tuple[RunnerContext, Budget]:
    context = decided(config, load_plugins(), print)
    return context, budget_of(context, runner_for(context))


class TestBudget:
    def test_it_is_what_loading_then_takes(self, tiny_llama: Path) -> None:
        _, found = counted(simulated(tiny_llama, kv_cache_memory=CACHE))

        with core.LLM(str(tiny_llama), platform="simulated", kv_cache_memory=CACHE) as llm:
            info = llm.info
        assert found.num_tokens == info.num_kv_tokens
        assert found.plan.max_model_len == info.max_model_len
        assert found.plan.total_bytes == info.kv_cache_bytes

    def test_weights_and_tokens_are_counted_from_shapes(self, tiny_llama: Path) -> None:
        _, found = counted(simulated(tiny_llama, dtype="float32"))

        layer = 64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 96 + 2 * 64
        assert found.weights == 4 * (2 * 320 * 64 + 2 * layer + 64)
        assert found.per_token == 2 * 2 * 2 * 16 * 4  # keys and values of 2 layers, 2 heads of 16, in 4 bytes
        assert found.left == found.free - found.weights - found.plan.total_bytes

    def test_nothing_is_loaded_for_it(self, tiny_llama: Path) -> None:
        context = decided(simulated(tiny_llama), load_plugins(), print)
        runner = runner_for(context)
        budget_of(context, runner)

        assert not hasattr(runner, "model")
        assert [
            choice.what for choice in context.ledger.choices if choice.what in ("weights", "kv_cache")
        ] == []

    def test_a_runner_of_the_platforms_own_is_asked(self, tiny_llama: Path) -> None:
        names = ("models", "plugins.sources", "level2_platform")
        plugins = collect([EntryPoint(name=name, value=name, group=GROUP) for name in names])
        config = EngineConfig(model=str(tiny_llama), platform="numpy", dtype="float32")

        found = {each.subject: each for each in model(config, plugins, Status(quiet=True))}
        assert [each.verdict for each in found.values() if each.verdict == "problem"] == []
        assert "1.0 GiB" in found["weights"].found
        assert "runner" in found["numpy serves"].found
        assert "decode" in found


class TestStopwatch:
    def test_a_call_counts_without_what_it_calls(self) -> None:
        watch = Stopwatch(lambda: None)
        inner = watch.timed("inner", lambda: time.sleep(0.05))
        outer = watch.timed("outer", lambda: [inner(), inner(), time.sleep(0.01)])
        outer()

        assert watch.seconds["inner"] >= 0.1
        assert 0.01 <= watch.seconds["outer"] < watch.seconds["inner"]

    def test_a_call_that_raises_is_counted_and_leaves_the_others_right(self) -> None:
        watch = Stopwatch(lambda: None)

        def fail() -> None:
            time.sleep(0.02)
            raise ValueError("no")

        failing = watch.timed("failing", fail)
        with pytest.raises(ValueError, match="no"):
            watch.timed("outer", failing)()
        watch.timed("after", lambda: None)()

        assert watch.seconds["failing"] >= 0.02
        assert watch.seconds["outer"] < 0.02 and watch.seconds["after"] < 0.02

    def test_the_device_is_waited_for_before_and_after(self) -> None:
        happened: list[str] = []
        watch = Stopwatch(lambda: happened.append("wait"))

        assert watch.timed("kernel", lambda x, *, y: happened.append("run") or (x, y))(1, y=2) == (1, 2)
        assert happened == ["wait", "run", "wait"]


def timed_engine(config: EngineConfig) -> tuple[Engine, Stopwatch]:
    context = decided(config, load_plugins(), print)
    runner_for(context).close()
    composed = {choice.what for choice in context.ledger.choices if choice.provider == "composed"}
    watch = watch_for(context.platform, context.device)
    return build_engine(config, plugins=watched(load_plugins(), composed, watch)), watch


def greedy(engine: Engine, prompt: Sequence[int], count: int) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    engine.add(Intake(engine.info, None).request(prompt, params, request_id="greedy"))
    found: list[int] = []
    while engine.has_work:
        for delta in engine.step():
            found += delta.token_ids
    return found


class TestCosts:
    def test_kernels_under_the_stopwatch_give_the_same_answer(self, tiny_llama: Path) -> None:
        prompt, config = [5, 9, 200, 31, 8], simulated(tiny_llama)
        plain, (timed, watch) = build_engine(config), timed_engine(config)

        assert greedy(timed, prompt, 12) == greedy(plain, prompt, 12)
        assert watch.seconds
        plain.close()
        timed.close()

    def test_every_kernel_is_seen_and_together_they_take_no_more_than_the_steps(
        self, tiny_llama: Path
    ) -> None:
        engine, watch = timed_engine(simulated(tiny_llama))
        prompt, decode = measured(engine, watch)
        engine.close()

        assert (prompt.answers, decode.answers) == (RUNS, RUNS * DECODES)
        assert prompt.name == f"a prompt of {PROMPT_TOKENS} tokens"
        for phase in (prompt, decode):
            assert {*phase.kernels} == {
                "embedding", "linear", "rms_norm", "add_rms_norm", "rotary", "silu_and_mul", "gated_mlp",
                "decoder_layer", "attention",
            }  # fmt: skip
            assert all(seconds > 0 for seconds in phase.kernels.values())
            assert sum(phase.kernels.values()) < phase.seconds

    def test_kernels_of_the_sampler_are_counted_for_each_token(self, tiny_llama: Path) -> None:
        engine, watch = timed_engine(simulated(tiny_llama))
        phase = Phase("decode", "a decode step", 10, 1.0)
        device = decided(simulated(tiny_llama), load_plugins(), print).device
        add_sampler([phase], SAMPLER, engine, device, watch)
        engine.close()

        assert {*phase.kernels} == {"argmax", "sample"}
        assert phase.seconds == 1.0
        assert 0 < phase.kernels["argmax"] < phase.kernels["sample"] < 1

    def test_a_short_context_is_measured_with_what_fits_it(self, tiny_llama: Path) -> None:
        engine, watch = timed_engine(simulated(tiny_llama, max_model_len=40))
        prompt, decode = measured(engine, watch)
        engine.close()

        assert prompt.name == "a prompt of 30 tokens"
        assert decode.answers == RUNS * 9

    def test_of_a_model_that_does_not_generate_the_prompts_are_measured(self, tmp_path: Path) -> None:
        engine, watch = timed_engine(simulated(make(tmp_path / "model", "Bert")))
        (prompt,) = measured(engine, watch)
        engine.close()

        assert (prompt.name, prompt.answers) == (f"a prompt of {PROMPT_TOKENS} tokens", RUNS)

    REJECTED = Choice(
        what="linear",
        provider="reference",
        rejected=(Rejection(provider="toy", reason="compiled for bfloat16, not float16"),),
    )

    @pytest.mark.parametrize(
        ("spent", "step", "verdict"),
        [
            (0.01, "change it", "ok"),
            (0.06, "change it", "note"),
            (0.30, "change it", "problem"),
            (0.30, "", "note"),
        ],
    )
    def test_a_fallback_is_judged_by_its_share_and_by_what_can_be_done(
        self, spent: float, step: str, verdict: str
    ) -> None:
        phases = Phase("prompt", "a prompt", 1, 2.0), Phase("decode", "a decode step", 4, 1.0)
        phases[1].add(0.0, {"linear": spent})

        found = fallback(self.REJECTED, phases, Advice(step))
        assert found.verdict == verdict
        assert bool(found.next_step) == (verdict != "ok")
        share = f"{100 * spent:.1f} % of a decode step"
        assert found.found == f"reference: {share} (toy: compiled for bfloat16, not float16)"

    def test_what_a_model_never_calls_costs_nothing(self) -> None:
        found = fallback(self.REJECTED, [Phase("decode", "a decode step", 1, 1.0)], Advice("change it"))
        assert (found.verdict, "not in these steps" in found.found) == ("ok", True)


TOY = """
    from core import hookimpl
    from core.contracts.kernels import Implementation
    from core.contracts.platform import Capabilities, Device, Platform, Probe

    def rms_norm(x, weight, eps):
        return x * 0

    class Toy(Platform):
        contract, name, device_type, priority = (2, 0), "toy", "cpu", -50

        def probe(self):
            return Probe(available=True, reason="there", devices=(Device(name="toy", torch_device="cpu"),))

        def capabilities(self, device):
            return Capabilities(dtypes=("bfloat16", "float32"))

        def kernels(self, device):
            from core.reference import KERNELS

            def rejects(request):
                return None if request.dtype == "bfloat16" else "made for bfloat16"

            return {
                "rms_norm": Implementation(function=rms_norm),
                "linear": Implementation(function=KERNELS["linear"].reference, rejects=rejects),
            }

    @hookimpl
    def core_platforms():
        return [Toy]
"""


Installed = Callable[[str], Plugins]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """installed(source): what there is besides a plugin of this source, with nothing known of its kernels."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LLM_CACHE", str(tmp_path))

    def installed(source: str) -> Plugins:
        (tmp_path / "toy_with_faults.py").write_text(textwrap.dedent(source))
        names = ("models", "plugins.sources", "toy_with_faults")
        return collect([EntryPoint(name=name, value=name, group=GROUP) for name in names])

    yield installed
    sys.modules.pop("toy_with_faults", None)


def test_each_fallback_comes_with_what_can_be_done_about_it(tiny_llama: Path, installed: Installed) -> None:
    plugins = installed(TOY)
    config = EngineConfig(model=str(tiny_llama), platform="toy", dtype="float32")

    context = decided(config, plugins, print)
    offered = context.platform.kernels(context.device)
    assert advice("rms_norm", offered, context).wrong
    assert advice("linear", offered, context) == Advice("try --dtype bfloat16, which toy prefers")
    assert advice("rotary", offered, context) == Advice()

    found = {each.subject: each for each in model(config, plugins, Status(quiet=True))}
    assert found["rms_norm"].verdict == "problem"
    assert found["rms_norm"].next_step.startswith("update toy;")
    assert "(toy: made for bfloat16)" in found["linear"].found
    assert "(toy: has no version of its own)" in found["rotary"].found
    assert "% of a decode step" in found["sample"].found


def test_what_a_platform_raises_while_a_model_is_loaded_is_a_finding(
    tiny_llama: Path, installed: Installed
) -> None:
    plugins = installed(TOY.replace("from core.reference import KERNELS", "raise KeyError('table')"))
    config = EngineConfig(model=str(tiny_llama), platform="toy")

    *_, last = model(config, plugins, Status(quiet=True))
    assert (last.subject, last.verdict) == ("model", "problem")
    assert last.found == "cannot be run: KeyError: 'table'"
    assert last.next_step == f"llm platforms explain --model {tiny_llama} --debug  shows where"


Run = Callable[..., tuple[int, dict[str, Finding]]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """doctor(model, ...) runs `llm doctor --json` on the simulated platform: the exit code, and what it found."""

    def run(model: object, *arguments: object) -> tuple[int, dict[str, Finding]]:
        given = ("doctor", "--json", "--quiet", "--platform", "simulated", "--model", model, *arguments)
        answer = called(monkeypatch, capsys, *given)
        assert answer.err == ""
        return answer.code, answer.findings()

    return run


class TestCommand:
    def test_every_fallback_comes_with_its_share_of_a_step(self, doctor: Run, tiny_llama: Path) -> None:
        _, found = doctor(tiny_llama)

        assert "LlamaForCausalLM" in found["model"].found
        for phase in ("prompt", "decode"):
            assert re.search(r"takes \d+\.\d\d ms", found[phase].found)
        assert "linear" in found["simulated serves"].found
        assert re.fullmatch(
            r"composed of linear \(simulated\), silu_and_mul \(simulated\): \d+\.\d % of a prompt of 128 tokens, "
            r"\d+\.\d % of a decode step \(simulated: has no version of its own\)",
            found["gated_mlp"].found,
        )
        assert found["gated_mlp"].verdict in ("ok", "note")  # a user can do nothing about it

    def test_a_model_that_does_not_generate_has_prompts_alone(self, doctor: Run, tmp_path: Path) -> None:
        _, found = doctor(make(tmp_path / "model", "Bert"), "--platform", "cpu")

        assert found["model"].verdict == "ok" and "decode" not in found
        assert re.search(r"takes \d+\.\d\d ms", found["prompt"].found)
        assert not any("decode step" in finding.found for finding in found.values())
        assert "not in these steps" in found["sample"].found

    def test_a_context_that_the_cache_cannot_hold_is_noted(self, doctor: Run, tiny_llama: Path) -> None:
        _, found = doctor(tiny_llama, "--kv-cache-memory", "100KiB")

        assert found["KV cache"].verdict == "note"
        assert "1 of 168 tokens" in found["KV cache"].found
        assert "the model was made for 512 tokens" in found["KV cache"].found
        assert found["KV cache"].next_step == "raise --kv-cache-memory towards 256.0 KiB"

    def test_a_cache_that_is_too_small_is_a_problem_with_its_numbers(
        self, doctor: Run, tiny_llama: Path
    ) -> None:
        code, found = doctor(tiny_llama, "--kv-cache-memory", "1KiB")

        assert (code, found["model"].verdict) == (1, "problem")
        assert "a KV cache of 1.0 KiB holds 0 tokens" in found["model"].found
        assert "decode" not in found

    def test_weights_that_do_not_fit_are_a_problem_before_they_are_loaded(
        self, doctor: Run, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLM_SIMULATED", "memory=64KiB")
        code, found = doctor(tiny_llama)

        assert code == 1
        assert re.match(r"the weights take .* and 64\.0 KiB are free", found["model"].found)

    def test_a_step_that_fails_is_a_problem_in_the_words_of_the_platform(
        self, doctor: Run, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLM_SIMULATED", "fail_kernel=rotary@50")
        code, found = doctor(tiny_llama)

        assert code == 1
        assert found["model"].found == (
            "a step failed: RuntimeError: simulated: rotary failed on call 50 (fail_kernel)"
        )

    def test_a_model_that_is_not_there_is_a_problem_beside_the_other_findings(
        self, doctor: Run, tmp_path: Path
    ) -> None:
        code, found = doctor(tmp_path / "nothing")

        assert (code, found["model"].verdict) == (1, "problem")
        assert str(tmp_path / "nothing") in found["model"].found
        assert "torch" in found
