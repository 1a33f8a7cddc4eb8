"""The `llm` command, called as its users call it: main() in this process, or a process of its own."""

import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, Self

import pytest
from commands import Answer, Run, called

import core
from cli import tables
from cli.guard import PACKAGES, ROOT, shadowing
from cli.reference import reference
from core import SamplingParams, __version__

GREEDY = ("--temperature", "0", "--max-tokens", "12", "--dtype", "float32", "--platform", "cpu")


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """llm("generate", "hello", stdin="") runs the command in this process."""

    def run(*arguments: object, stdin: str = "") -> Answer:
        return called(monkeypatch, capsys, *arguments, stdin=stdin)

    return run


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cli", *map(str, arguments)]


def in_process_of_its_own(*arguments: object, timeout: float = 60, **environment: str) -> Answer:
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs beside the test, and no longer than it."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read(stream: IO[bytes] | None, length: int = -1) -> bytes:
    assert stream is not None
    return stream.read(length)


def expected_text(model: Path, prompt: str) -> str:
    with core.LLM(str(model), dtype="float32", platform="cpu") as engine:
        params = SamplingParams(temperature=0, max_tokens=12)
        return engine.generate([prompt], params, use_tqdm=False)[0].outputs[0].text


# --- start-up -----------------------------------------------------------------------------------------------


def processor_seconds() -> float:
    """What all processes that this one started and waited for have used. Other work does not slow it down."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_in_under_four_tenths_of_a_second() -> None:
    seconds: list[float] = []
    for _ in range(5):
        begin = processor_seconds()
        assert in_process_of_its_own("--help").code == 0
        seconds.append(processor_seconds() - begin)
    assert min(seconds) < 0.4, seconds


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["serve", "--help"], ["platforms"]]
)
def test_help_and_platforms_import_nothing_that_computes(arguments: list[str]) -> None:
    program = (
        "import sys; from cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'fastapi', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_and_help_without_arguments(llm: Run) -> None:
    assert llm("--version").out == f"llm {__version__}\n"
    bare = llm()
    for name in ("generate", "chat", "serve", "bench", "platforms", "models", "collect-env"):
        assert name in bare.out + bare.err


@pytest.mark.parametrize(
    "table", [tables.ENGINE, tables.SAMPLING, tables.SERVER], ids=lambda table: table.keyword
)
def test_every_field_of_the_settings_is_an_option(table: Any) -> None:
    # A command that samples has one --seed, the engine's, for both.
    elsewhere = {"seed"} if table is tables.SAMPLING else set()
    assert set(table.help) | elsewhere == {field.name for field in fields(table.source)}


def test_the_command_line_reference_is_current() -> None:
    page = ROOT / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == reference(), "run  python -m cli.reference > docs/cli.md"


# --- guard --------------------------------------------------------------------------------------------------


def test_the_guard_finds_nothing_wrong_with_our_own_packages() -> None:
    assert shadowing() is None


def test_the_guard_reports_packages_that_come_from_elsewhere(tmp_path: Path) -> None:
    message = shadowing(tmp_path)
    assert message is not None
    for name in PACKAGES:
        assert f"{ROOT / name}, not from {tmp_path / name}" in message


@pytest.mark.parametrize("theirs", ["models/__init__.py", "server.py"])
def test_a_users_own_module_of_our_name_is_named_and_nothing_runs(tmp_path: Path, theirs: str) -> None:
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text("raise RuntimeError('imported')")
    done = subprocess.run(
        command("platforms"), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert str(tmp_path / theirs.partition("/")[0]) in done.stderr
    assert "Rename yours" in done.stderr
    assert "Traceback" not in done.stderr


# --- generate -----------------------------------------------------------------------------------------------


def test_generate_prints_the_continuation_alone(llm: Run, tiny_llama: Path) -> None:
    answer = llm("generate", "hello there", "--model", tiny_llama, *GREEDY)
    assert answer.code == 0, answer.err
    assert answer.out == expected_text(tiny_llama, "hello there") + "\n"
    assert "loading" in answer.err


def test_generate_reads_the_prompt_from_standard_input(llm: Run, tiny_llama: Path) -> None:
    given = llm("generate", "hello there", "--model", tiny_llama, *GREEDY)
    assert llm("generate", "-", "--model", tiny_llama, *GREEDY, stdin="hello there\n").out == given.out
    assert llm("generate", "--model", tiny_llama, *GREEDY, stdin="hello there").out == given.out


def test_generate_shows_the_same_text_streamed_and_at_once_with_or_without_the_prompt(
    llm: Run, tiny_llama: Path
) -> None:
    streamed = llm("generate", "hello", "--model", tiny_llama, *GREEDY, "--echo", "--quiet")
    at_once = llm("generate", "hello", "--model", tiny_llama, *GREEDY, "--no-stream", "--quiet")
    assert streamed.out == "hello" + at_once.out
    assert streamed.err == at_once.err == ""


def test_generate_json_holds_text_tokens_logprobs_and_usage(llm: Run, tiny_llama: Path) -> None:
    answer = llm(
        "generate", "hello", "--model", tiny_llama, *GREEDY, "--json", "--logprobs", 2, "--ignore-eos"
    )
    found = json.loads(answer.out)
    output = found["outputs"][0]
    assert found["prompt"] == "hello"
    assert found["usage"] == {"prompt_tokens": 5, "cached_tokens": 0, "completion_tokens": 12}
    assert len(output["token_ids"]) == len(output["logprobs"]) == 12
    assert [position[0]["token_id"] for position in output["logprobs"]] == output["token_ids"]
    assert output["finish_reason"] == "length"


def test_generate_prints_every_answer_when_several_are_asked_for(llm: Run, tiny_llama: Path) -> None:
    answer = llm("generate", "hello", "--model", tiny_llama, "--n", 2, "--max-tokens", 5, "--seed", 1)
    assert re.fullmatch(r"--- 1 of 2\n.*\n--- 2 of 2\n.*\n", answer.out, re.DOTALL)


def test_a_seed_repeats_an_answer_and_the_seed_that_was_drawn_is_told(llm: Run, tiny_llama: Path) -> None:
    arguments = ("generate", "hello", "--model", tiny_llama, "--max-tokens", 20, "--json")
    first, second = (json.loads(llm(*arguments).out) for _ in range(2))
    again = json.loads(llm(*arguments, "--seed", first["seed"]).out)
    assert first["seed"] != second["seed"]
    assert first["outputs"][0]["token_ids"] == again["outputs"][0]["token_ids"]
    assert first["outputs"][0]["token_ids"] != second["outputs"][0]["token_ids"]


def test_sampling_follows_the_option_then_the_model_then_our_default(
    llm: Run, tiny_model: Callable[..., Path]
) -> None:
    model = tiny_model("llama", max_position_embeddings=256)
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.31, "eos_token_id": 2}))

    def temperature(*arguments: object) -> float:
        return json.loads(
            llm("generate", "a", "--model", model, "--max-tokens", 1, "--json", *arguments).out
        )["temperature"]

    assert temperature("--temperature", "0.5") == 0.5
    assert temperature() == 0.31
    assert temperature("--generation-config", "core") == 0.8


def test_stop_text_and_logit_bias_reach_the_engine(llm: Run, tiny_llama: Path) -> None:
    plain = llm("generate", "hello", "--model", tiny_llama, *GREEDY, "--json")
    first = json.loads(plain.out)["outputs"][0]["token_ids"][0]
    banned = llm(
        "generate", "hello", "--model", tiny_llama, *GREEDY, "--json", "--logit-bias", f"{first}=-100"
    )
    assert json.loads(banned.out)["outputs"][0]["token_ids"][0] != first
    stopped = llm("generate", "hello", "--model", tiny_llama, *GREEDY, "--json", "--stop-token-ids", first)
    assert json.loads(stopped.out)["outputs"][0]["stop_reason"] == first


# --- environment variables and errors -----------------------------------------------------------------------


def test_engine_options_come_from_the_environment_too_and_the_command_line_wins(
    llm: Run, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_MODEL", str(tiny_llama))
    monkeypatch.setenv("LLM_DTYPE", "int3")
    refused = llm("generate", "hello")
    assert refused.code == 2
    assert "int3" in refused.err
    assert llm("generate", "hello", *GREEDY).code == 0


def test_a_value_of_the_wrong_type_is_called_by_its_variable_or_option(
    llm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_PORT", "x")
    assert "Invalid value for LLM_PORT" in llm("serve").err
    assert "Invalid value for '--port'" in llm("serve", "--port", "y").err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", "nan"], ["--temperature", "nan", "from 0 to 100"]),
        (["--temperature", "-1"], ["--temperature", "-1"]),
        (["--max-tokens", "0"], ["--max-tokens", "0"]),
        (["--max-tokens", "many"], ["--max-tokens", "integer"]),
        (["--top-p", "0"], ["--top-p"]),
        (["--n", "1000"], ["--n", "128"]),
        (["--logit-bias", "five"], ["--logit-bias", "five", "TOKEN_ID=BIAS"]),
        (["--dtype", "int3"], ["--dtype", "int3", "bfloat16"]),
        (["--block-size", "-4"], ["--block-size", "-4"]),
        (["--kv-cache-memory", "lots"], ["--kv-cache-memory", "lots", "4GiB"]),
        (["--scheduling-policy", "fair"], ["--scheduling-policy", "fair", "fcfs"]),
        (["--no-such-option"], ["--no-such-option"]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) and value[0].startswith("--") else "",
)
def test_a_bad_option_is_named_at_once(llm: Run, arguments: list[str], words: list[str]) -> None:
    answer = llm("generate", "hello", *arguments)
    assert answer.code == 2
    for word in words:
        assert word in answer.err
    assert answer.out == ""
    assert "Traceback" not in answer.err


def test_an_empty_prompt_is_refused_at_once(llm: Run) -> None:
    assert "empty" in llm("generate", "").err
    assert llm("generate", "-", stdin="\n").code == 2


def test_a_model_that_is_not_there_is_one_clear_error(llm: Run, tmp_path: Path) -> None:
    answer = llm("generate", "hello", "--model", tmp_path / "nothing")
    assert answer.code == 1
    assert answer.err.splitlines()[-1].startswith("error:") or "\nerror: " in answer.err
    assert str(tmp_path / "nothing") in answer.err
    assert "Traceback" not in answer.err


def test_debug_adds_the_traceback(llm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" in llm("generate", "hello", "--model", tmp_path / "nothing", "--debug").err
    monkeypatch.setenv("LLM_DEBUG", "1")
    assert "Traceback" in llm("generate", "hello", "--model", tmp_path / "nothing").err


def test_an_unknown_platform_fails_closed_and_lists_the_installed_ones(llm: Run, tiny_llama: Path) -> None:
    answer = llm("generate", "hello", "--model", tiny_llama, "--platform", "cpuu")
    assert answer.code == 1
    assert "'cpuu'" in answer.err
    assert "did you mean cpu?" in answer.err
    assert answer.out == ""


def test_a_settings_that_does_not_fit_names_the_setting_to_change(llm: Run, tiny_llama: Path) -> None:
    answer = llm("generate", "hello", "--model", tiny_llama, "--kv-cache-memory", "1KiB")
    assert answer.code == 1
    assert "kv" in answer.err.lower()
    assert "Traceback" not in answer.err


@pytest.fixture
def foreign_plugins(tmp_path: Path) -> str:
    """PYTHONPATH with a platform whose hardware is missing, and a plugin that breaks."""
    (tmp_path / "foreign_ghost.py").write_text(
        "from core import hookimpl\n"
        "from core.contracts.platform import Capabilities, Platform, Probe\n"
        "class Ghost(Platform):\n"
        "    contract, name, device_type, summary = (1, 0), 'ghost', 'ghost', 'haunts machines'\n"
        "    def probe(self): return Probe(available=False, reason='no ghost answered the bell')\n"
        "    def capabilities(self, device): return Capabilities()\n"
        "@hookimpl\n"
        "def core_platforms(): return [Ghost]\n"
    )
    (tmp_path / "foreign_broken.py").write_text("raise ImportError('libwreck.so.1 not found')")
    folder = tmp_path / "foreign-2.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 2.0\n")
    (folder / "entry_points.txt").write_text(
        "[core.plugins]\nghost = foreign_ghost\nwreck = foreign_broken\n"
    )
    return os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))


def test_a_platform_that_cannot_run_and_a_broken_plugin_are_shown_with_their_reasons(
    foreign_plugins: str,
) -> None:
    found = json.loads(in_process_of_its_own("platforms", "--json", PYTHONPATH=foreign_plugins).out)
    platforms = {platform["name"]: platform for platform in found["platforms"]}
    assert platforms["cpu"]["available"]
    assert not platforms["ghost"]["available"]
    assert platforms["ghost"]["reason"] == "no ghost answered the bell"
    assert platforms["ghost"]["distribution"] == "foreign"
    assert found["failures"] == [{"plugin": "wreck", "reason": "ImportError: libwreck.so.1 not found"}]
    table = in_process_of_its_own("platforms", PYTHONPATH=foreign_plugins).out
    for word in ("ghost", "unavailable", "no ghost answered the bell", "wreck", "libwreck.so.1", "1.0"):
        assert word in table


def test_a_named_platform_that_cannot_run_fails_closed_with_its_reason(
    foreign_plugins: str, tiny_llama: Path
) -> None:
    arguments = ("generate", "hello", "--model", tiny_llama, "--platform", "ghost")
    answer = in_process_of_its_own(*arguments, PYTHONPATH=foreign_plugins)
    assert answer.code == 1
    assert "ghost" in answer.err
    assert "no ghost answered the bell" in answer.err
    assert answer.out == ""


# --- signals and pipes --------------------------------------------------------------------------------------


@pytest.fixture
def long_model(tiny_model: Callable[..., Path]) -> Path:
    """A tiny model that can go on for a long while."""
    return tiny_model("llama", max_position_embeddings=32768)


ENDLESS = ("--max-tokens", "32000", "--ignore-eos", "--platform", "cpu")


def test_an_interrupted_generate_leaves_with_130_and_no_traceback(long_model: Path) -> None:
    with started("generate", "hello", "--model", long_model, *ENDLESS) as process:
        read(process.stdout, 1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert b"Traceback" not in err


def test_a_reader_that_goes_away_ends_generate_quietly(long_model: Path) -> None:
    with started("generate", "hello", "--model", long_model, *ENDLESS, "--quiet") as process:
        read(process.stdout, 1)
        assert process.stdout is not None
        process.stdout.close()
        assert read(process.stderr) == b""
        assert process.wait(timeout=30) == 141


# --- chat ---------------------------------------------------------------------------------------------------


def expected_turns(model: Path, *texts: str, system: str | None = None) -> list[str]:
    messages = [{"role": "system", "content": system}] if system else []
    answers: list[str] = []
    with core.LLM(str(model), dtype="float32", platform="cpu") as engine:
        for text in texts:
            messages.append({"role": "user", "content": text})
            params = SamplingParams(temperature=0, max_tokens=12)
            answers.append(engine.chat(messages, params, use_tqdm=False)[0].outputs[0].text)
            messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_chat_answers_each_line_of_standard_input_and_remembers_the_turns_before(
    llm: Run, tiny_llama: Path
) -> None:
    answer = llm("chat", "--model", tiny_llama, *GREEDY, "--quiet", stdin="one\n\ntwo\n")
    assert answer.code == 0, answer.err
    assert answer.out == "".join(f"{text}\n" for text in expected_turns(tiny_llama, "one", "two"))


def test_chat_obeys_its_commands(llm: Run, tiny_llama: Path) -> None:
    script = "one\n/reset\none\n/system Be brief.\none\n/nonsense\n/exit\nnever\n"
    answer = llm("chat", "--model", tiny_llama, *GREEDY, "--quiet", stdin=script)
    plain = expected_turns(tiny_llama, "one")[0]
    brief = expected_turns(tiny_llama, "one", system="Be brief.")[0]
    assert answer.out == f"{plain}\n{plain}\n{brief}\n"
    assert "no command is named /nonsense" in answer.err
    assert answer.code == 0
    started = llm("chat", "--model", tiny_llama, *GREEDY, "--quiet", "--system", "Be brief.", stdin="one\n")
    assert started.out == f"{brief}\n"


def test_a_chat_turn_that_is_too_long_fails_alone(llm: Run, tiny_llama: Path) -> None:
    answer = llm("chat", "--model", tiny_llama, *GREEDY, "--quiet", stdin=f"{'x' * 600}\none\n")
    assert answer.out == "\n" + expected_turns(tiny_llama, "one")[0] + "\n"
    assert "error: " in answer.err
    assert answer.code == 1


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, *arguments: object) -> None:
        self._main, child = pty.openpty()
        self.process = subprocess.Popen(
            command(*arguments), stdin=child, stdout=child, stderr=child, start_new_session=True
        )
        os.close(child)
        self.seen = ""

    def wait_for(self, wanted: str | re.Pattern[str], seconds: float = 60) -> None:
        """Read until it is there; what was read behind it stays in `seen`."""
        pattern = re.compile(re.escape(wanted)) if isinstance(wanted, str) else wanted
        deadline = time.monotonic() + seconds
        while (found := pattern.search(self.seen)) is None:
            ready, _, _ = select.select([self._main], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {wanted!r} in {self.seen[-500:]!r}"
            self.seen += os.read(self._main, 65536).decode(errors="replace")
        self.seen = self.seen[found.end() :]

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def exit_code(self) -> int:
        with suppress(OSError):  # how a pseudo-terminal says that the other end has gone
            while os.read(self._main, 65536):
                pass
        return self.process.wait(timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)


def test_ctrl_c_stops_the_answer_and_not_the_chat_and_ctrl_d_leaves(long_model: Path) -> None:
    with Terminal("chat", "--model", long_model, *ENDLESS) as terminal:
        terminal.wait_for("> ")
        terminal.type("one\n")
        terminal.wait_for("one")
        terminal.wait_for(re.compile(r"(?s).{200}"))  # well into the answer
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("(stopped)")
        terminal.wait_for("> ")
        time.sleep(0.5)  # readline misses a signal that comes between its prompt and its waiting
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("Ctrl-D leaves")
        terminal.wait_for("> ")
        terminal.type("/reset\n")
        terminal.wait_for("forgotten")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0


# --- serve, explain, models, environment --------------------------------------------------------------------


def test_serve_passes_its_options_on_and_stops_when_told(tiny_llama: Path) -> None:
    arguments = ("--port", 0, "--served-model-name", "tiny", "--api-key", "sesame", "--platform", "cpu")
    with started("serve", tiny_llama, *arguments) as process:
        assert process.stdout is not None
        match = re.search(r"http://\S+", process.stdout.readline().decode())
        assert match is not None
        ask = urllib.request.Request(f"{match[0]}/v1/models", headers={"Authorization": "Bearer sesame"})
        with urllib.request.urlopen(ask, timeout=30) as answer:
            assert json.load(answer)["data"][0]["id"] == "tiny"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_serve_refuses_a_bad_port_before_it_loads(llm: Run) -> None:
    answer = llm("serve", "--port", 99999)
    assert answer.code == 2
    assert "99999" in answer.err


def test_explain_shows_the_ledger(llm: Run, tiny_llama: Path) -> None:
    found = json.loads(llm("platforms", "explain", "--model", tiny_llama, "--platform", "cpu", "--json").out)
    with core.LLM(str(tiny_llama), platform="cpu") as engine:
        assert found["choices"] == json.loads(json.dumps(engine.ledger.as_dicts()))
    assert found["platform"] == "cpu"
    table = llm("platforms", "explain", "--model", tiny_llama, "--platform", "cpu").out
    for choice in found["choices"]:
        assert choice["what"] in table


def test_models_lists_architectures_short_names_and_what_is_cached(llm: Run, smollm2: Path) -> None:
    found = json.loads(llm("models", "--json").out)
    assert "LlamaForCausalLM" in [architecture["name"] for architecture in found["architectures"]]
    assert {"name": "gptq", "plugin": "plugins"} in found["quantizations"]
    assert found["aliases"]["smollm2-135m"].startswith("wheel:")
    cached = {model["path"]: model for model in found["cached"]}
    assert any(str(smollm2).startswith(path) for path in cached)
    assert all(model["size_bytes"] > 0 for model in cached.values())
    assert "LlamaForCausalLM" in llm("models").out


def test_collect_env_tells_versions_and_machine_but_no_secret(
    llm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_API_KEY", "sesame")
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:sesame@example.org/simple")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    answer = llm("collect-env", "--json")
    found = json.loads(answer.out)
    assert set(found) == {"software", "machine", "variables", "platforms", "compilers"}
    assert found["software"]["torch"] != "not installed"
    assert found["variables"]["OMP_NUM_THREADS"] == "2"
    assert "sesame" not in answer.out
    assert "cpu" in found["platforms"]
    assert "torch" in llm("collect-env").out


# --- the default model --------------------------------------------------------------------------------------


def test_the_default_model_continues_sensibly_and_needs_no_network_the_second_time(smollm2: Path) -> None:
    nowhere = "http://127.0.0.1:9/simple"
    answer = in_process_of_its_own(
        "generate", "The capital of France is", "--temperature", 0, "--max-tokens", 8,
        PIP_INDEX_URL=nowhere, HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "Paris" in answer.out


def test_generate_shows_its_first_token_within_six_seconds(smollm2: Path) -> None:
    begin, used = time.perf_counter(), processor_seconds()
    with started("generate", "Once upon a time", "--max-tokens", 2, "--quiet") as process:
        first = read(process.stdout, 1)
        seconds = time.perf_counter() - begin
    assert first
    # On a machine with other work, processor time is the fairer clock.
    assert min(seconds, processor_seconds() - used) < 6
