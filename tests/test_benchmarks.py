"""The comparison with other engines: the same work every time, and a table that says what the lines say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PEERS = Path(__file__).resolve().parent.parent / "benchmarks" / "peers"
MODEL = "SmolLM2-135M-Instruct"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peers_{name}", PEERS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workload() -> ModuleType:
    return loaded("workload")


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PEERS / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# The work


def test_the_work_is_the_same_in_every_process(workload: ModuleType) -> None:
    again = loaded("workload")
    for prompts in (
        lambda module: module.offline(),
        lambda module: module.batch(4, 64, 103),
        lambda module: module.shared(),
        lambda module: module.served(32, 2.0),
        lambda module: module.arrivals(32, 2.0),
    ):
        assert prompts(workload) == prompts(workload) == prompts(again)


def test_the_ids_are_those_of_every_figure_that_was_ever_quoted(workload: ModuleType) -> None:
    assert [len(prompt) for prompt in workload.offline()[:6]] == [46, 335, 266, 65, 126, 111]
    assert workload.offline()[0][:4] == [24656, 5766, 28867, 43600]
    assert workload.batch(1, 128, 101)[0][:4] == [11016, 17270, 12953, 438]
    assert workload.shared()[0][:4] == [21322, 9986, 25975, 42759]
    assert workload.served(32, 2.0)[0][:4] == [1020, 19059, 20655, 13134]


def test_the_work_has_the_sizes_that_are_documented(workload: ModuleType) -> None:
    offline, shared, again = workload.offline(), workload.shared(), workload.shared_again()
    assert len(offline) == 64
    assert all(32 <= len(prompt) <= 512 for prompt in offline)
    assert [len(prompt) for prompt in workload.batch(3, 128, 1)] == [128] * 3
    assert {len(prompt) for prompt in shared} == {1056} and len(shared) == 16
    assert len({tuple(prompt[:1024]) for prompt in shared + again}) == 1
    assert len({tuple(prompt) for prompt in shared + again}) == 32
    served = workload.served(32, 2.0)
    assert sum(map(len, served)) / len(served) == pytest.approx(198, abs=1)
    every = [token for prompt in offline + shared + served for token in prompt]
    assert all(100 <= token < 49_000 for token in every)


def test_no_prompt_of_a_batch_or_of_a_rate_is_warm_from_another(workload: ModuleType) -> None:
    firsts = [workload.batch(1, 128, seed)[0][:4] for seed in range(50)]
    assert len({tuple(first) for first in firsts}) == 50
    slow, fast = workload.served(8, 2.0), workload.served(8, 8.0)
    assert {prompt[0] for prompt in slow}.isdisjoint(prompt[0] for prompt in fast)
    assert [prompt[1:] for prompt in slow] == [prompt[1:] for prompt in fast]


# The table


def engine_line(engine: str, round_number: int, **figures: float) -> dict[str, Any]:
    line = {"kind": "engine", "model": MODEL, "mode": "bf16", "engine": engine, "round": round_number}
    return line | {"offline_requests": 64, "repeats": 3} | figures


LINES = [
    {"kind": "bandwidth", "model": MODEL, "round": 1, "best_gb_s": 28.0},
    {"kind": "bandwidth", "model": MODEL, "round": 1, "best_gb_s": 32.0},
    engine_line("vllm", 1, offline_out_tok_s=400.0, tpot1_ms=25.0),
    engine_line("core", 1, offline_out_tok_s=500.0, tpot1_ms=10.0, peak_rss_mb=1500),
    engine_line("core", 2, offline_out_tok_s=600.0, tpot1_ms=12.0, peak_rss_mb=1500),
    engine_line("core", 3, offline_out_tok_s=560.0, tpot1_ms=11.0, peak_rss_mb=1500),
    engine_line("vllm", 2, offline_out_tok_s=380.0, tpot1_ms=30.0),
    engine_line("vllm", 3, offline_out_tok_s=420.0, tpot1_ms=26.0),
    {"kind": "failure", "model": MODEL, "mode": "bf16", "engine": "openvino", "round": 1, "error": "lost"},
]


def rows(tmp_path: Path, lines: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The rows of all tables by their first cell; the text before them under its first word."""
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = script("table.py", path)
    assert result.returncode == 0, result.stderr
    found: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        if line.startswith("|"):
            cells = [part.strip() for part in line.strip("|").split("|")]
            found[cells[0]] = cells[1:]
        elif line:
            found[line.split()[0]] = [line]
    return found


def test_the_table_holds_medians_with_their_range_ours_first(tmp_path: Path) -> None:
    found = rows(tmp_path, LINES)
    assert found[""] == ["core (n=3)", "vllm (n=3)", "core is better by", "target"]
    assert found["offline, output tok/s"][:2] == ["560 [500–600]", "400 [380–420]"]
    assert found["TPOT, ms"][:2] == ["11.00 [10.00–12.00]", "26.00 [25.00–30.00]"]
    assert found["Memory"] == ["Memory was read at 30.0 GB/s [28.0–32.0], 2 readings."]
    assert "openvino bf16" in found["-"][0] and "lost" in found["-"][0]


def test_a_ratio_above_one_is_in_our_favour_and_a_time_is_inverted(tmp_path: Path) -> None:
    found = rows(tmp_path, LINES)
    # 500/400, 600/380 and 560/420 round by round; 25/10, 30/12 and 26/11.
    assert found["offline, output tok/s"][2:] == ["1.40 [1.25–1.58] × vllm", "1.30 × vllm: yes"]
    assert found["TPOT, ms"][2] == "2.36 [2.36–2.50] × vllm"
    assert found["peak RSS, MB"][1:] == ["–", "", ""]


def test_a_target_over_an_engine_that_did_not_run_is_not_called_met(tmp_path: Path) -> None:
    assert rows(tmp_path, LINES)["TPOT, ms"][3] == "1.00 × llama_cpp: not measured"


def test_a_target_over_a_peer_that_is_not_the_best_shows_both_ratios(tmp_path: Path) -> None:
    found = rows(tmp_path, [*LINES, engine_line("openvino", 1, offline_out_tok_s=700.0)])
    assert found["offline, output tok/s"][3:] == [
        "0.80 × openvino",
        "1.30 × vllm (1.40 [1.25–1.58]): yes",
    ]


def test_a_target_that_is_missed_says_no(tmp_path: Path) -> None:
    lines = [engine_line("core", 1, offline_out_tok_s=500.0), engine_line("vllm", 1, offline_out_tok_s=400.0)]
    assert rows(tmp_path, lines)["offline, output tok/s"][3] == "1.30 × vllm: **no**"


def test_runs_of_different_work_share_no_table(tmp_path: Path) -> None:
    other = engine_line("vllm", 1, offline_out_tok_s=900.0) | {"offline_requests": 8}
    assert rows(tmp_path, [LINES[3], other])["offline, output tok/s"] == ["900", "–", "–"]


# The configuration


def refusal(tmp_path: Path, engines: str) -> str:
    """The one line that run.py ends with, having run nothing."""
    path = tmp_path / "peers.toml"
    path.write_text(f'model = "tiny"\nresults = "results.jsonl"\n{engines}\n')
    result = script("run.py", path)
    assert (result.returncode, result.stdout) == (2, "")
    assert not (tmp_path / "results.jsonl").exists()
    assert result.stderr.startswith(f"run.py: {path}: ") and result.stderr.count("\n") == 1
    return result.stderr


def engine_table(name: str, models: str, more: str = "") -> str:
    return f"[engines.{name}]\nprogram = {json.dumps(sys.executable)}\nmodels = {models}\n{more}"


def test_a_configuration_with_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, engine_table("vlm", "{ bf16 = '.' }"))
    assert "unknown engine 'vlm'; known: core, vllm, openvino, llama_cpp" in said


def test_a_configuration_with_a_missing_model_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, engine_table("vllm", "{ bf16 = '.', int8 = 'absent' }"))
    assert f"[engines.vllm] has no model for int8: {tmp_path / 'absent'} is not there" in said
    assert "[engines.core] has no model: name one" in refusal(tmp_path, engine_table("core", "{}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds = 0", "rounds is 0; it is a whole number of at least 1"),
        ("round = 3", "unknown key 'round'; known: model,"),
        ("cases = ['speed']", "cases is ['speed']; it is a list out of answer, single"),
        ("", "the file lacks 'engines', a table"),
        ("[engines.core]\nmodels = { bf16 = '.' }\nprogram = './absent'", "./absent is no program"),
        ("[engines.core]\nmodels = { fp4 = '.' }\nprogram = 'sh'", "unknown key 'fp4'; known: f32, bf16"),
        (engine_table("core", "{ bf16 = '.' }", "[served]\nmode = 'int8'"), "mode int8, which no engine has"),
    ],
)
def test_what_else_is_wrong_with_a_configuration_is_said(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)
