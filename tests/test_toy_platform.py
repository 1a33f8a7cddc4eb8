"""A platform from another distribution, installed as a user would install it, does all that ours do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from installed import environment_with
from parity import Reference, assert_greedy_parity

from core.conformance.levels import LEVELS

SOURCE = Path(__file__).parent / "toy_platform"
LENGTH = 24
BRIEF = ("ops", "attention", "memory", "engine", "server")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 20},
    "qwen2": {},
    "qwen3": {},
}
PROMPTS = [[(31 * i + 7 * length) % 300 + 10 for i in range(length)] for length in (1, 5, 16, 33, 80)]
ANSWER_ALL = """
import json, sys
from core import LLM, SamplingParams
folders, prompts, length = json.loads(sys.argv[1])
params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
found = {}
for folder in folders:
    with LLM(folder, platform="toy", dtype="float32", max_num_batched_tokens=50) as llm:
        answers = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
        found[folder] = [answers, {choice.what: choice.provider for choice in llm.ledger.choices}]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the toy platform installed."""
    return environment_with(SOURCE, tmp_path_factory.mktemp("toy"))


def python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_is_no_longer_than_an_example_may_be() -> None:
    assert sum(len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")) <= 150


def test_the_command_lists_it_with_its_distribution(environment: dict[str, str]) -> None:
    found = json.loads(python(environment, "-m", "cli", "platforms", "--json").stdout)
    toy = next(platform for platform in found["platforms"] if platform["name"] == "toy")
    assert (toy["available"], toy["distribution"], toy["error"]) == (True, "toy-platform", None)
    assert found["failures"] == []
    without = json.loads(python(dict(os.environ), "-m", "cli", "platforms", "--json").stdout)
    assert "toy" not in [platform["name"] for platform in without["platforms"]]


def test_it_passes_the_parity_tests_of_every_family(
    environment: dict[str, str], tiny_model: Callable[..., Path]
) -> None:
    folders = {family: str(tiny_model(family, **overrides)) for family, overrides in FAMILIES.items()}
    done = python(environment, "-c", ANSWER_ALL, json.dumps([[*folders.values()], PROMPTS, LENGTH]))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for folder in folders.values():
        answers, providers = found[folder]
        assert_greedy_parity(Reference(Path(folder)), PROMPTS, answers, LENGTH)
        assert {
            what: providers[what] for what in ("platform", "attention", "linear", "rms_norm")
        } == dict.fromkeys(("platform", "attention", "linear", "rms_norm"), "toy")
        assert providers["rotary"] == "reference" and providers["runner"] == "core"


@pytest.mark.parametrize("levels", [BRIEF, pytest.param(tuple(LEVELS), marks=pytest.mark.slow)], ids=len)
def test_it_passes_every_level_of_the_conformance_kit(
    environment: dict[str, str], levels: tuple[str, ...]
) -> None:
    options = ["--platform", "toy", "--quick", "--json", *(f"--level={level}" for level in levels)]
    done = python(environment, "-m", "cli", "conformance", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert {name: level["wrong"] for name, level in found["levels"].items()} == dict.fromkeys(levels, 0)
    assert all(level["passed"] > 5 for level in found["levels"].values())
    assert (found["distribution"], found["lines"]["other"]) == ("toy-platform", 0)


@contextmanager
def served(environment: dict[str, str], folder: Path) -> Iterator[str]:
    """`llm serve` in a process of its own; yields its address."""
    options = ["--platform", "toy", "--dtype", "float32", "--port", "0", "--served-model-name", "tiny"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", str(folder), *options, "--kv-cache-memory", "16MiB"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving tiny on http"), line
        yield line.split()[-1]
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_server_serves_from_it(environment: dict[str, str], tiny_llama: Path) -> None:
    with (
        served(environment, tiny_llama) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        completion = client.completions.create(
            model="tiny",
            prompt=PROMPTS[3],
            max_tokens=LENGTH,
            temperature=0,
            logprobs=0,
            extra_body={"ignore_eos": True},
        )
        chunks = list(
            client.completions.create(
                model="tiny",
                prompt=PROMPTS[3],
                max_tokens=LENGTH,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            )
        )
    assert completion.usage is not None and completion.usage.completion_tokens == LENGTH
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == completion.choices[0].text
