"""The engine in its own process, seen from the socket and from the operating system."""

import asyncio
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq
from live_server import PATIENCE_S, engine_keywords, gone, wait_for

from core.config import EngineConfig
from core.engine import messages as m
from core.engine.request import Request
from core.errors import BadCheckpoint, ConfigError, CoreError, EngineError, RequestError, RequestTooLong
from core.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
FOREVER = GREEDY.with_(max_tokens=None)


class Peer:
    """The parent's side of the socket, by hand."""

    def __init__(self, process: subprocess.Popen[bytes], socket: "zmq.Socket[bytes]") -> None:
        self.process = process
        self.socket = socket

    def send(self, *messages: m.ToEngine) -> None:
        for message in messages:
            self.socket.send(m.encode(message))

    def receive(self) -> m.FromEngine:
        """The next message; fails when the engine is gone, or says nothing for long."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.socket.poll(100):
            assert self.process.poll() is None, f"the engine ended with {self.process.returncode}"
            assert time.monotonic() < deadline, "the engine says nothing"
        return m.decode_from_engine(self.socket.recv())

    def answer(self, request_id: str) -> list[int]:
        """The tokens of a request until it is finished."""
        token_ids: list[int] = []
        while True:
            message = self.receive()
            for delta in message.deltas if isinstance(message, m.Deltas) else []:
                if delta.request_id == request_id:
                    token_ids += delta.token_ids
                    if delta.finish_reason is not None:
                        return token_ids

    def num_unfinished(self) -> int:
        self.send(m.AskStatistics())
        while not isinstance(message := self.receive(), m.Statistics):
            pass
        return message.statistics.num_running + message.statistics.num_waiting


@contextmanager
def engine_process(model: Path, **keywords: Any) -> Iterator[Peer]:
    config = EngineConfig(**engine_keywords(model, **keywords))
    with (
        tempfile.TemporaryDirectory() as folder,
        zmq.Context() as context,
        context.socket(zmq.PAIR) as socket,
    ):
        socket.linger = 0
        socket.bind(address := f"ipc://{folder}/engine")
        process = subprocess.Popen([sys.executable, "-m", "core.engine"], stdin=subprocess.PIPE)
        assert process.stdin is not None
        try:
            process.stdin.write(m.frame_start(m.Start(address, os.getpid(), config)))
            process.stdin.flush()
            yield Peer(process, socket)
        finally:
            process.kill()
            process.stdin.close()
            process.wait()


@contextmanager
def ready_engine(model: Path, **keywords: Any) -> Iterator[Peer]:
    with engine_process(model, **keywords) as peer:
        while not isinstance(peer.receive(), m.Ready):
            pass
        yield peer


@pytest.fixture(scope="module")
def peer(tiny_model: Callable[..., Path]) -> Iterator[Peer]:
    """An engine that is still there after each test that uses it."""
    with ready_engine(tiny_model("llama", max_position_embeddings=8192)) as ready:
        yield ready


def request(request_id: str, *token_ids: int, params: SamplingParams = GREEDY) -> m.AddRequest:
    prompt = list(token_ids) or [5, 6, 7]
    return m.AddRequest(Request(request_id=request_id, prompt_token_ids=prompt, params=params))


def test_it_says_hello_then_what_takes_long_then_ready(tiny_llama: Path) -> None:
    with engine_process(tiny_llama) as peer:
        said = [peer.receive()]
        while not isinstance(said[-1], m.Ready):
            said.append(peer.receive())

        assert said[0] == m.Progress("")
        assert m.Located(str(tiny_llama)) in said
        assert any("loading" in message.line for message in said if isinstance(message, m.Progress))
        assert said[-1].info.max_model_len == 512


def test_it_answers_and_stops_when_it_is_told_to(tiny_llama: Path) -> None:
    with ready_engine(tiny_llama) as peer:
        peer.send(request("a"))
        assert len(peer.answer("a")) == 8

        peer.send(m.Shutdown())
        assert peer.process.wait(PATIENCE_S) == 0


def test_requests_can_be_aborted_and_single_answers_stopped(peer: Peer) -> None:
    peer.send(request("pair", params=FOREVER.with_(n=2)), m.Stop([("pair", 1)]))
    assert peer.num_unfinished() == 1

    peer.send(m.Abort(["pair", "unknown"]))
    assert peer.num_unfinished() == 0


def test_a_request_that_the_engine_refuses_is_named_and_the_rest_goes_on(peer: Peer) -> None:
    peer.send(request("twice", params=FOREVER), request("twice"))
    while not isinstance(message := peer.receive(), m.Failed):
        pass

    assert (message.request_id, message.error) == ("twice", "RequestError")
    assert isinstance(m.raised_again(message), RequestError)
    peer.send(m.Abort(["twice"]), request("next"))
    assert len(peer.answer("next")) == 8


def test_bytes_that_are_no_message_run_nothing_and_stop_nothing(peer: Peer, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for raw in (pickle.dumps(Trap()), b"", b"\xff" * 100, msgspec.msgpack.encode({"type": "Ready"})):
        peer.socket.send(raw)
    peer.send(request("after"))

    assert len(peer.answer("after")) == 8
    assert not (tmp_path / "sprung").exists()


def test_the_keyboards_interrupt_is_left_to_the_parent(peer: Peer) -> None:
    peer.process.send_signal(signal.SIGINT)
    peer.send(request("interrupted"))

    assert len(peer.answer("interrupted")) == 8


def test_a_step_that_fails_is_told_of_and_ends_the_process_with_code_1(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_SIMULATED", "fail_kernel=rms_norm@20")
    with ready_engine(tiny_llama, platform="simulated") as peer:
        peer.send(request("doomed", params=FOREVER))
        while isinstance(message := peer.receive(), m.Deltas):
            pass

        assert isinstance(message, m.EngineFailed)
        assert "rms_norm" in message.message
        assert peer.process.wait(PATIENCE_S) == 1


def test_what_cannot_be_built_is_said_and_the_exit_code_is_1(tiny_llama: Path) -> None:
    with engine_process(tiny_llama, platform="abacus") as peer:
        assert peer.receive() == m.Progress("")
        failed = peer.receive()

        assert isinstance(failed, m.Failed)
        assert failed.error == "NoPlatform" and "abacus" in failed.message
        assert peer.process.wait(PATIENCE_S) == 1


@pytest.mark.parametrize("busy", [False, True])
def test_termination_ends_it(tiny_model: Callable[..., Path], busy: bool) -> None:
    with ready_engine(tiny_model("llama", max_position_embeddings=8192)) as peer:
        if busy:
            peer.send(request("a", params=GREEDY.with_(max_tokens=8000)))
            peer.receive()
        peer.process.terminate()

        assert peer.process.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_it_ends_when_the_parent_closes_the_pipe(tiny_llama: Path) -> None:
    with ready_engine(tiny_llama) as peer:
        assert peer.process.stdin is not None
        peer.process.stdin.close()

        assert peer.process.wait(PATIENCE_S) != 0


def test_it_ends_when_the_parent_is_killed(tiny_llama: Path) -> None:
    code = (
        "import asyncio, json, sys\n"
        "from core.config import EngineConfig\n"
        "from core.engine.async_engine import AsyncEngine\n"
        "async def main():\n"
        "    engine = await AsyncEngine.start(EngineConfig(**json.loads(sys.argv[1])))\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    arguments = [sys.executable, "-c", code, json.dumps(engine_keywords(tiny_llama))]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        engine = psutil.Process(int(parent.stdout.readline()))
        parent.kill()

    wait_for(lambda: gone(engine), patience=5)


def test_started_by_hand_it_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "core.engine"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )

    assert done.returncode == 2
    assert b"not by hand" in done.stderr and b"Traceback" not in done.stderr


def test_its_socket_is_in_a_private_place_and_leaves_it(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.engine.async_engine import AsyncEngine

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        modes: set[int] = set()

        async def scenario() -> list[Path]:
            starting = asyncio.create_task(AsyncEngine.start(EngineConfig(**engine_keywords(tiny_llama))))
            while not starting.done():
                modes.update(path.stat().st_mode & 0o777 for path in Path(folder).iterdir())
                await asyncio.sleep(0)
            left = list(Path(folder).iterdir())
            await starting.result().close()
            return left

        assert asyncio.run(scenario()) == []
        assert modes == {0o700}


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("dtype is int3", setting="dtype"),
        RequestTooLong("too long", parameter="prompt"),
        BadCheckpoint("truncated"),
        CoreError("something"),
    ],
)
def test_errors_are_raised_again_as_what_they_were(error: CoreError) -> None:
    raw = m.encode(m.failure(error))
    failed = m.decode_from_engine(raw)
    assert isinstance(failed, m.Failed)

    again = m.raised_again(failed)

    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_an_error_of_no_known_class_becomes_an_engine_error() -> None:
    for name in ("KeyError", "CoreErrors", "annotations", ""):
        again = m.raised_again(m.Failed(error=name, message="text"))
        assert type(again) is EngineError and "text" in str(again)


def test_messages_survive_the_wire() -> None:
    params = SamplingParams(stop=["a"], logit_bias={5: -1.5}, seed=-(2**62), n=3, logprobs=0, max_tokens=None)
    for message in (request("x", 1, 2, params=params), m.Abort(["x"]), m.Stop([("x", 1)]), m.Shutdown()):
        assert m.decode_to_engine(m.encode(message)) == message

    start = m.Start("ipc:///x", 5, EngineConfig(kv_cache_memory="1GiB", max_model_len=7))
    assert m.read_start(io.BytesIO(m.frame_start(start))) == start
    for raw in (pickle.dumps(params), m.encode(m.Progress("a")), b"\xc1"):
        with pytest.raises(msgspec.DecodeError):
            m.decode_to_engine(raw)
