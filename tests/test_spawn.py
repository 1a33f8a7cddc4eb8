"""The engine's process, started before anybody knows what it is to build."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from live_server import engine_keywords, gone

from core.config import EngineConfig
from core.engine import spawn
from core.engine.async_engine import AsyncEngine
from core.errors import ModelError, ModelNotFound

AHEAD = "from core.engine.spawn import start_ahead, take; start_ahead(); "


def wait_until_gone(process: psutil.Process, patience: float = 20.0) -> None:
    deadline = time.monotonic() + patience
    while not gone(process):
        assert time.monotonic() < deadline, f"{process} still runs"
        time.sleep(0.02)


def test_an_engine_takes_the_process_that_was_started_ahead(tiny_llama: Path) -> None:
    async def pids() -> tuple[int, int]:
        spawn.start_ahead()
        ahead = spawn.take()
        spawn._ahead.append(ahead)
        engine = await AsyncEngine.start(
            EngineConfig(**engine_keywords(tiny_llama, skip_tokenizer_init=True))
        )
        await engine.close()
        return ahead.pid, engine.pid

    first, second = asyncio.run(pids())
    assert first == second
    assert not psutil.pid_exists(first)


def test_every_other_engine_gets_a_process_of_its_own() -> None:
    spawn.start_ahead()
    ahead, other = spawn.take(), spawn.take()
    try:
        assert ahead.pid != other.pid
    finally:
        for process in (ahead, other):
            process.end()


@pytest.mark.parametrize("ending", ["", "raise SystemExit(2)", "import os; os._exit(1)"])
def test_a_process_that_nobody_takes_ends_with_the_one_that_started_it(ending: str) -> None:
    """Even when that one has no time to say so: its end of the pipe closes."""
    shown = "import core.engine.spawn as s; print(s._ahead[0].pid, flush=True); "
    parent = subprocess.Popen([sys.executable, "-c", AHEAD + shown + ending], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        try:
            child = psutil.Process(int(parent.stdout.readline()))
        except psutil.NoSuchProcess:
            return
    wait_until_gone(child)


def test_a_command_line_that_is_refused_leaves_no_process() -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "cli", "serve", "--no-such-option"], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2
    assert "no-such-option" in refused.stderr
    assert "engine:" not in refused.stderr


def test_a_damaged_tokenizer_is_told_of_although_it_is_loaded_beside_the_model(
    tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    config = EngineConfig(**engine_keywords(tiny_llama) | {"tokenizer": str(tmp_path)})
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        asyncio.run(AsyncEngine.start(config))


def test_a_model_that_is_not_there_matters_more_than_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        asyncio.run(AsyncEngine.start(EngineConfig(model=str(tmp_path / "nowhere"))))
