"""EngineConfig is checked where it is built; `resolve` replaces every "auto", user before platform before core."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from core.config import EngineConfig, Settings, format_bytes, parse_bytes
from core.contracts.attention import AttentionShape
from core.contracts.model import ModelDescription
from core.contracts.platform import Capabilities, Defaults, SchedulingLimits
from core.errors import ConfigError
from core.resolution import resolve

MODEL = ModelDescription(
    architecture="TinyForCausalLM",
    vocab_size=320,
    hidden_size=64,
    context=512,
    dtype="bfloat16",
    layers=(AttentionShape(num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25),),
    num_parameters=1000,
)


def settings(
    capabilities: Capabilities | None = None,
    defaults: Defaults | None = None,
    model: ModelDescription = MODEL,
    **asked: Any,
) -> Settings:
    return resolve(EngineConfig(**asked), model, capabilities or Capabilities(), defaults or Defaults())


def refused(match: str, **asked: Any) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        EngineConfig(**asked)
    (name,) = asked
    assert caught.value.setting == name
    assert name in str(caught.value)


class TestBytes:
    @pytest.mark.parametrize(
        ("text", "count"),
        [
            (1073741824, 2**30),
            ("1073741824", 2**30),
            ("1GiB", 2**30),
            ("1gib", 2**30),
            ("1.5 GB", 1_500_000_000),
            ("512M", 512_000_000),
            ("512MB", 512_000_000),
            ("512MiB", 512 * 2**20),
            (" 4 KiB ", 4096),
            ("7B", 7),
            ("2T", 2 * 10**12),
            ("0.5Ki", 512),
        ],
    )
    def test_sizes_are_read_as_people_write_them(self, text: Any, count: int) -> None:
        assert parse_bytes(text, "kv_cache_memory") == count

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "1.5.5GB",
            "-1",
            "-1GiB",
            "GiB",
            "1 giga",
            "nan",
            "inf",
            math.nan,
            math.inf,
            None,
            True,
            "1e9",
            [1],
        ],
    )
    def test_anything_else_is_refused_with_examples(self, text: Any) -> None:
        with pytest.raises(ConfigError, match="write bytes, or 512MiB") as caught:
            parse_bytes(text, "kv_cache_memory")
        assert caught.value.setting == "kv_cache_memory"

    def test_they_are_shown_with_the_unit_that_fits(self) -> None:
        assert [format_bytes(n) for n in (0, 1023, 1024, 1536, 12_345_678, 2**30, 2**41)] == [
            "0 B",
            "1023 B",
            "1.0 KiB",
            "1.5 KiB",
            "11.8 MiB",
            "1.0 GiB",
            "2.0 TiB",
        ]


class TestAsking:
    @pytest.mark.parametrize(
        "name",
        ["max_model_len", "max_num_seqs", "max_num_batched_tokens", "prefill_chunk_size", "block_size"],
    )
    def test_counts_are_whole_numbers_above_zero(self, name: str) -> None:
        for value in (0, -1, 1.5, 16.0, "16", True, math.nan, math.inf, [1]):
            refused("a whole number above 0", **{name: value})
        assert getattr(EngineConfig(**{name: 1}), name) == 1

    @pytest.mark.parametrize(
        ("name", "value", "accepted"),
        [
            ("dtype", "float31", "float32, bfloat16, float16"),
            ("dtype", None, "float32"),
            ("task", "reward", "auto, generate, embed, classify"),
            ("scheduling_policy", "lifo", "fcfs, priority"),
            ("generation_config", "vllm", "auto, core"),
            ("seed", "7", "whole number"),
            ("seed", True, "whole number"),
            ("seed", 1.0, "whole number"),
            ("model", 7, "text"),
            ("model", None, "text"),
            ("model", "", "text"),
            ("tokenizer", 7, "text"),
            ("revision", ["main"], "text"),
            ("platform", None, "text"),
            ("platform", 3, "text"),
            ("enable_prefix_caching", "false", "true or false"),
            ("enable_prefix_caching", 0, "true or false"),
            ("skip_tokenizer_init", None, "true or false"),
            ("model_impl", None, "text"),
            ("trust_remote_code", 1, "true or false"),
            ("kv_cache_memory", "lots", "512MiB"),
            ("kv_cache_memory", -5, "512MiB"),
            ("kv_cache_memory", 0, "more than 0"),
            ("kv_cache_memory", "0GiB", "more than 0"),
            ("kv_cache_memory", True, "512MiB"),
            ("memory_share", 0, "above 0 up to 1"),
            ("memory_share", 1.01, "above 0 up to 1"),
            ("memory_share", math.nan, "above 0 up to 1"),
            ("memory_share", True, "above 0 up to 1"),
            ("memory_share", "half", "above 0 up to 1"),
        ],
    )
    def test_other_values_are_refused_naming_what_is_accepted(
        self, name: str, value: Any, accepted: str
    ) -> None:
        refused(accepted, **{name: value})

    def test_paths_are_texts(self) -> None:
        config = EngineConfig(model=Path("/a/model"), tokenizer=Path("/a/tokenizer"))  # type: ignore[arg-type]
        assert (config.model, config.tokenizer) == ("/a/model", "/a/tokenizer")

    def test_an_unknown_setting_names_the_closest(self) -> None:
        with pytest.raises(
            ConfigError, match="unknown setting max_num_seq; did you mean max_num_seqs"
        ) as caught:
            EngineConfig.from_keywords(max_num_seq=3)
        assert caught.value.setting == "max_num_seq"
        with pytest.raises(ConfigError, match="known: model, tokenizer"):
            EngineConfig.from_keywords(xyzzy=3)

    def test_an_amount_of_memory_has_no_share(self) -> None:
        with pytest.raises(ConfigError, match="leave one of them out"):
            EngineConfig(memory_share=0.5, kv_cache_memory="1GiB")

    def test_it_cannot_be_changed(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            EngineConfig().seed = 1  # type: ignore[misc]


class TestResolving:
    def test_the_users_word_comes_before_the_platforms_and_that_before_the_cores(self) -> None:
        platform = Defaults(
            dtype="float16", block_size=32, max_num_seqs=5, max_num_batched_tokens=77, kv_cache_memory=99
        )
        assert settings().prefill_chunk_size == 2048
        core = settings()
        assert (core.block_size, core.max_num_seqs, core.max_num_batched_tokens) == (16, 64, 2048)
        assert (core.kv_cache_memory, core.max_model_len, core.dtype) == (None, 512, "bfloat16")
        theirs = settings(defaults=platform)
        assert (theirs.block_size, theirs.max_num_seqs, theirs.max_num_batched_tokens) == (32, 5, 77)
        assert (theirs.kv_cache_memory, theirs.dtype) == (99, "float16")
        assert settings(defaults=platform, memory_share=0.5).kv_cache_memory == 49
        users = settings(
            defaults=platform,
            dtype="float32",
            block_size=8,
            max_num_seqs=3,
            max_num_batched_tokens=40,
            kv_cache_memory="1KiB",
            max_model_len=100,
        )
        assert (users.block_size, users.max_num_seqs, users.max_num_batched_tokens) == (8, 3, 40)
        assert (users.kv_cache_memory, users.dtype, users.max_model_len) == (1024, "float32", 100)

    def test_a_chunk_beside_decodes_is_the_users_else_the_platforms_and_at_most_a_step(self) -> None:
        platform = Defaults(max_num_batched_tokens=100, prefill_chunk_size=30)
        assert settings(defaults=platform).prefill_chunk_size == 30
        assert settings(defaults=platform, prefill_chunk_size=40).prefill_chunk_size == 40
        assert settings(defaults=platform, prefill_chunk_size=400).prefill_chunk_size == 100
        # Who sets the length of a step means every step.
        assert settings(defaults=platform, max_num_batched_tokens=60).prefill_chunk_size == 60

    def test_the_models_dtype_is_taken_where_the_device_has_it(self) -> None:
        assert settings(Capabilities(dtypes=("float16", "bfloat16"))).dtype == "bfloat16"
        assert settings(Capabilities(dtypes=("float32", "float16"))).dtype == "float32"

    def test_a_dtype_the_device_lacks_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="dtype is float16; this device accepts float32, bfloat16"):
            settings(Capabilities(dtypes=("float32", "bfloat16")), dtype="float16")

    def test_a_block_size_the_device_lacks_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="block_size is 17; this device accepts 24, 12"):
            settings(Capabilities(block_sizes=(24, 12)), block_size=17)
        assert settings(Capabilities(block_sizes=(24, 12))).block_size == 24

    def test_more_sequences_than_the_device_takes_are_refused_but_our_own_default_yields(self) -> None:
        eight = Capabilities(scheduling=SchedulingLimits(max_num_seqs=8))
        assert settings(eight).max_num_seqs == 8
        with pytest.raises(ConfigError, match="max_num_seqs is 9; this device accepts at most 8"):
            settings(eight, max_num_seqs=9)

    def test_a_context_beyond_the_models_is_refused(self) -> None:
        assert settings(max_model_len=512).max_model_len_asked
        assert not settings().max_model_len_asked
        with pytest.raises(
            ConfigError, match="max_model_len is 513 and the model was trained for 512"
        ) as caught:
            settings(max_model_len=513)
        assert caught.value.setting == "max_model_len"
