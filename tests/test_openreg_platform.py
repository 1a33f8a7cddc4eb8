"""A torch device from outside torch and from outside this repository's packages: installed, proven, and served from.

Whatever touches the device runs in a process of its own: torch registers such a device once in a process, for good.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from installed import environment_with
from parity import Reference, assert_greedy_parity

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "openreg_platform"
LENGTH = 16
PROMPTS = [[(31 * i + 7 * length) % 300 + 10 for i in range(length)] for length in (1, 5, 33, 80)]

RUN_LEVELS = """
import json, sys
from core.discovery import load_plugins
platform, device = load_plugins().select_platform("openreg")
assert "torch" not in sys.modules, "finding it is to load no torch"
from core.conformance import Options
from core.conformance.levels import run
levels, quick = json.loads(sys.argv[1]), json.loads(sys.argv[2])
results = run(platform, device, levels, Options(quick=quick), lambda result: None)
print(json.dumps([[result.level, result.status, str(result)] for result in results]))
"""

ANSWER = """
import json, sys
from core import LLM, SamplingParams
folder, prompts, length = json.loads(sys.argv[1])
params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
with LLM(folder, platform="openreg", dtype="float32", max_num_batched_tokens=50) as llm:
    answers = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    limits = {"top_k": 40, "top_p": 0.9, "max_tokens": length, "ignore_eos": True}
    seeded = SamplingParams(temperature=1.1, seed=3, logprobs=2, **limits)
    drawn = [output.outputs[0].token_ids for output in llm.generate(prompts, seeded, use_tqdm=False)]
    providers = {choice.what: choice.provider for choice in llm.ledger.choices}
print(json.dumps([answers, drawn, providers]))
"""

DEVICE_FACTS = """
import gc, json, torch
from core.errors import OutOfDeviceMemory, PlatformError
from core.reference.accelerator import AcceleratorExecution, AcceleratorMemory
from openreg_platform.device import LIMIT, MODULE

def refusal(call, *kinds):
    try:
        call()
    except kinds or RuntimeError as error:
        return str(error)
    return None

device, facts = "openreg:0", {}
there = torch.arange(12.0).view(3, 4).to(device)
part = there[1:, ::2]
part += 100
facts["device"] = [str(there.device), str(torch.zeros(2, device="openreg").device), there.is_openreg]
facts["view"] = [part.stride(), part.storage_offset(), there.tolist(), torch.equal(there.cpu()[1:, ::2], part.cpu())]
facts["mixed"] = refusal(lambda: there + torch.ones(4))
facts["scalar"] = (there + torch.tensor(1.0)).sum().item()
back = there.to("cpu")
back.zero_()
with torch.inference_mode():
    again = there.to("cpu")
    again.zero_()
facts["copied"] = bool((there != 0).any())
facts["made"] = [
    torch.tensor([[1, 2]], device=device).tolist(),
    torch.arange(2, 8, 3, device=device).tolist(),
    torch.full((2,), 7, device=device).tolist(),
    there.new_zeros(2).tolist(),
]
there[0] = 0
there[there > 100] = -1
facts["written"] = there.tolist()
taken = MODULE.taken
held = torch.empty(1000, device=device)
facts["taken"] = MODULE.taken - taken
del held
gc.collect()
facts["given back"] = MODULE.taken - taken
facts["too much"] = refusal(lambda: torch.empty(LIMIT + 1, dtype=torch.uint8, device=device), torch.OutOfMemoryError)

AcceleratorExecution(device).set_up()
AcceleratorExecution(device).synchronize()
memory = AcceleratorMemory(device)
before = memory.statistics()
tensor = memory.allocate((3, 1000), "float32")
now = memory.statistics()
facts["accelerator"] = [before.total == LIMIT, now.allocated, before.free - now.free, str(tensor.device)]
facts["accelerator is full"] = refusal(lambda: memory.allocate((LIMIT,), "float32"), OutOfDeviceMemory)
facts["another"] = refusal(lambda: AcceleratorMemory("openreg:1"), PlatformError)
free = memory.statistics().free
MODULE.taken += 5000
MODULE.empty_cache = lambda: setattr(MODULE, "taken", MODULE.taken - 5000)
facts["kept for reuse"] = free - AcceleratorMemory(device).statistics().free
missing = AcceleratorExecution(device, "no_such_package", "install it")
facts["no package"] = refusal(missing.set_up, PlatformError)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the package installed."""
    folder = tmp_path_factory.mktemp("openreg")
    return environment_with(SOURCE, folder) | {"LLM_CACHE": str(folder / "cache")}


def run(environment: dict[str, str], code: str, *arguments: Any) -> Any:
    """What a script in a process of its own printed, as JSON."""
    given = [json.dumps(argument) for argument in arguments]
    ran = subprocess.run(
        [sys.executable, "-c", code, *given], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def facts(environment: dict[str, str]) -> dict[str, Any]:
    return run(environment, DEVICE_FACTS)


# The platform


QUICK = {"ops": 70, "attention": 45, "memory": 20}
WHOLE = {"ops": 140, "attention": 90, "memory": 30, "communication": 80, "engine": 16, "server": 6}


@pytest.mark.parametrize(
    ("least", "quick"),
    [
        pytest.param(QUICK, True, id="in seconds"),
        pytest.param(WHOLE, False, id="whole", marks=pytest.mark.slow),
        pytest.param({"performance": 30}, True, id="performance", marks=pytest.mark.slow),
    ],
)
def test_it_keeps_the_contract_and_leaves_out_what_it_does_not_declare(
    environment: dict[str, str], least: dict[str, int], quick: bool
) -> None:
    results = run(environment, RUN_LEVELS, list(least), quick)
    counts = Counter(level for level, status, _ in results if status == "passed")
    refused = [words for _, status, words in results if status == "not supported"]

    assert [words for _, status, words in results if status == "wrong"] == []
    assert {level: counts[level] for level in least if counts[level] < least[level]} == {}
    assert all(re.search("ALiBi|kv_cache_dtypes|weight_formats", words) for words in refused)
    assert any("ALiBi" in words for words in refused) is ("attention" in least)


@pytest.mark.slow
def test_its_answers_are_those_of_transformers_and_its_own_parts_give_them(
    environment: dict[str, str], tiny_model: Callable[..., Path]
) -> None:
    folder = tiny_model("mistral", sliding_window=20)

    answers, drawn, providers = run(environment, ANSWER, [str(folder), PROMPTS, LENGTH])

    assert_greedy_parity(Reference(folder), PROMPTS, answers, LENGTH)
    assert [len(tokens) for tokens in drawn] == [LENGTH] * len(PROMPTS)
    own = ("platform", "attention", "memory", "execution", "linear", "rms_norm", "silu_and_mul")
    assert {what: providers[what] for what in own} == dict.fromkeys(own, "openreg")
    assert (providers["rotary"], providers["runner"]) == ("reference", "core")


# The device


def test_its_tensors_are_on_it_for_all_of_torch(facts: dict[str, Any]) -> None:
    assert facts["device"] == ["openreg:0", "openreg:0", True]
    assert facts["made"] == [[[1, 2]], [2, 5], [7, 7], [0.0, 0.0]]


def test_views_share_the_devices_memory_and_copies_to_the_host_do_not(facts: dict[str, Any]) -> None:
    rows = [[0.0, 1.0, 2.0, 3.0], [104.0, 5.0, 106.0, 7.0], [108.0, 9.0, 110.0, 11.0]]

    assert facts["view"] == [[4, 2], 4, rows, True]
    assert facts["written"] == [[0.0] * 4, [-1.0, 5.0, -1.0, 7.0], [-1.0, 9.0, -1.0, 11.0]]
    assert facts["copied"] is True


def test_it_refuses_to_work_on_the_hosts_tensors(facts: dict[str, Any]) -> None:
    assert facts["mixed"] == "aten.add.Tensor: a tensor of cpu among those of openreg:0"
    assert facts["scalar"] == 66 + 4 * 100 + 12


def test_its_memory_is_counted_and_limited(facts: dict[str, Any]) -> None:
    assert (facts["taken"], facts["given back"]) == (4000, 0)
    assert facts["too much"].startswith(f"openreg: {2**30 + 1} bytes, of which ")


def test_the_memory_that_the_core_has_for_any_accelerator_serves_this_one(facts: dict[str, Any]) -> None:
    assert facts["accelerator"] == [True, 12_000, 12_000, "openreg:0"]
    assert facts["accelerator is full"].startswith("4.0 GiB do not fit the memory of openreg:0")
    assert "cannot use openreg:1: it sees 1 of them; check which devices" in facts["another"]
    assert "cannot use openreg:0: no_such_package does not work with it" in facts["no package"]


def test_what_torch_keeps_for_reuse_is_given_back_before_memory_is_counted(facts: dict[str, Any]) -> None:
    assert facts["kept for reuse"] == 0


# The package


def test_the_command_lists_it_and_loads_no_device(environment: dict[str, str]) -> None:
    code = (
        "import json, sys; from core.discovery import load_plugins; found = load_plugins();"
        "one = next(f for f in found.platforms if f.name == 'openreg');"
        "print(json.dumps([one.probe.available, one.distribution, one.error, len(found.failures),"
        " 'openreg_platform.device' in sys.modules]))"
    )

    assert run(environment, code) == [True, "openreg-platform", None, 0, False]


def test_it_took_no_change_in_the_core() -> None:
    packages = ("core", "platforms", "plugins", "models", "server", "cli")
    named = [
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if "openreg" in path.read_text(encoding="utf-8")
    ]
    assert named == []


def test_a_platform_with_its_device_is_a_matter_of_some_four_hundred_lines() -> None:
    assert sum(len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")) <= 420
