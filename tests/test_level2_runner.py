"""Level 2: a platform that brings its own runner, or replaces one stage of the core's.

The scheduler, the block tables and everything a user sees stay the core's.
"""

import random
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest
from parity import Reference, assert_greedy_parity

from core import EngineConfig, SamplingParams
from core.discovery import Plugins, collect
from core.engine.build import build_engine
from core.engine.engine import Engine
from core.engine.request import Request
from core.errors import ConfigError, ContractViolation, UnsupportedShape
from core.hookspecs import GROUP

LENGTH = 24
GREEDY = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    own = [
        EntryPoint(name=module, value=module, group=GROUP) for module in ("level2_platform", "level2_static")
    ]
    plugins = collect([*entry_points(group=GROUP), *own])
    assert plugins.failures == ()
    return plugins


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> Reference:
    return Reference(tiny_llama)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(11)
    made = [[rng.randrange(5, 320) for _ in range(n)] for n in (1, 3, 15, 16, 17, 40, 75)]
    return [*made, made[5][:32] + made[1], made[6]]


class Driver:
    """An engine and the few lines that drive it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(self, prompts: Sequence[list[int]], params: SamplingParams) -> list[list[list[int]]]:
        """Per prompt, the tokens of each answer."""
        answers = [[[] for _ in range(params.n)] for _ in prompts]  # type: list[list[list[int]]]
        for i, prompt in enumerate(prompts):
            self.engine.add(Request(request_id=str(i), prompt_token_ids=prompt, params=params))
        while self.engine.has_work:
            for delta in self.engine.step():
                assert delta.error is None
                answers[int(delta.request_id)][delta.index] += delta.token_ids
        return answers


@pytest.fixture
def start(tiny_llama: Path, plugins: Plugins) -> Iterator[Any]:
    engines: list[Engine] = []

    def start(platform: str, **settings: Any) -> Driver:
        config = EngineConfig(
            **{"model": str(tiny_llama), "platform": platform, "dtype": "float32"} | settings
        )
        engines.append(build_engine(config, plugins=plugins))
        return Driver(engines[-1])

    yield start
    for engine in engines:
        engine.close()


WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "chunks of 10": {"max_num_batched_tokens": 10},
    "blocks of 4": {"block_size": 4},
    "no prefix cache": {"enable_prefix_caching": False},
    "few blocks": {"kv_cache_memory": 8 * 8192, "max_model_len": 104},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("platform", ["numpy", "static"])
def test_greedy_tokens_are_those_of_transformers(
    reference: Reference, start: Any, prompts: list[list[int]], platform: str, way: str
) -> None:
    driver = start(platform, **WAYS[way])

    answers = [answer for (answer,) in driver.run(prompts, GREEDY)]

    assert_greedy_parity(reference, prompts, answers, LENGTH)
    statistics = driver.engine.statistics()
    assert (statistics.num_preemptions > 0) == (way == "few blocks")
    if way == "as it comes":  # continuous batching: 9 prompts and 24 tokens each in little more than 24 steps
        assert statistics.num_steps < LENGTH + 4
        assert driver.run(prompts, GREEDY) == [[answer] for answer in answers]
        assert driver.engine.statistics().prefix_cache_hits >= 16 + 16 + 32 + 64 + 64


def test_seeds_penalties_and_several_answers_work_as_on_any_platform(
    start: Any, prompts: list[list[int]]
) -> None:
    params = SamplingParams(n=3, seed=5, temperature=1.2, top_p=0.9, repetition_penalty=1.2, max_tokens=16)
    expected = start("cpu").run(prompts, params)
    for platform in ("numpy", "static"):
        assert start(platform).run(prompts, params) == expected


def test_the_ledger_names_who_runs_the_model(start: Any) -> None:
    def runner(platform: str) -> list[tuple[str, str]]:
        choices = start(platform).engine.ledger.choices
        return [(choice.provider, choice.detail) for choice in choices if choice.what == "runner"]

    assert runner("numpy") == [("numpy", "NumpyRunner")]
    assert runner("static") == [("static", "StaticRunner")]
    assert runner("cpu") == [("core", "ModelRunner")]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("runner", r"platform static: runner\(\) returned a str: None or a subclass of .*Runner is expected"),
        ("defaults", r"platform static: defaults\(\) returned 'anything'; Defaults are expected"),
    ],
)
def test_a_factory_that_returns_something_else_breaks_the_contract(
    start: Any, monkeypatch: pytest.MonkeyPatch, factory: str, message: str
) -> None:
    monkeypatch.setattr(f"level2_static.StaticPlatform.{factory}", lambda self, *given: "anything")
    with pytest.raises(ContractViolation, match=message):
        start("static")


def test_the_stage_that_was_replaced_is_the_one_that_runs(start: Any, prompts: list[list[int]]) -> None:
    driver = start("static", max_num_batched_tokens=200)
    driver.run(prompts, GREEDY)
    sizes = {choice.detail for choice in driver.engine.ledger.choices if choice.what == "step size"}
    assert sizes == {"64", "256"}, "prompts of 200 tokens a step, then a decode for each of nine"


def test_its_manifest_is_obeyed_before_its_runner_is_asked(
    start: Any, tiny_model: Any, tiny_llama: Path
) -> None:
    with pytest.raises(ConfigError, match="dtype is bfloat16; this device accepts float32"):
        start("numpy", dtype="bfloat16")
    with pytest.raises(ConfigError, match="block_size is 8; this device accepts 16, 4"):
        start("numpy", block_size=8)
    windowed = str(tiny_model("mistral", sliding_window=20))
    for platform in ("static", "numpy"):
        with pytest.raises(UnsupportedShape, match="sliding window of 20"):
            start(platform, model=windowed)
