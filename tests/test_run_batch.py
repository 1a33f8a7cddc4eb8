"""`llm run-batch`: every request has one answer, whatever becomes of a run."""

import asyncio
import fcntl
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Answer
from live_server import gone, wait_for

from cli.app import app
from cli.batch.journal import Journal
from cli.batch.requests import BatchRequest
from cli.batch.running import Batch
from cli.failures import CommandError

ENGINE = ("--platform", "cpu", "--dtype", "float32", "--kv-cache-memory", "32MiB", "--quiet")
Llm = Callable[..., Answer]


@pytest.fixture
def run_batch(capsys: pytest.CaptureFixture[str]) -> Llm:
    """The command in this process; its engine has one of its own."""

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app(["run-batch", *map(str, arguments)], prog_name="llm")
        captured = capsys.readouterr()
        return Answer(int(left.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., Path]:
    def written(*lines: Any) -> Path:
        path = tmp_path / "in.jsonl"
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return path

    return written


def completion(custom_id: str, **body: Any) -> dict[str, Any]:
    return request(
        custom_id, "/v1/completions", **{"prompt": custom_id, "max_tokens": 5, "temperature": 0} | body
    )


def request(custom_id: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def lines(path: Path) -> dict[str, Any]:
    """The lines of an output by custom_id, each of which is there once."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    by_id = {line["custom_id"]: line for line in found}
    assert len(by_id) == len(found)
    return by_id


def texts(path: Path) -> dict[str, str]:
    return {name: line["response"]["body"]["choices"][0]["text"] for name, line in lines(path).items()}


def test_every_request_is_answered_in_the_shape_of_openais_batches(
    run_batch: Llm, asked: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 4, "model": "mine"}
    path = asked(
        completion("a", ignore_eos=True, model="mine"),
        request("b", "/v1/chat/completions", **chat),
        "",
        completion("c", n=2),
        request("d", "/v1/responses", input="hi", max_output_tokens=4),
    )
    output = tmp_path / "out.jsonl"
    done = run_batch("-i", path, "-o", output, tiny_llama, "--served-model-name", "mine", *ENGINE)
    assert done.code == 0, done.err
    assert "4 of 4 requests succeeded and 0 failed" in done.out
    found = lines(output)
    assert set(found) == {"a", "b", "c", "d"}
    assert all(set(line) == {"id", "custom_id", "response", "error"} for line in found.values())
    assert all(line["error"] is None for line in found.values())
    assert len({line["id"] for line in found.values()}) == 4
    assert found["a"]["response"]["status_code"] == 200
    assert found["a"]["response"]["request_id"]
    assert found["a"]["response"]["body"]["usage"]["completion_tokens"] == 5
    assert found["b"]["response"]["body"]["object"] == "chat.completion"
    assert len(found["c"]["response"]["body"]["choices"]) == 2
    assert found["d"]["response"]["body"]["object"] == "response"


def test_a_request_that_fails_is_answered_and_the_others_are_not_touched(
    run_batch: Llm, asked: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    wrong = {
        "url": completion("url") | {"url": "/v1/files"},
        "method": completion("method") | {"method": "GET"},
        "body": completion("body") | {"body": [1]},
        "no body": {"custom_id": "no body", "method": "POST", "url": "/v1/completions"},
        "stream": completion("stream", stream=True),
        "background": request("background", "/v1/responses", input="hi", background=True),
        "model": completion("model", model="gpt-4o"),
        "field": completion("field", max_tokens=-1),
        "long": completion("long", prompt="x" * 9000),
        "task": request("task", "/v1/embeddings", input="text"),
        "body's number": json.dumps(request("body's number", "/v1/completions", seed=0)).replace(
            "0}}", "1e999}}"
        ),
    }
    path = asked(*wrong.values(), completion("good"))
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    arguments = ("-i", path, "-o", output, "--error-file", errors, tiny_llama, *ENGINE)
    done = run_batch(*arguments)
    assert done.code == 1
    assert "1 of 12 requests succeeded and 11 failed" in done.out
    assert set(lines(output)) == {"good"}
    found = lines(errors)
    assert set(found) == set(wrong)
    for name in ("url", "method", "body", "no body", "stream", "background", "body's number"):
        assert found[name]["response"] is None
        assert found[name]["error"]["code"] == "invalid_request"
        assert name.removeprefix("no ").removesuffix("'s number") in found[name]["error"]["message"]
    for name, status in (("model", 404), ("field", 400), ("long", 400), ("task", 400)):
        assert found[name]["response"]["status_code"] == status
        assert found[name]["response"]["body"]["error"]["message"]
        assert found[name]["error"] is None

    again = run_batch(*arguments)  # nothing is left to do, and the code still says that some have failed
    assert (again.code, "12 of them by earlier runs" in again.out) == (1, True)
    assert len(lines(output)) + len(lines(errors)) == 12


def test_vectors_and_scores_are_asked_for_in_the_same_way(
    run_batch: Llm, asked: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    path = asked(
        request("vector", "/v1/embeddings", input="a text"),
        request("score", "/v1/score", text_1="one", text_2=["two", "three"]),
        request("rerank", "/v1/rerank", query="one", documents=["two", "three"]),
    )
    output = tmp_path / "out.jsonl"
    done = run_batch("-i", path, "-o", output, tiny_llama, "--task", "embed", *ENGINE)
    assert done.code == 0, output.read_text()
    found = {name: line["response"]["body"] for name, line in lines(output).items()}
    assert len(found["vector"]["data"][0]["embedding"]) == 64
    assert len(found["score"]["data"]) == len(found["rerank"]["results"]) == 2


def test_a_run_that_is_killed_again_and_again_loses_nothing_and_does_nothing_twice(
    run_batch: Llm, asked: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    names = [f"request {i}" for i in range(24)]
    path = asked(*(completion(name, max_tokens=100, ignore_eos=True) for name in names))
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    slow = (tiny_llama, *ENGINE, "--max-num-seqs", 2)
    assert run_batch("-i", path, "-o", whole, *slow).code == 0

    killed = 0
    for _ in range(2):
        before = broken.stat().st_size if broken.exists() else 0
        command = ("run-batch", "-i", path, "-o", broken, *slow)
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", *map(str, command)], stdout=subprocess.DEVNULL
        )
        try:
            wait_for(lambda size=before: broken.exists() and broken.stat().st_size > size + 100)
            children = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()
            process.wait()
        killed += process.returncode == -signal.SIGKILL
        assert children
        wait_for(lambda ended=children: all(gone(child) for child in ended))
        with broken.open("rb+") as file:  # as if the last write had not got through
            file.truncate(broken.stat().st_size - 7)
    assert killed == 2
    assert 0 < broken.read_bytes().count(b"\n") < len(names)

    done = run_batch("-i", path, "-o", broken, *slow)
    assert done.code == 0, done.err
    assert "by earlier runs" in done.out
    assert set(lines(broken)) == set(names)
    assert texts(broken) == texts(whole)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([completion("a"), completion("b"), completion("a")], ["line 3", "'a'", "line 1"]),
        ([completion("a"), "{"], ["line 2", "no JSON"]),
        ([completion("a"), "\x00\xff"], ["line 2", "no JSON"]),
        (['{"custom_id": "a", "body": ' + "[" * 100_000], ["line 1", "no JSON"]),
        ([{"method": "POST"}], ["line 1", "custom_id"]),
        ([completion("a") | {"custom_id": 5}], ["line 1", "custom_id"]),
        ([completion("")], ["line 1", "custom_id is empty"]),
        ([[1]], ["line 1", "object"]),
        (["x"] * 13, ["line 10", "3 more lines"]),
        (["", ""], ["no requests"]),
    ],
    ids=lambda value: "",
)
def test_a_file_whose_lines_cannot_be_told_apart_is_refused_with_their_numbers(
    run_batch: Llm, asked: Callable[..., Path], tmp_path: Path, wrong: list[Any], words: list[str]
) -> None:
    answer = run_batch("-i", asked(*wrong), "-o", tmp_path / "out.jsonl", tmp_path / "no-model")
    assert answer.code == 1
    for word in words:
        assert word in answer.err
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_that_answers_something_else_is_left_as_it_is(
    run_batch: Llm, asked: Callable[..., Path], tmp_path: Path
) -> None:
    path, output = asked(completion("a")), tmp_path / "out.jsonl"
    line = '{"custom_id": "z", "response": null, "error": {"code": "x", "message": "y"}}\n'
    for content, words in ((line, "'z'"), ("my notes\n", "line 1"), (f"{line}{{}}\n", "line 2")):
        output.write_text(content)
        answer = run_batch("-i", path, "-o", output, tmp_path / "no-model")
        assert answer.code == 1
        assert words in answer.err
        assert output.read_text() == content


def test_two_runs_do_not_write_one_output(run_batch: Llm, asked: Callable[..., Path], tmp_path: Path) -> None:
    path, output = asked(completion("a")), tmp_path / "out.jsonl"
    with output.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        answer = run_batch("-i", path, "-o", output, tmp_path / "no-model")
    assert (answer.code, "another run" in answer.err) == (1, True)


def test_files_that_are_one_or_missing_are_refused(
    run_batch: Llm, asked: Callable[..., Path], tmp_path: Path
) -> None:
    path = asked(completion("a"))
    for more in (("-o", path), ("-o", tmp_path / "o", "--error-file", tmp_path / "o")):
        answer = run_batch("-i", path, *more)
        assert (answer.code, "a file of its own" in answer.err) == (2, True)
    absent = run_batch("-i", tmp_path / "absent", "-o", tmp_path / "o")
    assert (absent.code, "no such file" in absent.err) == (1, True)
    assert run_batch("-i", path).code == 2


async def too_long(scope: Any, receive: Any, send: Any) -> None:
    """An app whose every answer has 600 bytes."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"x" * 600})


def batch_of(app: Any, names: list[str], journal: Journal, is_alive: Callable[[], bool]) -> int:
    """How many lines were written."""
    written: list[bool] = []
    requests = (BatchRequest(name, "/v1/completions", b"{}", None) for name in names)
    asyncio.run(Batch(app, is_alive, journal, journal, written.append).run(requests, 2))
    return len(written)


def test_a_disk_that_is_full_ends_the_run_and_what_was_torn_is_done_again(tmp_path: Path) -> None:
    path, names = tmp_path / "out.jsonl", ["a", "b", "c"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with Journal(path) as journal, pytest.raises(CommandError, match=r"cannot write .*too large"):
            batch_of(too_long, names, journal, lambda: True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size == 1000
    with Journal(path) as journal:
        assert journal.answered == {"a": True}
        assert batch_of(too_long, ["b", "c"], journal, lambda: True) == 2
    assert set(lines(path)) == {"a", "b", "c"}


def test_what_an_engine_that_stops_answers_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Journal(path) as journal, pytest.raises(CommandError, match="go on from here"):
        batch_of(too_long, ["a"], journal, lambda: False)
    assert path.read_bytes() == b""


def test_a_request_that_finds_no_room_is_sent_again(tmp_path: Path) -> None:
    statuses = [429, 429, 200]

    async def full(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": statuses.pop(0), "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with Journal(tmp_path / "out.jsonl") as journal:
        assert batch_of(full, ["a"], journal, lambda: True) == 1
    assert lines(tmp_path / "out.jsonl")["a"]["response"]["status_code"] == 200


def test_an_output_that_is_no_file_is_refused(run_batch: Llm, asked: Callable[..., Path]) -> None:
    answer = run_batch("-i", asked(completion("a")), "-o", "/dev/full")
    assert (answer.code, "no regular file" in answer.err) == (1, True)
