"""`llm bench serve`: what it sends, and that its figures are those of what came back."""

import asyncio
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from statistics import mean, stdev
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from commands import Answer, called
from live_server import NAME, ThreadedServer

from cli.failures import UsageError
from cli.traffic.arrivals import drive, moments
from cli.traffic.records import Record, figures_of, keeps
from cli.traffic.settings import Load, Target, Texts, limits_of
from cli.traffic.texts import WORDS, Question, Ruler, make_questions, probes
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

Bench = Callable[..., dict[str, Any]]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return lambda *arguments: called(monkeypatch, capsys, "bench", "serve", "--quiet", *arguments)


@pytest.fixture
def bench(run: Callable[..., Answer]) -> Bench:
    """The figures that it prints as JSON."""

    def figures(*arguments: object) -> dict[str, Any]:
        answer = run("--json", "-", *arguments)
        assert answer.code == 0, answer.err
        return json.loads(answer.out)

    return figures


# --- against a live server ----------------------------------------------------------------------------------


def generated(url: str) -> float:
    """Tokens that the server has made since it began, by its own count."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:generation_tokens_total{")
    )


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_the_figures_of_a_closed_loop_add_up(bench: Bench, url: str, api: str) -> None:
    before = generated(url)
    found = bench(
        "--base-url", url, "--api", api, "--num-requests", 12, "--concurrency", 4,
        "--input-len", "20:60", "--output-len", "5:9", "--warmup", 2,
    )  # fmt: skip
    sent = found["requests_sent"]
    assert found["settings"]["model"] == NAME
    assert (found["requests"], found["completed"], found["failed"], found["errors"]) == (12, 12, 0, {})
    assert found["output_tokens"] == sum(request["output_tokens"] for request in sent)
    assert {request["output_tokens"] for request in sent} <= set(range(5, 10))
    assert found["output_tokens"] + 2 * 8 == generated(url) - before
    assert found["output_tokens_per_second"] == pytest.approx(found["output_tokens"] / found["seconds"])
    total = found["prompt_tokens"] + found["output_tokens"]
    assert found["total_tokens_per_second"] == pytest.approx(total / found["seconds"])
    assert 2 <= found["most_requests_at_once"] <= 4
    for request in sent:
        assert 0 < request["ttft_ms"] <= request["e2e_ms"]
        assert request["e2e_ms"] == pytest.approx((request["ended_s"] - request["due_s"]) * 1e3)
    for name in ("time_to_first_token", "time_per_output_token", "inter_token_latency", "request_latency"):
        times = found[f"{name}_ms"]
        assert 0 < times["p50"] <= times["p90"] <= times["p95"] <= times["p99"]


def test_prompts_have_the_length_that_was_asked_though_the_client_has_no_tokenizer(
    bench: Bench, url: str
) -> None:
    found = bench("--base-url", url, "--num-requests", 6, "--input-len", 100, "--output-len", 2)
    lengths = [request["prompt_tokens"] for request in found["requests_sent"]]
    assert all(80 <= length <= 125 for length in lengths), lengths
    exact = bench(
        "--base-url", f"{url}/v1", "--num-requests", 3, "--input-len", 77, "--output-len", 2, "--vocab-size", 300
    )  # fmt: skip
    assert [request["prompt_tokens"] for request in exact["requests_sent"]] == [77] * 3


def test_a_rate_spreads_requests_over_time_and_limits_count_those_that_keep_them(
    bench: Bench, url: str
) -> None:
    common = ("--base-url", url, "--num-requests", 8, "--request-rate", 40, "--output-len", 3)
    found = bench(*common, "--slo", "ttft:60000", "--slo", "e2e:60000")
    due = [request["due_s"] for request in found["requests_sent"]]
    assert due == pytest.approx(list(islice(moments(Load(request_rate=40), 0), 8)))
    assert found["goodput_percent"] == 100
    assert found["goodput_requests_per_second"] == pytest.approx(found["requests_per_second"])
    assert bench(*common, "--slo", "e2e:0.001")["goodput_percent"] == 0


def test_charts_are_a_png_and_the_tables_say_the_same_as_the_json(
    run: Callable[..., Answer], url: str, tmp_path: Path
) -> None:
    plot, figures = tmp_path / "run.png", tmp_path / "run.json"
    answer = run(
        "--base-url", url, "--num-requests", 4, "--output-len", 4, "--plot", plot, "--json", figures, "--slo", "tpot:9"
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert plot.read_bytes()[:8] == PNG
    assert len(plot.read_bytes()) > 10_000
    found = json.loads(figures.read_text())
    assert f"{found['output_tokens_per_second']:,.2f}" in answer.out
    assert f"{found['time_to_first_token_ms']['p95']:,.2f}" in answer.out


def test_a_dataset_gives_prompts_and_lengths(bench: Bench, url: str, tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    turns = [("What is a tide?", "The sea, twice a day. " * 3), ("Who are you?", "Nobody, really. " * 9)]
    talks = [[{"from": "human", "value": q}, {"from": "gpt", "value": a}] for q, a in turns]
    path.write_text(json.dumps([{"conversations": talk} for talk in talks]))
    found = bench("--base-url", url, "--dataset", path, "--num-requests", 2)
    lengths = sorted(request["output_tokens"] for request in found["requests_sent"])
    assert lengths[0] == pytest.approx(66, rel=0.3)  # of a tokenizer of bytes
    assert lengths[1] == pytest.approx(144, rel=0.3)
    fixed = bench("--base-url", url, "--dataset", path, "--num-requests", 2, "--output-len", 3)
    assert fixed["output_tokens"] == 6


def test_a_key_is_sent(run: Callable[..., Answer], server: ThreadedServer, monkeypatch: Any) -> None:
    closed = server.open(ServerSettings(port=0, served_model_name=NAME, api_key="sesame"))
    arguments = ("--base-url", closed, "--num-requests", 1, "--output-len", 1)
    refused = run(*arguments)
    assert (refused.code, "HTTP 401" in refused.err) == (1, True)
    assert run(*arguments, "--api-key", "sesame").code == 0
    monkeypatch.setenv("LLM_API_KEY", "sesame")
    assert run(*arguments).code == 0


# --- servers that fail ----------------------------------------------------------------------------------------


class Stub(BaseHTTPRequestHandler):
    """Fails in the way that a request's prompt begins with, as no server of ours would on demand."""

    protocol_version = "HTTP/1.1"
    ways: list[str] = []
    stalled = Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        way = self.ways.pop(0) if self.ways else "good"
        if way.isdigit():
            self._send(int(way), b'{"error": {"message": "too busy"}}')
            return
        if way == "gone":
            self.connection.close()
            self.close_connection = True
            return
        piece = b'data: {"choices": [{"text": "x", "finish_reason": null}]}\n\n'
        ends = {
            "cut": b"",
            "event": b'data: {"error": {"message": "the engine has stopped"}}\n\n',
            "nonsense": b"data: {oops\n\n",
            "good": b"data: [DONE]\n\n",
        }
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        self.wfile.write(piece * 3)
        if way == "stall":
            self.wfile.flush()
            self.stalled.wait(30)
        else:
            self.wfile.write(ends[way])

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def stub(*ways: str) -> Iterator[str]:
    """The address of a server that fails in these ways, one request after the other, and then no more."""
    kind = type("Ways", (Stub,), {"ways": list(ways), "stalled": Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            kind.stalled.set()
            server.shutdown()
            thread.join()


def test_failures_are_counted_by_kind_and_are_no_answers(run: Callable[..., Answer], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with stub("429", "500", "429", "gone", "cut", "event", "nonsense", "stall", "good") as url:
        answer = run(
            "--base-url", url, "--model", "m", "--num-requests", 9, "--concurrency", 1, "--warmup", 0,
            "--timeout", 2, "--json", path, "--slo", "e2e:60000",
        )  # fmt: skip
    assert answer.code == 0, answer.err
    found = json.loads(path.read_text())
    assert found["errors"] == {
        "HTTP 429": 2,
        "HTTP 500": 1,
        "connection lost": 1,
        "cut off": 1,
        "error in the stream": 1,
        "not understood": 1,
        "timeout": 1,
    }
    assert (found["completed"], found["failed"]) == (1, 8)
    assert found["output_tokens"] == 3  # counted from the pieces, for the stub tells no usage
    assert found["goodput_percent"] == pytest.approx(100 / 9)
    assert "2 failed: HTTP 429: too busy" in answer.out
    assert "the engine has stopped" in answer.out


def test_a_run_in_which_nothing_is_answered_leaves_with_1(run: Callable[..., Answer], tmp_path: Path) -> None:
    with stub() as url:
        pass  # the port is free now
    arguments = ("--base-url", url, "--model", "m", "--num-requests", 3, "--warmup", 0)
    answer = run(*arguments, "--plot", tmp_path / "p.png")
    assert answer.code == 1
    assert "3 failed: cannot connect" in answer.out
    assert (tmp_path / "p.png").read_bytes()[:8] == PNG


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_file_that_cannot_be_written_is_named_before_anything_is_sent(
    run: Callable[..., Answer], tmp_path: Path, option: str
) -> None:
    answer = run("--base-url", "http://127.0.0.1:9", option, tmp_path / "absent" / "file")
    assert answer.code == 1
    assert f"cannot write {tmp_path}/absent/file: no such file or directory" in answer.err


def test_a_warm_up_that_fails_ends_the_run_with_the_reason(run: Callable[..., Answer]) -> None:
    with stub("503") as url:
        failed = run("--base-url", url, "--model", "m")
    assert (failed.code, "HTTP 503: too busy" in failed.err) == (1, True)
    refused = run("--base-url", url)
    assert (refused.code, "cannot reach" in refused.err) == (1, True)


@pytest.mark.parametrize(
    ("library", "arguments"), [("aiohttp", ()), ("matplotlib.figure", ("--plot", "p.png"))]
)
def test_a_library_that_is_missing_is_named_before_anything_is_sent(
    run: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, library: str, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    answer = run("--base-url", "http://127.0.0.1:9", *arguments)
    assert answer.code == 1
    assert library.partition(".")[0] in answer.err
    assert "core[bench]" in answer.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--base-url", "localhost:8000"), "--base-url"),
        (("--base-url", "http://:80"), "--base-url"),
        (("--api", "responses"), "--api"),
        (("--timeout", "nan"), "--timeout"),
        (("--temperature", "nan"), "--temperature"),
        (("--num-requests", 0), "--num-requests"),
        (("--concurrency", 0), "--concurrency"),
        (("--request-rate", 0), "--request-rate"),
        (("--request-rate", "nan"), "--request-rate"),
        (("--burstiness", 2), "--request-rate"),
        (("--burstiness", 0, "--request-rate", 1), "--burstiness"),
        (("--input-len", "9:3"), "--input-len"),
        (("--output-len", "some"), "--output-len"),
        (("--slo", "ttft"), "--slo"),
        (("--slo", "fast:3"), "ttft, tpot, e2e"),
        (("--slo", "ttft:nan"), "--slo"),
        (("--vocab-size", 9, "--api", "chat"), "--vocab-size"),
        (("--dataset", "x.json", "--input-len", 4), "--input-len"),
    ],
    ids=str,
)
def test_an_option_that_means_nothing_is_named(
    run: Callable[..., Answer], arguments: tuple[object, ...], words: str
) -> None:
    answer = run(*arguments)
    assert answer.code == 2
    assert words in answer.err


# --- its arithmetic -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("burstiness", "spread"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)])
def test_arrivals_have_the_rate_that_was_asked_and_the_spread_of_their_distribution(
    burstiness: float, spread: float
) -> None:
    load = Load(request_rate=5.0, burstiness=burstiness)
    times = list(islice(moments(load, 3), 20_000))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert times[0] == 0
    assert mean(gaps) == pytest.approx(1 / 5, rel=0.06)
    assert stdev(gaps) / mean(gaps) == pytest.approx(spread, rel=0.06)
    if burstiness == 1:  # half of exponential gaps are below ln 2 of their mean
        assert sum(gap < math.log(2) / 5 for gap in gaps) / len(gaps) == pytest.approx(0.5, abs=0.02)
    assert times == list(islice(moments(load, 3), 20_000))
    assert set(islice(moments(Load(request_rate=math.inf), 3), 9)) == {0}


def test_waiting_for_a_place_counts_where_requests_have_moments_of_their_own() -> None:
    async def ask(question: Question, record: Record, began: float) -> Record:
        await asyncio.sleep(0.05)
        record.ended = asyncio.get_running_loop().time() and record.sent + 0.05
        record.pieces = [record.ended]
        return record

    questions = [Question("", 1)] * 4
    crowded = Load(request_rate=math.inf, concurrency=1)
    records = asyncio.run(drive(crowded, questions, ask, seed=0))
    assert [record.due for record in records] == [0] * 4
    assert records[3].ttft is not None and records[3].ttft >= 0.2
    assert figures_of(records, {})["most_requests_at_once"] == 1
    closed = asyncio.run(drive(Load(concurrency=1), questions, ask, seed=0))
    assert all(record.ttft == pytest.approx(0.05) for record in closed)


def test_times_of_a_request_are_taken_from_when_it_was_due() -> None:
    record = Record(1.0, sent=1.5, ended=4.0, pieces=[2.0, 2.5, 3.5], num_prompt=7, num_output=4)
    assert (record.ttft, record.tpot, record.e2e, record.gaps) == (1.0, 0.5, 3.0, [0.5, 1.0])
    assert (Record(0.0).ttft, Record(0.0, pieces=[1.0], num_output=1).tpot) == (None, None)
    figures = figures_of([record, Record(0.0, sent=0.0, ended=2.0, error="timeout")], {"ttft": 1500})
    assert (figures["completed"], figures["failed"], figures["errors"]) == (1, 1, {"timeout": 1})
    assert figures["output_tokens_per_second"] == 1.0
    assert figures["total_tokens_per_second"] == 11 / 4
    assert figures["most_requests_at_once"] == 2
    assert (figures["goodput_percent"], figures["goodput_requests_per_second"]) == (50, 0.25)
    assert figures["sent_late_ms"]["mean"] == 500


def test_a_limit_is_kept_by_what_is_as_fast_or_has_no_such_time() -> None:
    record = Record(0.0, ended=1.0, pieces=[0.5], num_output=1)
    assert keeps(record, limits_of(["ttft:500", "tpot:1", "e2e:1000"]))
    assert not keeps(record, {"ttft": 499.0})
    assert not keeps(Record(0.0, error="timeout"), {"ttft": 1e9})


def test_texts_are_as_long_as_the_server_counts_them() -> None:
    ruler = Ruler.of([(64, 30 + 16), (512, 30 + 128)])  # a template of 30 tokens, 4 characters per token
    assert ruler.tokens("x" * 400) == 100
    for question in make_questions(Texts(input_len="50:60", output_len="7"), 20, ruler):
        assert isinstance(question.prompt, str)
        assert 50 <= ruler.tokens(question.prompt) <= 63
        assert question.num_output == 7
        assert set(question.prompt.split()) <= set(WORDS)
    assert Ruler.of([]) == Ruler.of([(64, 9)]) == Ruler.of([(64, 9), (512, 9)]) == Ruler()


def test_the_seed_alone_decides_what_is_sent_and_the_warm_up_sends_something_else() -> None:
    texts = Texts(vocab_size=50, input_len="5:9", seed=4)
    made = make_questions(texts, 30, Ruler())
    assert made == make_questions(texts, 30, Ruler(0.5))
    assert made != make_questions(Texts(vocab_size=50, input_len="5:9", seed=5), 30, Ruler())
    assert {len(question.prompt) for question in made} == set(range(5, 10))
    assert all(0 <= token < 50 for question in made for token in question.prompt if isinstance(token, int))
    assert not {str(q.prompt) for q in made} & {str(q.prompt) for q in probes(texts, 4)}
    assert [len(question.prompt) for question in probes(texts, 3)] == [16, 128, 16]


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://a.example/v1/", "https://a.example/v1"),
        ("https://a.example/openai/v1", "https://a.example/openai/v1"),
    ],
)
def test_an_address_may_be_given_with_or_without_v1(given: str, root: str) -> None:
    assert Target(base_url=given).root == root


def test_random_lengths_reach_both_ends() -> None:
    source = Random(0)
    low, high = Texts(input_len="3:5").input_range
    assert {source.randint(low, high) for _ in range(99)} == {3, 4, 5}
    with pytest.raises(UsageError, match="--input-len"):
        Texts(input_len="0")
