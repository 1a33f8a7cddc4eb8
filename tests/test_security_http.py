"""Security of what stands in front of the routes; each test is named after its line in the list of defects."""

import re
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from live_server import CHAT, NAME, ThreadedServer, wait_for
from raw_http import asked, connected, head, read_answer

from core.errors import ConfigError
from server.app import create_app, declared
from server.guard.hosts import accepted_hosts
from server.guard.limits import MAX_HEADER_BYTES
from server.routes import Access
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

KEYS = ("sesame", "poppy")
PATIENCE = 1.0
PAGE = "https://chat.example.com"
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def locked(server: ThreadedServer) -> str:
    return server.open(settings(api_key=KEYS))


@pytest.fixture(scope="module")
def picky(server: ThreadedServer) -> str:
    """Has no patience, and knows a page and some names."""
    return server.open(
        settings(
            api_key=KEYS,
            body_timeout=PATIENCE,
            max_body_bytes=65536,
            allowed_origins=[PAGE],
            allowed_hosts=["127.0.0.1", "llm.example.com", "*.inside.example.com"],
        )
    )


def settings(**given: Any) -> ServerSettings:
    return ServerSettings(port=0, served_model_name=NAME, **given)


# S15, S16: keys


def test_s15_every_declared_route_asks_for_a_key_unless_it_says_that_it_is_open(
    server: ThreadedServer, locked: str
) -> None:
    routes = declared(create_app(server.engine, settings()).state.shared)
    assert len(routes) > 10
    open_ones = {(route.method, route.path) for route in routes if route.access is Access.OPEN}

    with httpx.Client(base_url=locked) as http:
        for path in {route.path for route in routes}:
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"):
                status = http.request(method, re.sub(r"{[^}]*}", "x", path)).status_code
                is_open = ({"HEAD": "GET"}.get(method, method), path) in open_ones
                assert (status == 401) == (not is_open), (method, path, status)


def test_s16_only_probes_and_the_page_are_open(server: ThreadedServer) -> None:
    routes = declared(create_app(server.engine, settings()).state.shared)

    for route in routes:
        if route.access is Access.OPEN:
            assert route.method == "GET", route.path
            assert re.match(r"/(health.*|ping|ui/.*|)$", route.path), route.path


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "//health",
        "/health/",
        "/health/../v1/models",
        "/health%2f..%2fv1/models",
        "/%2e%2e/v1/models",
        "/v1/models;/health",
        "/v1/models?x=/health",
        "/v1/models/%00",
        "/v1/models/%ff%fe",
        "/HEALTH",
        "http://127.0.0.1/health",
        "http://evil.example.com/v1/models",
        "*",
    ],
)
def test_s15_a_strange_path_is_closed_too(locked: str, path: str) -> None:
    assert asked(locked, head("GET", path)).status == 401


@pytest.mark.parametrize(
    "host", ["", "127.0.0.1/health", "127.0.0.1?", "127.0.0.1#/health", "a@127.0.0.1", "[::1", "\xff", "a b"]
)
def test_s15_a_malformed_host_opens_nothing(locked: str, host: str) -> None:
    answer = asked(locked, head("GET", "/v1/models", host=host))

    assert answer.status in (400, 401)
    assert answer.error()["message"]


@pytest.mark.parametrize(
    "header",
    [
        "authorization: ",
        "authorization: Bearer",
        "authorization: Bearer sesam",
        "authorization: Bearer sesamex",
        "authorization: Bearer SESAME",
        "authorization: Basic sesame",
        "authorization: sesame",
        "authorization: Bearer \xdf",
        "authorization: Bearer sesame,poppy",
        "x-api-key: ",
        "x-api-key: Bearer sesame",
        "cookie: key=sesame",
    ],
)
def test_s15_a_wrong_key_is_refused(locked: str, header: str) -> None:
    answer = asked(locked, head("GET", "/v1/models", header))

    assert answer.status == 401
    assert answer.error()["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", KEYS)
def test_s15_every_key_is_let_in_as_openais_and_as_anthropics_clients_send_it(locked: str, key: str) -> None:
    with openai.OpenAI(base_url=f"{locked}/v1", api_key=key) as client:
        assert client.models.list().data[0].id == NAME
    assert httpx.get(f"{locked}/v1/models", headers={"x-api-key": key}).status_code == 200
    assert httpx.get(f"{locked}/v1/models", headers={"authorization": f"bearer  {key}"}).status_code == 200


# S17: names and pages


def test_s17_a_server_for_this_machine_alone_answers_to_its_names_only(url: str) -> None:
    port = url.rpartition(":")[2]
    for host in ("127.0.0.1", f"localhost:{port}", "LOCALHOST", "[::1]:80", "localhost."):
        assert asked(url, head("GET", "/health", host=host)).status == 200, host
    for host in ("evil.example.com", f"127.0.0.1.evil.example.com:{port}", "127.0.0.2", "0.0.0.0", "[::]"):
        answer = asked(url, head("GET", "/health", host=host))
        assert (answer.status, answer.error()["code"]) == (421, "host_not_allowed"), host


def test_s17_a_client_that_sends_no_name_is_refused_where_names_matter(url: str) -> None:
    assert asked(url, b"GET /health HTTP/1.0\r\n\r\n").status == 400


def test_s17_names_can_be_chosen(picky: str) -> None:
    for host, status in [
        ("llm.example.com:8000", 200),
        ("a.inside.example.com", 200),
        ("b.a.inside.example.com", 200),
        ("outinside.example.com", 421),
        ("inside.example.com", 421),
        ("localhost", 421),
    ]:
        assert asked(picky, head("GET", "/health", host=host)).status == status, host


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("127.evil.example.com", False),
        ("192.168.1.5", False),
    ],
)
def test_s17_any_name_is_answered_where_others_can_connect(host: str, local: bool) -> None:
    assert ("*" not in accepted_hosts(ServerSettings(host=host))) == local


def test_s17_pages_from_elsewhere_may_not_call(url: str, http: httpx.Client) -> None:
    for origin in ("https://evil.example.com", "null", f"{url}.evil.example.com", "http://127.0.0.1:1"):
        refused = http.post(COMPLETIONS, json={"prompt": "a"}, headers={"origin": origin})
        assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
        assert "access-control-allow-origin" not in refused.headers
        asking = {"origin": origin, "access-control-request-method": "POST"}
        assert http.request("OPTIONS", COMPLETIONS, headers=asking).status_code == 403


def test_s17_the_servers_own_page_may_call(url: str, http: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    behind_a_proxy = {"origin": "https://llm.example.com", "sec-fetch-site": "same-origin"}
    for headers in ({"origin": url}, behind_a_proxy):
        assert http.post(COMPLETIONS, json=body, headers=headers).status_code == 200


def test_s17_an_allowed_page_is_answered_before_a_key_is_asked_for_and_then_needs_one(picky: str) -> None:
    asking = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    before = httpx.request("OPTIONS", picky + COMPLETIONS, headers=asking)
    assert before.status_code == 204
    assert before.headers["access-control-allow-origin"] == PAGE
    assert "POST" in before.headers["access-control-allow-methods"]
    assert before.headers["access-control-allow-headers"] == "authorization, content-type"

    refused = httpx.get(f"{picky}/v1/models", headers={"origin": PAGE})
    served = httpx.get(f"{picky}/v1/models", headers={"origin": PAGE, "x-api-key": KEYS[0]})
    assert (refused.status_code, served.status_code) == (401, 200)
    for response in (refused, served):
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        assert response.headers["vary"] == "origin"


# S19: the HTTP layer


def test_s19_headers_that_are_too_long_are_431(url: str) -> None:
    long = "x" * MAX_HEADER_BYTES
    for sent in (
        [head("GET", "/health", f"x-long: {long}")],
        [head("GET", f"/health?{long}")],
        [head("GET", "/health", *(f"x-{i}: {'y' * 100}" for i in range(200)))],
        [b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: ", *[b"z" * 4096] * 5],
    ):
        answer = asked(url, *sent)
        assert (answer.status, answer.error()["code"]) == (431, "header_too_large")


def test_s19_a_header_or_body_that_does_not_arrive_in_time_is_ended(picky: str) -> None:
    with connected(picky) as silent, connected(picky) as halfway, connected(picky) as waiting:
        halfway.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n")
        waiting.sendall(head("POST", COMPLETIONS, "x-api-key: sesame", "content-length: 100") + b"{")

        assert read_answer(silent).status == 0
        for late in (halfway, waiting):
            answer = read_answer(late)
            assert (answer.status, answer.error()["code"]) == (408, "request_timeout")
            assert answer.headers["x-should-retry"] == "false"


def test_s19_a_client_that_drips_is_ended_too(picky: str) -> None:
    """Whether it is let in or not, and on a connection that was of use before."""
    for key in ("sesame", "wrong"):
        with connected(picky) as dripping:
            dripping.settimeout(PATIENCE / 10)
            dripping.sendall(
                head("POST", COMPLETIONS, f"x-api-key: {key}", "content-length: 9000").replace(
                    b"close", b"keep"
                )
            )
            ended = False
            for _ in range(100):
                try:
                    dripping.sendall(b" ")
                    ended = dripping.recv(65536) == b""
                except TimeoutError:
                    continue
                except OSError:
                    ended = True
                if ended:
                    break
            assert ended


def test_s19_a_connection_that_is_kept_is_not_ended_while_it_owes_nothing(picky: str) -> None:
    request = head("GET", "/health").replace(b"close", b"keep-alive")
    with connected(picky) as kept:
        for _ in range(2):
            kept.sendall(request)
            received = kept.recv(65536)
            while not received.endswith(b"}"):
                received += kept.recv(65536)
            assert received.startswith(b"HTTP/1.1 200")
            kept.settimeout(2 * PATIENCE)
            with pytest.raises(TimeoutError):
                kept.recv(1)


def test_s19_a_body_in_chunks_of_one_byte_is_read_in_bounded_memory_and_stalls_nobody(
    server: ThreadedServer,
) -> None:
    url = server.open(settings(max_body_bytes=128 * 1024))
    sent = head("POST", COMPLETIONS, "transfer-encoding: chunked")
    body = b'{"prompt": "a", "max_tokens": 1}'
    assert asked(url, sent, *(b"1\r\n%c\r\n" % byte for byte in body), b"0\r\n\r\n").status == 200

    before = psutil.Process().memory_info().rss
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url) as http:
        attack = pool.submit(asked, url, sent, b"1\r\n \r\n" * (128 * 1024 + 1))
        waits: list[float] = []
        while not attack.done():
            waits.append(http.get("/health").elapsed.total_seconds())
    assert attack.result().status == 413
    assert psutil.Process().memory_info().rss - before < 64 * 2**20
    assert sorted(waits)[len(waits) * 9 // 10] < 0.25


def test_s19_a_body_that_is_too_long_is_413_whether_it_says_so_or_not(picky: str) -> None:
    key = "x-api-key: sesame"
    declared_long = asked(picky, head("POST", COMPLETIONS, key, "content-length: 65537"))
    chunked = asked(
        picky, head("POST", COMPLETIONS, key, "transfer-encoding: chunked"), b"10001\r\n" + b" " * 65537
    )
    for answer in (declared_long, chunked):
        assert (answer.status, answer.error()["code"]) == (413, "request_too_large")


def test_s19_who_asks_first_is_not_told_to_send_what_is_too_long(picky: str) -> None:
    asking = ["x-api-key: sesame", "expect: 100-continue"]

    assert asked(picky, head("POST", COMPLETIONS, *asking, "content-length: 65537")).status == 413
    assert asked(picky, head("POST", COMPLETIONS, *asking, "content-length: 2"), b"{}").status == 100


@pytest.mark.parametrize(
    "headers",
    [
        ["content-length: 5", "content-length: 6"],
        ["content-length: -1"],
        ["content-length: 1e3"],
        ["content-length: 5", "transfer-encoding: gzip"],
        ["transfer-encoding: chunked, chunked"],
        ["host: localhost"],
        ["content-length: " + "9" * 30],
        ["no colon"],
        ["a\x00b: c"],
    ],
)
def test_s19_a_request_that_can_be_read_in_two_ways_is_refused(url: str, headers: list[str]) -> None:
    answer = asked(url, head("POST", COMPLETIONS, *headers))

    assert answer.status == 400
    assert answer.error()["type"] == "invalid_request_error"


@pytest.mark.parametrize("broken", [b"zz\r\n", b"-1\r\n", b"5\r\nab", b"ffffffffffffffffff\r\n"])
def test_s19_a_chunk_that_is_none_ends_the_request_only(url: str, http: httpx.Client, broken: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(head("POST", COMPLETIONS, "transfer-encoding: chunked") + broken)
        connection.shutdown(socket.SHUT_WR)
        assert read_answer(connection).status in (0, 400)
    assert http.get("/health").status_code == 200


# Labels, the log, TLS


def test_r15_the_same_request_id_fifty_times_at_once(url: str) -> None:
    def ask(index: int) -> tuple[str, str, str]:
        response = httpx.post(
            url + COMPLETIONS,
            json={"prompt": [5 + index % 7, 9], "max_tokens": 4, "temperature": 0},
            headers={"x-request-id": "the-same.1"},
            timeout=60,
        )
        while response.status_code == 429:
            response = httpx.post(url + COMPLETIONS, content=response.request.content, timeout=60)
        content = response.json()
        return response.status_code, content["id"], response.headers["x-request-id"]

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(50)))

    assert {status for status, _, _ in answers} == {200}
    assert len({answer for _, answer, _ in answers}) == 50
    assert "the-same.1" in {label for *_, label in answers}


@pytest.mark.parametrize("given", ["a b", "x" * 129, "a\tb", "<script>", "ä"])
def test_s21_a_request_id_that_could_be_more_than_one_is_replaced(http: httpx.Client, given: str) -> None:
    label = http.get("/health", headers={"x-request-id": given.encode("latin-1")}).headers["x-request-id"]

    assert label != given and re.fullmatch(r"req_[0-9a-f]{32}", label)


def test_every_answer_has_a_request_id(locked: str, http: httpx.Client) -> None:
    for response in (http.get("/health"), http.get("/nothing"), httpx.post(locked + COMPLETIONS)):
        assert response.headers["x-request-id"]
    labelled = http.post("/v1/messages", json={}, headers={"x-request-id": "mine"})
    assert labelled.headers["request-id"] == labelled.json()["request_id"] == "mine"
    assert labelled.json()["type"] == "error"


def test_s21_the_log_has_a_line_for_a_request_and_nothing_of_what_it_holds(
    server: ThreadedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    logging = server.open(settings(access_log=True))
    forged = "/%0a2026%20POST%20/forged%1b[31m?secret=1"
    asked(logging, head("GET", forged, "x-request-id: a.1", "x-api-key: secret"))
    httpx.post(f"{logging}/v1/completions", json={"prompt": "a secret prompt", "max_tokens": 1})
    lines: list[str] = []

    def logged() -> bool:
        lines.extend(
            line for line in capfd.readouterr().err.splitlines() if "a.1" in line or " POST " in line
        )
        return len(lines) >= 2

    wait_for(logged)
    shape = r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 [A-Z]+ \S+ \d{3} \d+\.\d{3}s [\w.-]+"
    assert len(lines) == 2 and all(re.fullmatch(shape, line) for line in lines), lines
    assert "secret" not in "".join(lines)
    assert "GET /%0A2026%20POST%20/forged%1B%5B31m 404" in lines[0] and lines[0].endswith(" a.1")


def test_the_log_can_be_turned_off(server: ThreadedServer, capfd: pytest.CaptureFixture[str]) -> None:
    httpx.get(f"{server.open(settings(access_log=False))}/health")
    assert capfd.readouterr().err == ""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    files = {"ssl_certfile": str(folder / "cert.pem"), "ssl_keyfile": str(folder / "key.pem")}
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 "
        f"-out {files['ssl_certfile']} -keyout {files['ssl_keyfile']}".split(),
        check=True,
        capture_output=True,
    )
    return files


def test_tls_is_spoken_with_a_certificate(server: ThreadedServer, certificate: dict[str, str]) -> None:
    trusting = ssl.create_default_context(cafile=certificate["ssl_certfile"])
    url = server.open(settings(**certificate))

    with httpx.Client(base_url=url, verify=trusting) as http:
        streamed = http.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 3, "stream": True})
    assert url.startswith("https://")
    assert streamed.text.endswith("data: [DONE]\n\n")
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_certificate_that_is_none_is_refused_by_name(certificate: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("nothing")
    for name in certificate:
        with pytest.raises(ConfigError, match="cannot be used together") as caught:
            settings(**certificate | {name: str(tmp_path / "none.pem")})
        assert caught.value.setting == "ssl_certfile"
