"""Keys and values in int8: what is kept of them, how much more fits, and that the engine does not notice otherwise."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.app import app
from core import LLM, SamplingParams
from core.config import EngineConfig
from core.conformance.attention import check_attention
from core.contracts.attention import AttentionShape, AttentionSpec
from core.contracts.model import ModelDescription
from core.contracts.platform import Capabilities, Defaults
from core.discovery import load_plugins
from core.errors import ConfigError, UnsupportedShape
from core.execution.dispatch import check_capabilities
from core.native.library import native_library
from core.outputs import RequestOutput
from core.reference.attention import ReferenceAttention, dequantized_rows, quantize_rows
from core.resolution import resolve

PROMPT = [3 + 7 * i % 300 for i in range(60)]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def spec_of(dtype: str = "float32", **more: Any) -> AttentionSpec:
    shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "scale": 0.25, "block_size": 16}
    return AttentionSpec(dtype=dtype, **(shape | more))


def greedy(model: Path, prompts: list[list[int]], **keywords: Any) -> list[RequestOutput]:
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0)
    given = {"platform": "cpu", "dtype": "float32", "max_model_len": 256} | keywords
    with LLM(str(model), kv_cache_dtype="int8", **given) as llm:
        return llm.generate(prompts, params, use_tqdm=False)


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(answer.token_ids) for output in outputs for answer in output.outputs]


# What is kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_is_kept_to_half_a_step_of_its_largest_element(dtype: torch.dtype) -> None:
    rows = torch.randn(50, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    stored = quantize_rows(rows)
    assert (stored.dtype, tuple(stored.shape)) == (torch.uint8, (50, 3, 68))

    step = rows.float().abs().amax(dim=-1, keepdim=True) / 127
    error = (dequantized_rows(stored) - rows.float()).abs()
    assert bool((error <= 0.5001 * step).all())
    assert bool((dequantized_rows(stored).abs().amax(dim=-1, keepdim=True) / 127).isclose(step).all())


def test_zeros_stay_zeros_and_what_is_not_finite_spoils_its_row_alone() -> None:
    rows = torch.ones(5, 8)
    rows[1], rows[2, 3], rows[3, 0] = 0.0, math.nan, -math.inf
    read = dequantized_rows(quantize_rows(rows))
    assert bool(read[[0, 4]].isclose(torch.tensor(1.0)).all())
    assert bool((read[1] == 0).all())
    assert bool(read[[2, 3]].isnan().all())


def test_rows_that_float32_can_hardly_hold_stay_finite() -> None:
    rows = torch.tensor([[1e-45, -1e-45], [1e-40, 3e-41], [3e38, -3e38]])
    assert bool(dequantized_rows(quantize_rows(rows)).isfinite().all())


def test_a_spec_keeps_what_it_is_told_and_else_the_model_dtype() -> None:
    assert not spec_of().quantized
    assert not spec_of(cache_dtype="float32").quantized
    assert spec_of(cache_dtype="int8").quantized


def test_a_layout_has_room_for_a_scale_behind_each_token_of_each_head() -> None:
    layout = ReferenceAttention(spec_of("bfloat16", cache_dtype="int8")).layout(7)
    assert (layout.shape, layout.block_axis, layout.dtype) == ((7, 16, 2, 20), 0, "uint8")
    assert ReferenceAttention(spec_of("bfloat16")).layout(7).dtype is None


# The cpu platform without its compiler


def test_without_the_c_plus_plus_kernels_the_reference_keeps_int8_and_the_ledger_says_why(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens(greedy(tiny_llama, [PROMPT]))
    monkeypatch.setenv("LLM_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    native_library.cache_clear()
    try:
        with LLM(str(tiny_llama), platform="cpu", dtype="float32", kv_cache_dtype="int8") as llm:
            (entry,) = [line for line in llm.ledger.as_dicts() if line["what"] == "attention"]
            params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
            assert tokens(llm.generate([PROMPT], params, use_tqdm=False)) == expected
    finally:
        native_library.cache_clear()
    assert entry["provider"] == "reference"
    assert "int8" in str(entry["rejected"]) and "no-such-compiler" in str(entry["rejected"])


# The engine


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probabilities_are_close_to_those_of_a_cache_in_the_dtype(
    tiny_llama: Path, platform: str, dtype: str
) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)

    def likelihoods(kv_cache_dtype: str) -> list[float]:
        given: dict[str, Any] = {"platform": platform, "dtype": dtype, "kv_cache_dtype": kv_cache_dtype}
        # Chunks, so that most keys and values are read from the cache.
        with LLM(str(tiny_llama), max_num_batched_tokens=16, **given) as llm:
            (output,) = llm.generate([PROMPT], params, use_tqdm=False)
        assert output.prompt_logprobs is not None
        return [
            entry[token].logprob
            for token, entry in zip(PROMPT, output.prompt_logprobs, strict=True)
            if entry is not None
        ]

    exact, rounded = torch.tensor(likelihoods("auto")), torch.tensor(likelihoods("int8"))
    assert not torch.equal(exact, rounded)
    assert float((exact - rounded).abs().mean()) < 0.05
    assert float((exact - rounded).abs().max()) < 0.5


def test_the_reference_and_the_c_plus_plus_kernels_agree_on_what_follows(tiny_llama: Path) -> None:
    prompts = [PROMPT, PROMPT[:7], PROMPT[5:40]]
    assert tokens(greedy(tiny_llama, prompts)) == tokens(greedy(tiny_llama, prompts, platform="simulated"))


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 1.55), ("float32", 3.1)])
@pytest.mark.parametrize("platform", ["cpu", "simulated"])
def test_the_same_memory_holds_more_tokens(tiny_llama: Path, platform: str, dtype: str, least: float) -> None:
    def held(kv_cache_dtype: str) -> int:
        given: dict[str, Any] = {"platform": platform, "dtype": dtype, "kv_cache_dtype": kv_cache_dtype}
        with LLM(str(tiny_llama), kv_cache_memory="512KiB", max_num_seqs=64, **given) as llm:
            assert llm.info.kv_cache_bytes <= 512 * 1024
            assert llm.info.kv_cache_dtype == (dtype if kv_cache_dtype == "auto" else kv_cache_dtype)
            return llm.info.num_kv_tokens

    # Heads of 16 leave 16 + 4 bytes of 32 or 64; of 64 it is 68 of 128 or 256.
    assert held("int8") >= least * held("auto")


def test_heads_of_64_almost_double_the_tokens(tiny_model: Callable[..., Path]) -> None:
    model = tiny_model("llama", head_dim=64)

    def held(kv_cache_dtype: str) -> int:
        given: dict[str, Any] = {
            "dtype": "bfloat16",
            "kv_cache_dtype": kv_cache_dtype,
            "kv_cache_memory": "2MiB",
        }
        with LLM(str(model), platform="cpu", max_num_seqs=64, **given) as llm:
            return llm.info.num_kv_tokens

    assert held("int8") / held("auto") == pytest.approx(128 / 68, rel=0.02)


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
def test_shared_prefixes_forks_and_preemption_change_no_token(tiny_llama: Path, platform: str) -> None:
    prompts = [PROMPT, [*PROMPT[:48], 9, 8, 7], PROMPT[:50]]
    params = SamplingParams(temperature=0.8, seed=5, n=3, max_tokens=20, ignore_eos=True)

    def answers(**keywords: Any) -> tuple[list[list[int]], int, int]:
        given = {"platform": platform, "dtype": "float32", "kv_cache_dtype": "int8", "max_model_len": 128}
        with LLM(str(tiny_llama), **(given | keywords)) as llm:
            alone = [llm.generate([prompt], params, use_tqdm=False)[0] for prompt in prompts]
            together = llm.generate(prompts, params, use_tqdm=False)
            preemptions = llm.engine.statistics().num_preemptions
        return (
            tokens(alone) + tokens(together),
            sum(output.num_cached_tokens for output in together),
            preemptions,
        )

    expected, hits, preemptions = answers(enable_prefix_caching=False)
    assert (hits, preemptions) == (0, 0)
    shared, hits, _ = answers()
    assert shared == expected
    assert hits > 100
    tight, _, preemptions = answers(kv_cache_memory="40KiB")
    assert tight == expected
    assert preemptions > 0


def test_a_sliding_window_releases_blocks_of_a_quantised_cache(tiny_model: Callable[..., Path]) -> None:
    model = tiny_model("mistral", sliding_window=24)
    prompts = [PROMPT, PROMPT[:30]]
    expected = tokens(greedy(model, prompts, platform="simulated", max_num_batched_tokens=16))
    assert tokens(greedy(model, prompts, max_num_batched_tokens=16)) == expected


def test_a_model_in_float16_keeps_int8_through_the_reference(tiny_llama: Path) -> None:
    (answer,) = tokens(greedy(tiny_llama, [PROMPT], dtype="float16"))
    assert len(answer) == 24


# What is refused


@pytest.mark.parametrize("value", ["fp8", "bfloat16", "INT8", 8, None])
def test_other_values_are_refused_with_what_is_accepted(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_dtype is .*; accepted: auto, int8") as caught:
        EngineConfig(kv_cache_dtype=value)
    assert caught.value.setting == "kv_cache_dtype"


def test_a_device_that_does_not_keep_int8_says_what_it_keeps() -> None:
    shape = AttentionShape(num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25)
    model = ModelDescription(
        architecture="TinyForCausalLM",
        vocab_size=320,
        hidden_size=64,
        context=512,
        dtype="bfloat16",
        layers=(shape,),
        num_parameters=1000,
    )
    asked, able = EngineConfig(kv_cache_dtype="int8"), Capabilities(kv_cache_dtypes=frozenset({"int8"}))
    with pytest.raises(ConfigError, match=r"kv_cache_dtype is int8; this device accepts auto$"):
        resolve(asked, model, Capabilities(), Defaults())

    assert resolve(EngineConfig(), model, Capabilities(), Defaults()).kv_cache_dtype == "bfloat16"
    settings = resolve(asked, model, able, Defaults())
    assert settings.kv_cache_dtype == settings.attention_spec(shape).cache_dtype == "int8"


def test_a_layer_whose_keys_a_device_cannot_keep_is_refused_whoever_serves_it() -> None:
    (found,) = [each for each in load_plugins().platforms if each.name == "simulated"]
    assert found.platform is not None
    with pytest.raises(UnsupportedShape, match=r"stored in int8; platform simulated accepts float32$"):
        check_capabilities(found.platform, Capabilities(), spec_of(cache_dtype="int8"))


def test_the_command_line_refuses_other_values_in_a_sentence() -> None:
    result = CliRunner().invoke(app, ["generate", "--kv-cache-dtype", "fp8", "Hello"])
    assert result.exit_code == 2
    assert "--kv-cache-dtype" in result.output and "auto, int8" in result.output
    assert "Traceback" not in result.output


def test_the_command_line_runs_with_int8(tiny_llama: Path) -> None:
    options = ["--model", str(tiny_llama), "--kv-cache-dtype", "int8", "--max-tokens", "3"]
    result = CliRunner().invoke(app, ["generate", *options, "Hello"])
    assert result.exit_code == 0, result.output


# The conformance kit


def test_the_kit_tries_what_a_platform_says_it_keeps() -> None:
    plugins = load_plugins()
    found = next(each for each in plugins.platforms if each.name == "simulated")
    assert found.platform is not None
    results = list(check_attention(found.platform, found.probe.devices[0], "float32", 12))
    cases = {result.case for result in results}
    assert all(f"{case}, kept in int8" in cases for case in cases if "int8" not in case)
