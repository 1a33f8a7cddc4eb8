"""Security of the server and the engine behind it; each test is named after its line in the list of defects.

Elsewhere: S1 and S5 by the syntax tree (test_architecture), S1 on the engine's socket (test_engine_process), S3
for every suffix (test_weights), S22 (test_gguf); S15 to S19 are in test_security_http, numbers in
test_security_fields.
"""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from live_server import CHAT, NAME, ThreadedServer, complete, engine_keywords, refused, server_process
from raw_http import asked, head

from core.config import EngineConfig
from core.contracts.runner import CacheGroup
from core.engine.async_engine import AsyncEngine
from core.engine.kv_cache import KVCache
from core.engine.request import Request, SequenceLimits, sequences_of
from core.errors import CoreError, RequestError, UnsafeCheckpoint
from core.text.chat import ChatTemplate
from core.text.tokenizer import Tokenizer, load_tokenizer
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

REPOSITORY = Path(__file__).parent.parent
USER = {"role": "user", "content": "hi"}


class Canary:
    """Whoever unpickles it creates a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_s1_s2_pickles_run_nothing_and_only_http_listens(tiny_llama: Path, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    bomb = pickle.dumps(Canary(canary))
    with server_process(tiny_llama) as running:
        process = psutil.Process(running.process.pid)
        family = [process, *process.children(recursive=True)]
        listening = [
            one.laddr for p in family for one in p.net_connections("inet") if one.status == psutil.CONN_LISTEN
        ]
        assert [f"http://{ip}:{port}" for ip, port in listening] == [running.url]
        paths = {one.laddr for p in family for one in p.net_connections("unix") if one.laddr}
        assert not [path for path in paths if Path(path).exists()]  # the engine's left the file system

        for sent in (bomb, head("POST", "/v1/completions", f"content-length: {len(bomb)}") + bomb):
            assert asked(running.url, sent, b"\r\n\r\n").status == 400
        assert httpx.get(f"{running.url}/health").status_code == 200
    assert not canary.exists()


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.pt"])
def test_s3_a_model_of_pickles_is_refused_with_the_reason(
    tiny_llama: Path, tmp_path: Path, weights: str
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / weights).write_bytes(pickle.dumps(Canary(tmp_path / "ran")))

    with pytest.raises(UnsafeCheckpoint, match="run code"):
        start_and_close(model)
    assert not (tmp_path / "ran").exists()


def test_s4_code_that_comes_with_a_model_never_runs(tiny_llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass T: ...\n"
    for module in ("canary", "modeling_llama", "tokenization_llama", "configuration_llama", "__init__"):
        (model / f"{module}.py").write_text(code)
    kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    auto_map: dict[str, Any] = dict.fromkeys(kinds, "canary.T") | {"AutoTokenizer": ["canary.T", None]}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(content | {"auto_map": auto_map}))

    try:
        start_and_close(model)
    except CoreError as error:
        assert "canary" in str(error)  # refused is as good as ignored
    assert not (tmp_path / "ran").exists()


def start_and_close(model: Path) -> None:
    import asyncio

    async def started() -> None:
        engine = await AsyncEngine.start(EngineConfig(**engine_keywords(model)))
        await engine.close()

    asyncio.run(started())


@pytest.mark.slow
def test_s5_security_does_not_rest_on_asserts() -> None:
    """The same tests hold in a Python without them."""
    chosen = "its_sandbox or s9_ or s13_ or s18_a_models_name or wrong_key or every_declared or names_only"
    files = [f"tests/test_security{part}.py" for part in ("", "_http", "_fields")]
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestConfigWarning"]
    found = subprocess.run(
        [sys.executable, "-O", "-m", "pytest", *options, "-k", chosen, *files],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-3000:]
    passed = re.search(r"(\d+) passed", found.stdout)
    assert passed is not None and int(passed[1]) > 40


# S6, S7: chat templates


def render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render([USER])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ namespace.__init__['__globals__'] }}",
        "{{ (messages|map(attribute='__class__')|list)[0].mro() }}",
        "{{ messages|attr('__class__')|attr('__base__') }}{{ ().__reduce__() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}{{ x.y }}",
        "{% set _ = messages.append({'role': 'user'}) %}",
        "{% set _ = messages[0].update(role='system') %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ lipsum.__globals__ }}",
    ],
)
def test_s6_a_template_stays_in_its_sandbox(source: str) -> None:
    with pytest.raises(RequestError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
        "{% for a in range(99999) %}{% set x %}{% for b in range(99999) %}xxxxx{% endfor %}{% endset %}{% endfor %}",
    ],
)
def test_s6_a_template_that_does_not_end_is_ended(source: str) -> None:
    began = time.thread_time()
    with pytest.raises(RequestError, match="longer than 2 s"):
        render(source)
    assert time.thread_time() - began < 4


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ ['a'] * 10 ** 9 }}",
        "{{ 10 ** 10 ** 8 * 10 ** (10 ** 8) }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ 'a'|center(10 ** 10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (10 ** 10, 1) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10 ** 10) }}",
        "{{ '%9999999999d'|format(1) }}",
        "{% set t = namespace(x='a') %}{% for i in range(99) %}{% set t.x = t.x ~ t.x %}{% endfor %}",
        "{% set t = namespace(x='a') %}{% for i in range(99) %}{% set t.x = t.x + t.x %}{% endfor %}",
        "{% set t = namespace(x=[1]) %}{% for i in range(99) %}{% set t.x = t.x + t.x %}{% endfor %}",
        "{% set a = 'a' * 99999 %}{{ a|replace('a', a) }}",
        "{% set a = 'a' * 99999 %}{{ a.replace('a', a) }}",
        "{% set a = 'a' * 99999 %}{{ range(99999)|join(a) }}",
        "{% set a = 'a' * 99999 %}{{ range(99999)|map('string')|join(a) }}",
        "{% set a = 'a' * 99999 %}{{ a.join(range(99999)|map('string')) }}",
        "{% set a = ['a' * 99999] * 99999 %}{{ a|join }}",
        "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    ],
)
def test_s6_a_text_without_bound_is_not_made(source: str) -> None:
    began, before = time.monotonic(), psutil.Process().memory_info().rss
    with pytest.raises(RequestError):
        render(source)
    assert time.monotonic() - began < 4
    assert psutil.Process().memory_info().rss - before < 512 * 2**20


def test_s6_a_template_in_a_request_is_refused(http: httpx.Client) -> None:
    for field in ({"chat_template": "{{ messages }}"}, {"chat_template_kwargs": {"chat_template": "x"}}):
        error = refused(http, "/v1/chat/completions", {"messages": CHAT} | field)
        assert "chat_template" in error["message"]


def test_s6_r7_health_answers_while_a_template_loops(tiny_llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps(config))

    with server_process(model) as running, httpx.Client(base_url=running.url) as http:
        with ThreadPoolExecutor(1) as pool:
            looping = pool.submit(
                httpx.post, f"{running.url}/v1/chat/completions", json={"messages": CHAT}, timeout=60
            )
            waits: list[float] = []
            while not looping.done():
                waits.append(http.get("/health").elapsed.total_seconds())
        assert looping.result().status_code == 400
        assert "longer than 2 s" in looping.result().json()["error"]["message"]
        assert len(waits) > 5 and sorted(waits)[len(waits) * 9 // 10] < 0.25


def test_s7_every_special_token_that_a_user_writes_is_plain_text(tiny_llama: Path, smollm2: Path) -> None:
    for model in (tiny_llama, smollm2):
        tokenizer: Tokenizer = load_tokenizer(model)
        assert tokenizer.chat is not None and len(tokenizer.special_texts) > 3
        nothing = tokenizer.chat.encode([USER | {"content": ""}], tokenizer)
        special = {tokenizer.encode(text)[0] for text in tokenizer.special_texts}
        for text in sorted(tokenizer.special_texts):
            written = tokenizer.chat.encode([USER | {"content": text}], tokenizer)
            assert tokenizer.decode(written, skip_special_tokens=False).count(text) >= 1
            count = sum(token in special for token in written)
            assert count == sum(token in special for token in nothing), text


# S8, S9, S10: what is not there yet is refused by name


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/completions", {"prompt_embeds": "AAAA"}),
        ("/v1/chat/completions", {"prompt_embeds": "AAAA"}),
        ("/v1/completions", {"guided_json": {}}),
        ("/v1/completions", {"guided_regex": "(a+)+$"}),
        ("/v1/completions", {"structured_outputs": {"regex": "a"}}),
        ("/v1/chat/completions", {"response_format": {"type": "json_schema", "json_schema": {}}}),
        ("/v1/chat/completions", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("/v1/chat/completions", {"mm_processor_kwargs": {}}),
    ],
)
def test_s8_s9_s10_what_is_not_supported_is_refused_by_name(
    http: httpx.Client, path: str, field: dict[str, Any]
) -> None:
    body = {"prompt": "a"} if path == "/v1/completions" else {"messages": CHAT}

    assert next(iter(field)) in refused(http, path, body | field)["message"]


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file"])
@pytest.mark.parametrize("where", ["http://127.0.0.1/x", "http://169.254.169.254/", "file:///etc/passwd"])
def test_s8_media_are_refused_and_nothing_is_fetched(http: httpx.Client, kind: str, where: str) -> None:
    part = {"type": kind, kind: {"url": where}}
    error = refused(http, "/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]})

    assert error["param"] == "messages[0].content[0].type"


# S14: the prefix cache


def cached(client: openai.OpenAI, prompt: list[int], salt: str | None) -> int:
    salted = {} if salt is None else {"cache_salt": salt}
    usage = complete(client, prompt, max_tokens=1, **salted).usage
    return usage.prompt_tokens_details.cached_tokens


def test_s14_one_salt_never_finds_what_another_stored(client: openai.OpenAI) -> None:
    prompt = [7 + i % 300 for i in range(200)]
    assert cached(client, prompt, "alice") == 0
    assert cached(client, prompt, "alice") > 0

    for other in ("bob", "alic", "alice ", "alicealice", None, "a" * 256):
        assert cached(client, prompt, other) == 0, other
    assert cached(client, prompt, "alice") > 0


def test_s14_a_prefix_has_another_sha256_in_every_process() -> None:
    """Nobody can compute outside what something is found by."""
    request = Request(request_id="r", prompt_token_ids=[1, 2, 3, 4] * 8)
    limits = SequenceLimits(max_model_len=1000, eos_token_ids=frozenset())
    chains: list[list[bytes]] = []
    for _ in range(2):
        cache = KVCache((CacheGroup(name="all", layers=(0,)),), [9], 16, True)
        (sequence,) = sequences_of(request, 0, 0, limits, 1)
        cache.match_prefix(sequence)
        chains.append(sequence.hashes)

    assert len(chains[0]) == 2 and {len(key) for key in chains[0]} == {32}
    assert not set(chains[0]) & set(chains[1])


@pytest.mark.parametrize("salt", [5, ["a"], "x" * 257, True])
def test_s14_a_salt_that_is_none_is_refused(http: httpx.Client, salt: Any) -> None:
    assert refused(http, "/v1/completions", {"prompt": "a", "cache_salt": salt})["param"] == "cache_salt"


# S18: paths


NAMES = [
    *("../../etc/passwd", "/etc/passwd", "..", ".", "~", "tiny/../tiny", "tiny\x00", "\x00", "./tiny"),
    *("..\\..\\windows", "file:///etc/passwd", "%2e%2e%2fetc%2fpasswd", "tiny/", "TINY", " tiny", "${HOME}"),
]


@pytest.mark.parametrize("name", NAMES)
def test_s18_a_models_name_is_no_path(http: httpx.Client, name: str, tmp_path: Path) -> None:
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": CHAT})):
        response = http.post(path, json=body | {"model": name})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("prefix", ["/v1/models/", "/ui/", "/v1/responses/", "/"])
@pytest.mark.parametrize(
    "rest",
    [
        *("../pyproject.toml", "..%2f..%2fpyproject.toml", "%2e%2e/%2e%2e/pyproject.toml", "%00", "a%00.js"),
        *(
            "%2fetc%2fpasswd",
            "/etc/passwd",
            "....//etc/passwd",
            "..%5c..%5cpyproject.toml",
            "%252e%252e%252f",
        ),
        *("file:///etc/passwd", "%c0%ae%c0%ae/", "%ff", "static/../page.py", "page.py"),
    ],
)
def test_s18_no_path_leaves_what_is_served(url: str, prefix: str, rest: str) -> None:
    answer = asked(url, head("GET", prefix + rest))

    assert answer.status == 404, answer
    assert "root:" not in answer.body.decode() and "[project]" not in answer.body.decode()


def test_s18_a_link_in_a_model_folder_shows_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    secret = tmp_path / "secret"
    secret.write_text("the secret text")
    (model / "tokenizer_config.json").unlink()
    (model / "tokenizer_config.json").symlink_to(secret)

    with pytest.raises(CoreError) as caught:
        start_and_close(model)
    assert "the secret text" not in str(caught.value)


# S21: what errors and logs say


def test_s21_no_error_tells_of_places_in_the_machine(
    http: httpx.Client, url: str, server: ThreadedServer, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "a most secret prompt"
    bodies: list[Any] = [
        *("{", '{"prompt": {}}', '{"prompt": 1, "model": "x"}', '{"messages": [{"role": []}]}', "[" * 9999),
        *('{"prompt": "a", "n": {}}', '{"model": "../../x"}', '{"input": {}}', '{"tools": 5}', "\\ud800"),
    ]
    folder = server.engine.info.model_path
    leaks = re.compile(r"Traceback|\.py\b|0x[0-9a-f]{6,}|/(home|tmp|usr|etc|root)/|<[a-z_.]+ object|File \"")

    for path in (
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/responses",
    ):
        for body in [*bodies, json.dumps({"prompt": secret, "messages": secret, "input": secret, "n": -1})]:
            response = http.post(path, content=body)
            assert 400 <= response.status_code < 500, (path, body, response.text)
            assert not leaks.search(response.text) and folder not in response.text, response.text
    assert secret not in caplog.text


def test_s21_a_bug_of_ours_says_nothing_of_itself(
    server: ThreadedServer, caplog: pytest.LogCaptureFixture
) -> None:
    from starlette.requests import Request
    from starlette.responses import Response

    from server.app import create_app

    async def broken(request: Request) -> Response:
        raise RuntimeError("the secret of /tmp/there")

    settings = ServerSettings(port=0, served_model_name=NAME)
    app = create_app(server.engine, settings)
    app.add_route("/broken", broken, methods=["GET"])
    app.add_route("/v1/messages/broken", broken, methods=["GET"])
    url = server.open(settings, app)

    openais, anthropics = httpx.get(f"{url}/broken"), httpx.get(f"{url}/v1/messages/broken")
    assert openais.status_code == anthropics.status_code == 500
    assert openais.json()["error"]["message"] == anthropics.json()["error"]["message"]
    assert anthropics.json()["error"]["type"] == "api_error"
    assert "secret" not in openais.text + anthropics.text
    assert "the secret of /tmp/there" in caplog.text  # whoever runs it has to know
    assert openais.headers["x-request-id"] in caplog.text
