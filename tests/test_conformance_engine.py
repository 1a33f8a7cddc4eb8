"""The kit's whole answers: they pass on sound platforms, say what a platform lacks, and compare what they claim to."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mutant_platforms import Both, Narrow, Single, Sound

from core import LLM, SamplingParams
from core.conformance import Options, Result, traces
from core.conformance.driver import Answer, Side
from core.conformance.engine import check
from core.conformance.levels import LEVELS
from core.conformance.reference_platform import DEVICE, ReferencePlatform
from core.conformance.tiny import write_tiny_model
from core.conformance.traces import Event
from core.conformance.workbench import difference
from core.contracts.attention import Attention, AttentionSpec
from core.contracts.platform import Capabilities, Device, Platform, SchedulingLimits
from core.contracts.runner import TokenLogprobs
from core.discovery import load_plugins

TOY = Path(__file__).parent / "toy_platform"
QUICK = Options(quick=True)


def tried(platform: Platform, options: Options = QUICK) -> dict[str, Result]:
    """What the level finds, by subject and case. Nothing may be wrong."""
    device = platform.probe().devices[0]
    results = list(check(platform, device, options))
    assert [str(result) for result in results if result.problem] == []
    assert {result.level for result in results} == {"engine"}
    return {f"{result.subject}, {result.case}": result for result in results}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    monkeypatch.syspath_prepend(str(TOY))
    before = {name for name in sys.modules if name.partition(".")[0] == "toy_platform"}
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    from toy_platform import ToyPlatform  # type: ignore[import-not-found]

    yield ToyPlatform()
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_platform"]:
        del sys.modules[name]


def test_the_toy_platform_passes_and_what_it_does_not_declare_is_not_supported(toy: Platform) -> None:
    found = tried(toy)
    assert len(found) >= 16
    assert found["preemption, more sequences than the cache holds"].figures["preemptions"] > 0
    assert found["prefix, a prompt again, and one that begins alike"].figures["reused_tokens"] > 0
    assert found["steps, a replayed script in a small cache"].figures["preemptions"] > 0
    reasons = {name: result.unsupported for name, result in found.items() if result.unsupported}
    assert reasons == {
        "cache, kept in int8": "int8 is not among its kv_cache_dtypes",
        "weights, quantised to int8 while loaded": "int8 is not among its weight_formats",
    }


def test_a_device_of_one_sequence_at_a_time_is_not_asked_to_preempt() -> None:
    found = tried(Single())
    assert (
        "one alone is never preempted" in found["preemption, more sequences than the cache holds"].unsupported
    )
    assert found["window, as a batch"].unsupported == "sliding_window is not among its features"
    assert found["forks, three answers to one prompt"].passed
    assert found["steps, a replayed script"].passed


def test_a_device_without_float32_is_compared_within_its_rounding_and_the_case_says_so() -> None:
    found = tried(Narrow())
    assert {result.dtype for result in found.values()} == {"bfloat16"}
    assert found["greedy, as a batch, within 0.5"].passed
    assert "rounded otherwise" in found["seeds, in another order"].unsupported


def test_other_dtypes_are_compared_by_how_often_the_likeliest_token_agrees() -> None:
    found = tried(Both(), Options(dtypes=("float32", "bfloat16")))
    (agreement,) = (result for result in found.values() if result.subject == "agreement")
    assert agreement.dtype == "bfloat16"
    assert agreement.figures["agreement_share"] >= 0.9


def test_what_is_not_asked_for_by_name_is_not_run() -> None:
    class Reluctant(Sound):
        """Attends as long as no window is asked for."""

        def attention(self, spec: AttentionSpec, device: Device) -> Attention | None:
            if spec.sliding_window is not None:
                raise AssertionError("nobody asked for windows")
            return None

    found = tried(Reluctant(), Options(quick=True, only="greedy, as"))
    assert list(found) == ["greedy, as a batch"]


def test_what_a_platform_raises_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_SIMULATED", "oom_after=0")
    platform, device = load_plugins().select_platform("simulated")
    results = list(LEVELS["engine"].check(platform, device, QUICK))
    assert "raised OutOfDeviceMemory" in str(results[0])
    assert not any(result.passed for result in results)


# Answers


def answer(*token_ids: int, runner_up: tuple[int, float] = (9, -5.0)) -> Answer:
    logprobs = [TokenLogprobs([token, runner_up[0]], [-1.0, runner_up[1]], [1, 2]) for token in token_ids]
    return Answer(token_ids=list(token_ids), logprobs=logprobs)


@pytest.mark.parametrize(
    ("right", "found", "problem"),
    [
        (answer(1, 2, 3), answer(1, 2, 3), ""),
        (answer(1, 2, 3), answer(1, 7, 3), "token 1 is 7, expected 2"),
        (answer(1, 2, 3), answer(1, 9, 3), "token 1 is 9, expected 2"),
        (answer(1, 2, 3, runner_up=(9, -1.05)), answer(1, 9, 4), ""),
        (answer(1, 2, 3), answer(1, 2), "2 tokens, expected 3"),
        (answer(1, 2, 3), Answer(error="no"), "ended in error: no"),
    ],
)
def test_an_answer_is_right_when_every_token_is_or_was_as_likely(
    right: Answer, found: Answer, problem: str
) -> None:
    assert difference(right, found, 0.1) == problem


# Tiny models


def test_the_same_seed_writes_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    folders = [write_tiny_model(tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    first, second, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second != other
    assert len(first) == len(other)


@pytest.mark.parametrize(
    ("changes", "architecture", "window"),
    [
        ({}, "LlamaForCausalLM", None),
        ({"tie_word_embeddings": True, "num_hidden_layers": 1}, "LlamaForCausalLM", None),
        ({"sliding_window": 20, "head_dim": 32}, "MistralForCausalLM", 20),
    ],
)
def test_a_tiny_model_is_one_that_the_engine_loads(
    tmp_path: Path, changes: dict[str, Any], architecture: str, window: int | None
) -> None:
    folder = write_tiny_model(tmp_path / "model", **changes)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    with LLM(str(folder), platform="cpu", dtype="float32", skip_tokenizer_init=True) as llm:
        (output,) = llm.generate([[7, 8, 9]], params, use_tqdm=False)
        assert llm.info.architecture == architecture
        assert [group.window for group in llm.engine.scheduler.cache.groups] == [window]
    assert len(set(output.outputs[0].token_ids)) > 2, "an answer that repeats itself compares little"


# Traces


def recorded(folder: Path, script: list[Event], **limits: Any) -> traces.Trace:
    platform = ReferencePlatform(like=Capabilities(scheduling=SchedulingLimits(**limits)))
    side = Side(platform=platform, device=DEVICE, dtype="float32", block_size=16)
    with side.engine(folder, max_num_batched_tokens=32) as engine:
        return traces.record(engine, script)


def test_a_script_takes_the_same_steps_twice_and_others_under_other_limits(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    script = [
        Event(step=0, name="a", prompt=tuple(range(3, 60)), num_tokens=6),
        Event(step=1, name="b", prompt=tuple(range(50, 80)), num_tokens=6),
        Event(step=4, name="a"),
    ]
    first, again = recorded(folder, script), recorded(folder, script)
    apart = recorded(folder, script, separate_steps=True)
    assert traces.difference(first, again) == ""
    assert traces.difference(first, apart).startswith("step ")
    assert first.num_blocks == apart.num_blocks
    shorter = replace(first, steps=first.steps[:-1])
    assert traces.difference(first, shorter) == f"{len(first.steps) - 1} steps, expected {len(first.steps)}"
    assert not any(name == "a" for step in first.steps[4:] for name, *_ in step.added)


def test_the_reference_takes_over_limits_and_block_sizes_of_what_it_stands_beside() -> None:
    like = Capabilities(block_sizes=(24, 12), scheduling=SchedulingLimits(max_num_seqs=3))
    found = ReferencePlatform(like).capabilities(Device(name="any", torch_device="cpu"))
    assert (found.block_sizes, found.scheduling) == (like.block_sizes, like.scheduling)


def test_a_platform_that_is_not_installed_cannot_be_served() -> None:
    (result,) = LEVELS["server"].check(Sound(), DEVICE, QUICK)
    assert result.unsupported == "sound is not installed, and a server finds platforms by their names"
