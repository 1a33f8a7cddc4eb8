"""`llm serve`: every option from the command line, the environment and a file, in this order of precedence."""

import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from commands import Answer

from cli.app import app
from cli.tables import ENGINE, SERVER
from core.config import DEFAULT_MODEL, EngineConfig
from server.settings import ServerSettings

# Two values of each option that is neither on or off nor a number.
TEXTS: dict[str, tuple[str, str]] = {
    "model": ("first/model", "second/model"),
    "tokenizer": ("one", "two"),
    "revision": ("1234567", "0e5"),
    "model_impl": ("native", "transformers"),
    "load_format": ("gguf", "dummy"),
    "task": ("embed", "classify"),
    "platform": ("cpu", "simulated"),
    "dtype": ("float32", "bfloat16"),
    "quantization": ("int8", "int4"),
    "kv_cache_memory": ("1048576", "2097152"),
    "kv_cache_dtype": ("int8", "auto"),
    "scheduling_policy": ("priority", "fcfs"),
    "generation_config": ("core", "auto"),
    "host": ("127.0.0.2", "localhost"),
    "api_key": ("sesame", "12345"),
    "allowed_hosts": ("a.example", "b.example"),
    "allowed_origins": ("https://a.example", "https://b.example"),
    "served_model_name": ("tiny", "small"),
    "response_store": ("one.sqlite", "two.sqlite"),
}
FILES = ("ssl_certfile", "ssl_keyfile")  # of which only a pair is accepted, and only one that is real
OPTIONS = [(table, name) for table in (ENGINE, SERVER) for name in table.help if name not in FILES]

Started = tuple[list[EngineConfig], ServerSettings]
Serve = Callable[..., Started]


def llm_serve(capsys: pytest.CaptureFixture[str], *arguments: object) -> Answer:
    """The command itself, without the engine process that `main` starts ahead of it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        app(["serve", *map(str, arguments)], prog_name="llm")
    captured = capsys.readouterr()
    return Answer(int(left.value.code or 0), captured.out, captured.err)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Serve:
    """What the server would be started with. AssertionError with the command's words when it is not."""
    import server.run

    started: list[Started] = []

    def start(engines: list[EngineConfig], settings: ServerSettings) -> int:
        started.append((engines, settings))
        return 0

    monkeypatch.setattr(server.run, "serve", start)

    def run(*arguments: object, **environment: str) -> Started:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        answer = llm_serve(capsys, *arguments)
        for name in environment:
            monkeypatch.delenv(name)
        assert answer.code == 0, answer.err
        return started[-1]

    return run


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def written(text: str) -> Path:
        path = tmp_path / "serve.yaml"
        path.write_text(text)
        return path

    return written


def two_values(source: type, name: str) -> tuple[str, str]:
    """As they are typed, the first one not the default."""
    default = next(field.default for field in fields(source) if field.name == name)
    if isinstance(default, bool):
        return ("no", "yes") if default else ("yes", "no")
    return TEXTS.get(name) or (("0.25", "0.5") if name == "memory_share" else ("2048", "4096"))


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of responses is made where it is named."""
    monkeypatch.chdir(tmp_path)


def flag(name: str, value: str) -> tuple[str, ...]:
    dashed = name.replace("_", "-")
    if value in ("yes", "no"):
        return (f"--{dashed}" if value == "yes" else f"--no-{dashed}",)
    return (value,) if name == "model" else (f"--{dashed}", value)


def as_set(kind: type, name: str, value: str) -> Any:
    """What the setting is when `value` was typed for it."""
    default = next(field.default for field in fields(kind) if field.name == name)
    if value in ("yes", "no"):
        return value == "yes"
    if isinstance(default, tuple):
        return (value,)
    return value if name in TEXTS and name != "kv_cache_memory" else float(value)


@pytest.mark.parametrize(("table", "name"), OPTIONS, ids=[name for _, name in OPTIONS])
def test_an_option_goes_before_the_environment_and_that_before_the_file(
    serve: Serve, file: Callable[[str], Path], table: Any, name: str, in_tmp_path: None
) -> None:
    one, two = two_values(table.source, name)
    variable = {f"LLM_{name.upper()}": two}

    def setting(*arguments: object, **environment: str) -> Any:
        engines, settings = serve(*arguments, **environment)
        return getattr(settings if table is SERVER else engines[0], name)

    assert setting() == next(field.default for field in fields(table.source) if field.name == name)
    for spelled in (name, name.replace("_", "-")):
        config = ("--config", file(f"{spelled}: {one}\n"))
        assert setting(*config) == as_set(table.source, name, one) != setting()
    assert setting(*config, **variable) == as_set(table.source, name, two)
    assert setting(*config, *flag(name, one), **variable) == as_set(table.source, name, one)
    assert setting(LLM_CONFIG=str(config[1])) == as_set(table.source, name, one)


def test_certificates_are_options_like_others(
    serve: Serve, file: Callable[[str], Path], tmp_path: Path
) -> None:
    names = [tmp_path / name for name in ("key.pem", "cert.pem", "other.pem")]
    making = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost")
    subprocess.run([*making, "-keyout", names[0], "-out", names[1]], check=True, capture_output=True)
    names[2].write_bytes(names[1].read_bytes())
    key, certificate, other = map(str, names)
    config = file(f"ssl-keyfile: {key}\nssl_certfile: {certificate}\n")
    assert serve("--config", config)[1].ssl_certfile == certificate
    assert serve("--config", config, LLM_SSL_CERTFILE=other)[1].ssl_certfile == other
    assert serve(f"--ssl-certfile={other}", LLM_SSL_CERTFILE="x", LLM_SSL_KEYFILE=key)[1].ssl_keyfile == key


def test_options_that_may_be_repeated_take_several_values_everywhere(
    serve: Serve, file: Callable[[str], Path]
) -> None:
    config = file("api_key: [first, second]\n")
    assert serve("--config", config)[1].api_key == ("first", "second")
    assert serve("--config", config, LLM_API_KEY="third fourth")[1].api_key == ("third", "fourth")
    assert serve("--api-key", "a", "--api-key", "b", LLM_API_KEY="c")[1].api_key == ("a", "b")


def test_models_of_a_file_have_options_of_their_own_over_those_for_all(
    serve: Serve, file: Callable[[str], Path]
) -> None:
    config = file(
        "dtype: float32\nmax-num-seqs: 4\nmodels:\n"
        "  - first\n  - model: second\n    dtype: bfloat16\n    kv-cache-memory: 1MiB\n"
    )
    engines, _ = serve("--config", config)
    assert [(e.model, e.dtype, e.max_num_seqs, e.kv_cache_memory) for e in engines] == [
        ("first", "float32", 4, None),
        ("second", "bfloat16", 4, 2**20),
    ]
    assert [e.max_num_seqs for e in serve("--config", config, "--max-num-seqs", 2)[0]] == [2, 2]
    assert [e.model for e in serve("--config", config, LLM_MODEL="third fourth")[0]] == ["third", "fourth"]
    assert [e.model for e in serve("fifth", "--config", config, LLM_MODEL="third")[0]] == ["fifth"]


def test_the_default_model_comes_first(serve: Serve, file: Callable[[str], Path]) -> None:
    config = file("models: [a, b, c]\ndefault: b\n")
    assert [e.model for e in serve("--config", config)[0]] == ["b", "a", "c"]
    assert [e.model for e in serve("--config", config, LLM_DEFAULT="c")[0]] == ["c", "a", "b"]
    assert [e.model for e in serve("a", "b", "--default", "a", LLM_DEFAULT="b")[0]] == ["a", "b"]
    assert [e.model for e in serve()[0]] == [DEFAULT_MODEL]


def test_an_empty_file_says_nothing(serve: Serve, file: Callable[[str], Path]) -> None:
    assert serve("--config", file("# nothing yet\n")) == serve()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port: 80\nmax-num-seq: 4\n", ["line 2", "'max-num-seq'", "did you mean max_num_seqs?"]),
        ("zzz: 4\n", ["line 1", "'zzz'", "--help"]),
        ("port: many\n", ["line 1", "port", "'many'", "whole number"]),
        ("port: 80.5\n", ["port", "'80.5'", "whole number"]),
        ("port: yes\n", ["port", "'yes'", "whole number"]),
        ("port:\n", ["port", "nothing"]),
        ("port: [80]\n", ["port", "a list"]),
        ("port: 99999\n", ["serve.yaml", "port", "99999", "65,535"]),
        ("ui: 3\n", ["ui", "'3'", "yes or no"]),
        ("request_timeout: soon\n", ["request_timeout", "'soon'", "a number"]),
        ("dtype: {a: b}\n", ["dtype", "a mapping", "a text"]),
        ("dtype: int3\n", ["serve.yaml", "int3", "bfloat16"]),
        ("api_key: [a, [b]]\n", ["api_key", "a list", "a text"]),
        ("api_key: ['']\n", ["serve.yaml", "api_key", "blank"]),
        ("port: 80\nport: 81\n", ["line 2", "port is given twice"]),
        ("max-model-len: 8\nmax_model_len: 9\n", ["line 2", "max_model_len is given twice"]),
        ("models: one\n", ["models is no list"]),
        ("models: []\n", ["models is empty"]),
        ("models:\n- a\n- dtype: float32\n", ["line 3", "no model"]),
        ("models:\n- model: a\n  port: 80\n", ["line 3", "'port' is no option"]),
        ("models: [a]\nmodel: b\n", ["models and model are both given"]),
        ("models: [a, b]\ndefault: c\n", ["'c'", "a, b"]),
        ("- a\n", ["expected lines of  option: value"]),
        ("port: [\n", ["no YAML"]),
        ("port: \x01\n", ["no YAML"]),
        ("port: !!python/object/apply:os.getpid []\n", ["line 1", "port", "a list"]),
    ],
)
def test_a_file_is_refused_with_its_name_and_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
    file: Callable[[str], Path],
    text: str,
    words: list[str],
) -> None:
    path = file(text)
    answer = llm_serve(capsys, "--config", path)
    assert answer.code == 2, answer.err
    assert "Traceback" not in answer.err
    for word in words:
        assert word in answer.err


def test_a_file_that_cannot_be_read_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = llm_serve(capsys, "--config", tmp_path / "absent.yaml")
    assert (answer.code, "no such file" in answer.err) == (1, True)


def test_an_option_that_is_refused_is_named_even_beside_a_file(
    capsys: pytest.CaptureFixture[str], file: Callable[[str], Path]
) -> None:
    answer = llm_serve(capsys, "--config", file("port: 80\n"), "--port", 99999)
    assert answer.code == 2
    assert "error: --port: port is 99999" in answer.err
