"""What the cache takes: per token, per sequence and per layer, as the papers say."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from architectures import write_tiny

from core import LLM, SamplingParams
from core.engine.engine import Engine
from core.engine.request import Request, Sequence

LONG = 150


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An engine of a tiny model: (architecture, what its config changes, dtype)."""
    architecture, changes, dtype = request.param
    write_tiny(tmp_path, architecture, changes)
    with LLM(
        str(tmp_path),
        platform="cpu",
        dtype=dtype,
        skip_tokenizer_init=True,
        max_num_batched_tokens=32,
        max_num_seqs=2,
    ) as llm:
        yield llm.engine


def block_bytes(engine: Engine) -> int:
    """Of a model with one cache group."""
    (pool,) = engine.scheduler.cache.pools
    return engine.info.kv_cache_bytes // pool.num_blocks


@pytest.fixture
def most_held(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """most_held(num_tokens): blocks that a sequence of so many tokens held at once, per group; half are its prompt."""
    cache, extend, most = (
        engine.scheduler.cache,
        engine.scheduler.cache.extend,
        [0] * len(engine.scheduler.cache.pools),
    )

    def watched(sequence: Sequence, num_tokens: int) -> bool:
        extended = extend(sequence, num_tokens)
        most[:] = [max(n, pool.usable - pool.num_free) for n, pool in zip(most, cache.pools, strict=True)]
        return extended

    monkeypatch.setattr(cache, "extend", watched)

    def run(num_tokens: int) -> list[int]:
        half = num_tokens // 2
        params = SamplingParams(temperature=0, max_tokens=half, ignore_eos=True, detokenize=False)
        prompt = [5 + i % 300 for i in range(half)]
        engine.add(Request(request_id="long", prompt_token_ids=prompt, params=params))
        most[:] = [0] * len(most)
        while engine.has_work:
            engine.step()
        return list(most)

    return run


MLA = {"num_hidden_layers": 3, "kv_lora_rank": 32, "qk_rope_head_dim": 8}


@pytest.mark.parametrize(
    ("engine", "itemsize"),
    [
        pytest.param(("DeepseekV3ForCausalLM", MLA, "float32"), 4, id="V3 in float32"),
        pytest.param(("DeepseekV2ForCausalLM", MLA, "bfloat16"), 2, id="V2 in bfloat16"),
    ],
    indirect=["engine"],
)
def test_latent_attention_keeps_one_vector_and_one_rotated_key_of_a_token(
    engine: Engine, itemsize: int
) -> None:
    """DeepSeek-V2, 2024, table 1: (d_c + d_h^R) elements per token and layer, whatever the number of heads."""
    assert block_bytes(engine) == engine.settings.block_size * 3 * (32 + 8) * itemsize


@pytest.mark.parametrize(
    ("engine", "heads"),
    [
        pytest.param(("LlamaForCausalLM", {"num_key_value_heads": heads}, "float32"), heads, id=name)
        for heads, name in ((4, "all heads"), (2, "grouped"), (1, "one"))
    ],
    indirect=["engine"],
)
def test_other_attention_keeps_a_key_and_a_value_of_each_of_their_heads(engine: Engine, heads: int) -> None:
    """GQA, Ainslie et al. 2023, section 2.2: in proportion to the heads of keys and values."""
    assert block_bytes(engine) == engine.settings.block_size * 2 * 2 * heads * 16 * 4


@pytest.mark.parametrize("engine", [("MistralForCausalLM", {"sliding_window": 20}, "float32")], indirect=True)
def test_a_window_is_held_with_the_step_that_it_slides_over_and_no_more(
    engine: Engine, most_held: Callable[[int], list[int]]
) -> None:
    """Mistral 7B, Jiang et al. 2023, section 2: a rolling buffer, of a size that the length does not change."""
    size, most = engine.settings.block_size, 20 + 32 + engine.settings.block_size
    assert most_held(LONG)[0] * size <= most
    assert most_held(2 * LONG)[0] * size <= most
    assert (engine.scheduler.cache.pools[0].usable // 2 - 1) * size <= most, (
        "nor is more set aside for a sequence"
    )


@pytest.mark.parametrize(
    "engine",
    [("Gemma3ForCausalLM", {"num_hidden_layers": 6, "sliding_window_pattern": 6}, "float32")],
    indirect=True,
)
def test_of_layers_with_and_without_windows_only_the_latter_grow(
    engine: Engine, most_held: Callable[[int], list[int]]
) -> None:
    """Gemma 3, Gemma Team 2025, section 2: one layer of six keeps all tokens."""
    groups = {group.window: len(group.layers) for group in engine.scheduler.cache.groups}
    assert groups == {20: 5, None: 1}
    held = dict(zip((g.window for g in engine.scheduler.cache.groups), most_held(2 * LONG), strict=True))
    assert held[None] == -(-2 * LONG // engine.settings.block_size)
    assert held[20] * engine.settings.block_size <= 20 + 32 + engine.settings.block_size


@pytest.mark.parametrize("engine", [("MambaForCausalLM", {"state_size": 8}, "bfloat16")], indirect=True)
def test_a_state_is_of_one_size_for_every_length(
    engine: Engine, most_held: Callable[[int], list[int]]
) -> None:
    """Mamba, Gu and Dao 2023, section 3: [channels, state_size] per layer; here in float32, with 3 past inputs."""
    assert block_bytes(engine) == 2 * (96 * 8 * 4 + 3 * 96 * 2)
    assert most_held(LONG) == most_held(2 * LONG) == [2]
