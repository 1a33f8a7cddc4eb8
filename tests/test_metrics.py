"""GET /metrics, /stats and /load: what is measured agrees with what was sent, under both names, come what may."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import NAME, ThreadedServer, chat, complete, server_process, wait_for
from prometheus_client.parser import text_string_to_metric_families

from server.operations.answers import Stats
from server.operations.catalog import FRONT, METRICS
from server.operations.meter import REASONS
from server.operations.metric import ALIAS, PREFIX
from server.settings import ServerSettings

pytest_plugins = ["server_fixtures"]

ROOT = Path(__file__).parent.parent
MODEL = (("model_name", NAME),)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(http: httpx.Client) -> Samples:
    response = http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """One sample, by our name for it, checked to be the same under the other."""
    own = samples[PREFIX + name, tuple(sorted({"model_name": NAME, **labels}.items()))]
    other = samples[ALIAS + name, tuple(sorted({"model_name": NAME, "engine": "0", **labels}.items()))]
    assert own == other
    return own


@pytest.fixture
def fresh(server: ThreadedServer) -> Iterator[tuple[httpx.Client, openai.OpenAI]]:
    """A front whose counts begin at zero, and the clients for it."""
    url = server.open(ServerSettings(port=0, served_model_name=NAME))
    with (
        httpx.Client(base_url=url, timeout=60) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield http, client


Fresh = tuple[httpx.Client, openai.OpenAI]


class TestMetrics:
    def test_counts_agree_with_what_was_sent(self, fresh: Fresh) -> None:
        http, client = fresh
        usages = [complete(client, max_tokens=5).usage, chat(client, n=2, max_completion_tokens=7).usage]
        list(complete(client, max_tokens=9, stream=True))

        found = scraped(http)

        prompts = sum(usage.prompt_tokens for usage in usages) + usages[0].prompt_tokens
        assert value(found, "prompt_tokens_total") == prompts
        assert value(found, "generation_tokens_total") == 5 + 2 * 7 + 9
        assert value(found, "request_success_total", finished_reason="length") == 3
        assert value(found, "request_success_total", finished_reason="stop") == 0
        for name, count, total in (
            ("time_to_first_token_seconds", 3, None),
            ("inter_token_latency_seconds", 4 + 2 * 6 + 8, None),
            ("request_time_per_output_token_seconds", 3, None),
            ("e2e_request_latency_seconds", 3, None),
            ("request_queue_time_seconds", 3, None),
            ("request_inference_time_seconds", 3, None),
            ("request_prefill_time_seconds", 3, None),
            ("request_decode_time_seconds", 3, None),
            ("request_prompt_tokens", 3, prompts),
            ("request_generation_tokens", 3, 5 + 14 + 9),
            ("request_max_num_generation_tokens", 3, 5 + 7 + 9),
            ("request_params_n", 3, 4),
            ("request_params_max_tokens", 3, 5 + 7 + 9),
        ):
            assert value(found, f"{name}_count") == count
            assert value(found, f"{name}_bucket", le="+Inf") == count
            assert value(found, f"{name}_sum") > 0
            assert total is None or value(found, f"{name}_sum") == total
        assert value(found, "request_generation_tokens_bucket", le="5.0") == 1
        assert value(found, "request_generation_tokens_bucket", le="10.0") == 2
        assert value(found, "iteration_tokens_total_count") >= 5

    def test_phases_of_a_request_add_up(self, fresh: Fresh) -> None:
        http, client = fresh
        complete(client)
        found = scraped(http)
        queue, prefill, decode, inference, whole = (
            value(found, f"{name}_sum")
            for name in (
                "request_queue_time_seconds",
                "request_prefill_time_seconds",
                "request_decode_time_seconds",
                "request_inference_time_seconds",
                "e2e_request_latency_seconds",
            )
        )
        assert prefill + decode == pytest.approx(inference)
        assert queue + inference == pytest.approx(whole)
        assert value(found, "time_to_first_token_seconds_sum") == pytest.approx(queue + prefill)
        assert value(found, "inter_token_latency_seconds_sum") == pytest.approx(decode)
        assert min(queue, prefill, decode) > 0

    def test_a_request_that_its_client_left_is_an_abort(self, fresh: Fresh) -> None:
        http, client = fresh
        with complete(client, max_tokens=8000, stream=True) as stream:
            next(iter(stream))
        wait_for(lambda: value(scraped(http), "request_success_total", finished_reason="abort") == 1)
        found = scraped(http)
        assert value(found, "generation_tokens_total") > 0
        assert value(found, "e2e_request_latency_seconds_count") == 0

    def test_running_requests_and_the_cache_they_fill_are_seen_and_go(self, fresh: Fresh) -> None:
        http, client = fresh
        with complete(client, max_tokens=8000, stream=True) as stream:
            next(iter(stream))
            wait_for(lambda: value(scraped(http), "num_requests_running") == 1)
            found = scraped(http)
            assert value(found, "kv_cache_usage_perc") > 0
            assert found["llm_num_requests_unfinished", MODEL] == 1
            assert http.get("/load").json() == {"server_load": 1}
        wait_for(lambda: value(scraped(http), "num_requests_running") == 0)
        assert http.get("/load").json() == {"server_load": 0}

    def test_a_stop_string_leaves_nothing_running(self, fresh: Fresh) -> None:
        """The engine does not know of stop strings: it is told, and tells how things stand then."""
        http, client = fresh
        text = complete(client, max_tokens=30).choices[0].text
        answer = complete(client, max_tokens=30, stop=[text[5:8]])
        assert answer.choices[0].finish_reason == "stop"
        wait_for(lambda: value(scraped(http), "num_requests_running") == 0)
        assert value(scraped(http), "request_success_total", finished_reason="stop") == 1

    def test_prefixes_that_were_computed_before_are_hits(self, fresh: Fresh) -> None:
        http, client = fresh
        before = scraped(http)
        prompt = "The tides follow the moon, and the moon follows them. " * 8
        first = complete(client, prompt=prompt, cache_salt="metrics").usage
        second = complete(client, prompt=prompt, cache_salt="metrics").usage
        after = scraped(http)
        hits, queries = (
            value(after, name) - value(before, name)
            for name in ("prefix_cache_hits_total", "prefix_cache_queries_total")
        )
        cached = second.prompt_tokens_details.cached_tokens
        assert cached > 0
        assert hits >= cached
        assert queries >= first.prompt_tokens + second.prompt_tokens

    def test_facts_are_in_labels(self, fresh: Fresh, server: ThreadedServer) -> None:
        http, _ = fresh
        info = server.engine.info
        (labels,) = (dict(pairs) for name, pairs in scraped(http) if name == "vllm:cache_config_info")
        assert int(labels["num_gpu_blocks"]) * int(labels["block_size"]) == info.num_kv_tokens
        assert labels["cache_dtype"] == info.kv_cache_dtype
        (lora,) = (dict(pairs) for name, pairs in scraped(http) if name == "vllm:lora_requests_info")
        assert lora["max_lora"] == "0"
        assert any(name == "llm_build_info" for name, _ in scraped(http))

    def test_the_process_is_measured(self, fresh: Fresh) -> None:
        found = scraped(fresh[0])
        for name in ("process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"):
            assert found[name, ()] > 0
        assert found["llm_engine_resident_memory_bytes", MODEL] > 2**20


class TestRequestsByRoute:
    def test_they_are_counted_by_the_path_that_is_declared(self, fresh: Fresh) -> None:
        http, client = fresh
        complete(client)
        http.get("/v1/models/nobody")
        http.get(f"/v1/models/{NAME}")
        http.get("/secret-made-up")
        http.request("BREW", "/v1/models")
        http.post("/v1/completions", json={"prompt": 5})
        found = scraped(http)

        def count(method: str, path: str, status: int) -> float:
            labels = (("method", method), ("path", path), ("status", str(status)))
            return found["llm_http_requests_total", labels]

        assert count("POST", "/v1/completions", 200) == 1
        assert count("POST", "/v1/completions", 400) == 1
        assert count("GET", "/v1/models/{model}", 404) == 1
        assert count("GET", "/v1/models/{model}", 200) == 1
        assert count("GET", "other", 404) == 1
        assert count("other", "/v1/models", 405) == 1
        labels = (("method", "POST"), ("path", "/v1/completions"))
        assert found["llm_http_request_duration_seconds_count", labels] == 2
        assert not any("secret" in str(pairs) or "nobody" in str(pairs) for _, pairs in found)

    def test_what_is_refused_before_the_routes_counts(self, server: ThreadedServer) -> None:
        url = server.open(ServerSettings(port=0, served_model_name=NAME, api_key=["sesame"]))
        with httpx.Client(base_url=url) as http:
            for path in ("/metrics", "/stats", "/load"):
                assert http.get(path).status_code == 401
            http.headers["authorization"] = "Bearer sesame"
            found = scraped(http)
        assert (
            found["llm_http_requests_total", (("method", "GET"), ("path", "/stats"), ("status", "401"))] == 1
        )


class TestStats:
    def test_it_has_exactly_the_declared_shape(self, fresh: Fresh) -> None:
        http, client = fresh
        Stats.model_validate(http.get("/stats").json())
        complete(client)
        Stats.model_validate(http.get("/stats").json())

    def test_it_agrees_with_what_was_sent(self, fresh: Fresh, server: ThreadedServer) -> None:
        http, client = fresh
        usage = complete(client, max_tokens=20).usage

        stats = http.get("/stats").json()

        (model,) = stats["models"]
        assert stats["default"] == model["name"] == NAME
        assert (model["prompt_tokens"], model["generation_tokens"]) == (usage.prompt_tokens, 20)
        assert model["finished"] == {"stop": 0, "length": 1, "abort": 0, "error": 0}
        counts = {name: found["count"] for name, found in model["latency"].items()}
        assert counts == {"time_to_first_token": 1, "inter_token": 19, "end_to_end": 1}
        assert 0 < model["latency"]["inter_token"]["p50"] <= model["latency"]["end_to_end"]["p50"]
        assert model["ledger"] == server.engine.info.ledger
        assert model["task"] == "generate"
        assert model["alive"] is True
        wait_for(lambda: _rates(http)["generation_tokens"] > 0)  # the second it happened in is over
        assert _rates(http)["requests"] > 0


def _rates(http: httpx.Client) -> dict[str, float]:
    return http.get("/stats").json()["models"][0]["throughput"]["last_10_s"]


class TestHangingEngine:
    def test_scrapes_and_stats_are_answered_and_say_so(self, tiny_model: Callable[..., Path]) -> None:
        body = {"prompt": "Once", "max_tokens": 4, "ignore_eos": True}
        with server_process(tiny_model("llama")) as running, httpx.Client(base_url=running.url) as http:
            assert http.post("/v1/completions", json=body).status_code == 200
            engine = running.engine
            engine.send_signal(signal.SIGSTOP)
            try:
                with pytest.raises(httpx.ReadTimeout):
                    http.post("/v1/completions", json=body, timeout=0.5)
                wait_for(lambda: scraped(http)["llm_engine_silent_seconds", MODEL] > 0.5)
                assert value(scraped(http), "generation_tokens_total") == 4
                (model,) = http.get("/stats").json()["models"]
                assert model["generation_tokens"] == 4
                assert model["silent_for"] > 0.5
                assert http.get("/load").status_code == 200
            finally:
                engine.send_signal(signal.SIGCONT)


def counts(http: httpx.Client) -> dict[str, Any]:
    (model,) = http.get("/stats").json()["models"]
    return model


class TestRestartedEngine:
    def test_counts_go_on_from_where_they_were(self, tiny_model: Callable[..., Path]) -> None:
        with (
            server_process(tiny_model("llama"), restart_engine=True) as running,
            httpx.Client(base_url=running.url) as http,
        ):
            body = {"prompt": "Once upon a time", "max_tokens": 6, "ignore_eos": True}
            assert http.post("/v1/completions", json=body).status_code == 200
            before = counts(http)
            os.kill(running.engine.pid, signal.SIGKILL)
            wait_for(lambda: counts(http)["restarts"] == 1)
            assert http.post("/v1/completions", json=body).status_code == 200
            after = counts(http)
            found = scraped(http)
        assert after["generation_tokens"] == 2 * before["generation_tokens"] == 12
        assert after["prompt_tokens"] == 2 * before["prompt_tokens"]
        assert after["finished"]["length"] == 2
        assert value(found, "iteration_tokens_total_count") == 12
        assert found["llm_engine_restarts_total", MODEL] == 1


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    for metric in (*METRICS, *FRONT):
        assert f"`{PREFIX}{metric.exported}`" in page
        assert not metric.alias or f"`{ALIAS}{metric.exported}`" in page
        assert metric.help in page
    assert all(f"`{reason}`" in page for reason in REASONS)
