"""`llm bench`: what it sends, what it counts, and what it says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.failures import CommandError, UsageError
from cli.main import main
from cli.measure import Run, Timing, latencies, percentile, throughput
from cli.workload import Workload, make_prompts
from core.clock import DEVICE_STAGES, HOST_STAGES

LIMITS: dict[str, Any] = {"vocab_size": 100, "max_model_len": 64, "encode": None}
READING: dict[str, Any] = {**LIMITS, "encode": lambda text: list(text.encode())}


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def test_random_prompts_have_the_lengths_that_were_asked_and_depend_on_the_seed_alone() -> None:
    workload = Workload(num_prompts=50, input_len=20, output_len=10, range_ratio=0.5, seed=3)
    prompts = make_prompts(workload, **LIMITS)
    assert len(prompts) == 50
    assert {len(prompt.token_ids) for prompt in prompts} <= set(range(10, 31))
    assert {prompt.num_output for prompt in prompts} <= set(range(5, 16))
    assert len({len(prompt.token_ids) for prompt in prompts}) > 5
    assert all(0 <= token < 100 for prompt in prompts for token in prompt.token_ids)
    assert make_prompts(workload, **LIMITS) == prompts
    assert make_prompts(Workload(num_prompts=50, input_len=20, output_len=10, seed=4), **LIMITS) != prompts


def test_random_prompts_that_do_not_fit_are_refused_with_the_numbers() -> None:
    with pytest.raises(CommandError, match=r"70 tokens exceeds max_model_len 64.*--input-len"):
        make_prompts(Workload(input_len=60, output_len=10), **LIMITS)


@pytest.mark.parametrize(
    "wrong",
    [{"num_prompts": 0}, {"input_len": 0}, {"output_len": -1}, {"range_ratio": 1.0}, {"range_ratio": -0.1}],
)
def test_a_workload_refuses_values_that_mean_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--" + next(iter(wrong)).replace("_", "-")):
        Workload(**wrong)


def test_a_sharegpt_file_gives_first_questions_and_the_lengths_of_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    entries = [
        conversation("ab", "cde"),
        {"conversations": []},
        conversation("x" * 90, "y"),
        conversation("f", "gh"),
    ]
    path.write_text(json.dumps(entries))
    prompts = make_prompts(Workload(num_prompts=2, dataset=path), **READING)
    assert {(bytes(prompt.token_ids), prompt.num_output) for prompt in prompts} == {(b"ab", 3), (b"f", 2)}
    fixed = make_prompts(Workload(num_prompts=2, dataset=path, output_len=7), **READING)
    assert [prompt.num_output for prompt in fixed] == [7, 7]


def test_a_sharegpt_file_with_too_little_in_it_is_refused_with_the_count(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([conversation("ab", "cde")]))
    with pytest.raises(CommandError, match="holds 1 exchanges"):
        make_prompts(Workload(num_prompts=2, dataset=path), **READING)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '[{"conversations": [1, 2]}]', "[1]", "null"])
def test_a_file_that_is_no_sharegpt_dataset_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(CommandError, match=r"other\.json"):
        make_prompts(Workload(dataset=path), **READING)
    with pytest.raises(CommandError, match=r"cannot read .*absent\.json: no such file"):
        make_prompts(Workload(dataset=tmp_path / "absent.json"), **READING)


def test_percentiles_are_interpolated_between_the_nearest_values() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], 50) == 3.0
    assert percentile([1.0, 2.0], 90) == pytest.approx(1.9)
    assert percentile([7.0], 99) == 7.0


def test_rates_and_latencies_are_counted_from_when_tokens_came() -> None:
    run = Run(2.0, [Timing(10, [0.5, 1.0, 1.5]), Timing(30, [2.0])])
    figures = throughput(run)
    assert figures["requests_per_second"] == 1.0
    assert figures["output_tokens_per_second"] == 2.0
    assert figures["total_tokens_per_second"] == 22.0
    assert figures["time_to_first_token_ms"]["mean"] == pytest.approx(1250)
    assert figures["time_per_output_token_ms"]["p50"] == pytest.approx(500)
    assert latencies([Run(1.0, [Timing(1, [1.0])])])["time_per_output_token_ms"] is None


def run_llm(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["llm", *map(str, arguments)])
    try:
        return main()
    except SystemExit as left:
        return int(left.code or 0)


SMALL = ("--input-len", 8, "--output-len", 6, "--platform", "cpu", "--quiet")


def test_bench_throughput_generates_every_token_and_writes_its_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
) -> None:
    path = tmp_path / "figures.json"
    arguments = ("bench", "throughput", "--model", tiny_llama, "--num-prompts", 5, *SMALL, "--json", path)
    assert run_llm(monkeypatch, *arguments) == 0
    figures = json.loads(path.read_text())
    assert (figures["requests"], figures["prompt_tokens"], figures["output_tokens"]) == (5, 40, 30)
    assert figures["platform"] == "cpu"
    assert figures["output_tokens_per_second"] == pytest.approx(30 / figures["seconds"])
    for name in ("time_to_first_token_ms", "time_per_output_token_ms", "request_latency_ms"):
        assert figures[name]["p50"] <= figures[name]["p90"] <= figures[name]["p99"]
    assert "output tokens per second" in capsys.readouterr().out


def test_bench_latency_measures_every_batch_after_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_llama: Path
) -> None:
    arguments = ("--batch-size", 2, "--iterations", 3, "--warmup", 1, *SMALL, "--json", "-")
    assert run_llm(monkeypatch, "bench", "latency", "--model", tiny_llama, *arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["batch_size"], figures["iterations"], figures["requests"]) == (2, 3, 6)
    assert 0 < figures["time_to_first_token_ms"]["p50"] <= figures["batch_latency_ms"]["p99"]


def test_bench_takes_a_dataset_through_the_models_own_tokenizer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([conversation("who", "are you"), conversation("what", "is it")]))
    arguments = (
        "--num-prompts",
        2,
        "--dataset",
        path,
        "--output-len",
        3,
        "--platform",
        "cpu",
        "--json",
        "-",
        "-q",
    )
    assert run_llm(monkeypatch, "bench", "throughput", "--model", tiny_llama, *arguments) == 0
    assert json.loads(capsys.readouterr().out)["output_tokens"] == 6


def test_bench_says_what_to_change_when_requests_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_llama: Path
) -> None:
    arguments = ("bench", "throughput", "--model", tiny_llama, "--input-len", 9000, "--platform", "cpu")
    assert run_llm(monkeypatch, *arguments) == 1
    assert "lower --input-len" in capsys.readouterr().err


def test_bench_latency_shows_where_the_time_of_a_step_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_llama: Path
) -> None:
    arguments = ("--batch-size", 2, "--iterations", 2, "--profile", "--json", "-", *SMALL)

    assert run_llm(monkeypatch, "bench", "latency", "--model", tiny_llama, *arguments) == 0

    figures = json.loads(capsys.readouterr().out)
    stages = [figures[f"{stage}_us_per_step"] for stage in (*HOST_STAGES, *DEVICE_STAGES)]
    assert figures["steps"] == 2 * 6  # the warm-up is not counted
    assert all(spent > 0 for spent in stages)
    assert sum(stages) * figures["steps"] < 1e6 * 60
    assert figures["host_percent"] == pytest.approx(100 * sum(stages[: len(HOST_STAGES)]) / sum(stages))


def test_bench_refuses_a_task_that_generates_nothing_before_a_model_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for command in ("throughput", "latency"):
        assert run_llm(monkeypatch, "bench", command, "--model", tmp_path / "none", "--task", "embed") == 2
        assert "--task is embed" in capsys.readouterr().err
