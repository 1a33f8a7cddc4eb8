"""Bad input gives one clear error of the right class, and disturbs nobody.

The canary is a stream that is half way through while a bad request is made: it must end with the tokens that
it has alone, and the engine must take the next good request.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import LLM, SamplingParams
from core.errors import (
    BadCheckpoint,
    ConfigError,
    InsufficientMemory,
    ModelNotFound,
    NoPlatform,
    RequestError,
    RequestTooLong,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
)

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
POISON = 310  # a token whose embedding is NaN in the poisoned model
BLOCK_BYTES = 8192


def make(folder: Path | str, **settings: Any) -> LLM:
    return LLM(str(folder), **{"platform": "cpu", "dtype": "float32", "max_model_len": 128} | settings)


def answers(llm: LLM, prompts: Any, params: Any = GREEDY) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[LLM]:
    with make(tiny_llama) as llm:
        yield llm


def params(**given: Any) -> Callable[[LLM], Any]:
    return lambda llm: llm.generate([7, 8], SamplingParams(**given), use_tqdm=False)


def prompt(content: Any, **given: Any) -> Callable[[LLM], Any]:
    return lambda llm: llm.generate(content, GREEDY.with_(**given), use_tqdm=False)


# what is done -> (parameter at fault, what the message says)
REFUSED: dict[str, tuple[Callable[[LLM], Any], str, str]] = {
    "empty text": (prompt(""), "prompt", "prompt is empty; at least one token"),
    "no ids": (prompt([[]]), "prompt", "prompt is empty"),
    "an id beyond the vocabulary": (prompt([5, 320]), "prompt", "holds 320; .* from 0 to 319"),
    "a negative id": (prompt([-1, 5]), "prompt", "holds -1; .* from 0 to 319"),
    "an id that is no int": (prompt([[1.5]]), "prompt", r"holds 1\.5"),
    "an id that is a bool": (prompt([[7, True]]), "prompt", "holds True"),
    "an id as text": (prompt([[7, "8"]]), "prompt", "holds '8'"),
    "an enormous id": (prompt([[2**70]]), "prompt", "from 0 to 319"),
    "a number": (prompt(5), "prompt", "not 5"),
    "none": (prompt(None), "prompt", "not None"),
    "none among prompts": (prompt(["good", None]), "prompt", "not None"),
    "bytes": (prompt(b"abc"), "prompt", "not b'abc'"),
    "bytes among prompts": (prompt([b"abc"]), "prompt", "not b'abc'"),
    "a set": (prompt({"a"}), "prompt", "not {'a'}"),
    "a dict of nothing": (prompt({}), "prompt", "has nothing"),
    "a dict of something else": (prompt({"text": "a"}), "prompt", "has text"),
    "a dict with more than is used": (prompt({"prompt": "a", "images": []}), "prompt", "has prompt, images"),
    "a salt that is no text": (prompt({"prompt": "a", "cache_salt": 5}), "cache_salt", "not 5"),
    "too long by one": (prompt([7] * 128), "prompt", "128 tokens and this engine accepts 127"),
    "far too long": (prompt("word " * 5000), "prompt", "25,000 characters; at most"),
    "one bad among good": (prompt([[7], [8], [320]]), "prompt", "holds 320"),
    "stop id beyond the vocabulary": (params(stop_token_ids=[320]), "stop_token_ids", "320.*0 to 319"),
    "bias beyond the vocabulary": (params(logit_bias={5: 1, 320: 1}), "logit_bias", "320.*0 to 319"),
    "all tokens stop": (params(stop_token_ids=range(320)[:], min_tokens=2), "stop_token_ids", "list"),
    "no token may come": (
        params(stop_token_ids=[*range(320)], min_tokens=2),
        "min_tokens",
        "no token is left",
    ),
    "temperature NaN": (params(temperature=math.nan), "temperature", "from 0 to 100, not nan"),
    "temperature negative": (params(temperature=-0.1), "temperature", r"from 0 to 100, not -0\.1"),
    "top_p zero": (params(top_p=0), "top_p", "above 0 up to 1, not 0"),
    "n zero": (params(n=0), "n", "from 1 to 128, not 0"),
    "n enormous": (params(n=10**9), "n", "from 1 to 128, not 1000000000"),
    "max_tokens zero": (params(max_tokens=0), "max_tokens", "from 1 to"),
    "logprobs enormous": (params(logprobs=1000), "logprobs", "from 0 to 20"),
    "penalty infinite": (params(presence_penalty=math.inf), "presence_penalty", "from -2 to 2, not inf"),
    "params of another kind": (
        lambda llm: llm.generate("a", {"temperature": 0}),
        "sampling_params",
        "must be SamplingParams",
    ),
    "params none in a list": (lambda llm: llm.generate("a", [None]), "sampling_params", "not None"),
    "no messages": (lambda llm: llm.chat([]), "messages", "at least one message"),
    "messages that are a number": (lambda llm: llm.chat(5), "messages", "not 5"),
    "messages that are a text": (lambda llm: llm.chat("hello"), "messages", "list"),
    "a message without a role": (lambda llm: llm.chat([{"content": "a"}]), "messages", "role"),
    "a priority that is no number": (
        lambda llm: llm.generate(["a"], GREEDY, priority=["high"]),
        "priority",
        "priority",
    ),
    "streaming an empty prompt": (lambda llm: next(llm.stream([], GREEDY)), "prompt", "empty"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_request_names_what_is_wrong_and_disturbs_nobody(llm: LLM, what: str) -> None:
    do, parameter, says = REFUSED[what]
    canary_prompt = [60, 200, 31, 77]
    alone = answers(llm, canary_prompt)[0]
    canary = llm.stream(canary_prompt, GREEDY)
    for _ in range(4):
        next(canary)

    with pytest.raises(RequestError, match=says) as caught:
        do(llm)

    assert caught.value.parameter == parameter
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    assert llm.engine.statistics().num_running == 1, "something of the refused request was kept"
    assert llm.engine.statistics().num_waiting == 0
    *_, last = canary
    assert last.outputs[0].token_ids == alone
    assert answers(llm, canary_prompt) == [alone]
    assert not llm.engine.has_work and llm.engine.statistics().kv_cache_usage == 0


def test_too_long_is_a_class_of_its_own(llm: LLM) -> None:
    with pytest.raises(RequestTooLong):
        llm.generate([7] * 128, GREEDY)
    assert len(answers(llm, [7] * 127, GREEDY)[0]) == 1, "room for one token is room enough"


class TestModel:
    def test_nothing_is_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"nowhere.*Accepted: an alias \(smollm2-135m\), a folder"):
            make(tmp_path / "nowhere")
        with pytest.raises(ModelNotFound, match="did you mean smollm2-135m"):
            make("smolm2-135m")

    def test_the_folder_is_empty(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match="found nothing"):
            make(tmp_path)

    def test_nobody_brings_the_architecture(self, tiny_llama: Path, tmp_path: Path) -> None:
        change_config(tiny_llama, tmp_path, architectures=["LammaForCausalLM"])
        with pytest.raises(
            UnsupportedArchitecture, match=r"LammaForCausalLM.*closest: LlamaForCausalLM.*llm models"
        ):
            make(tmp_path)

    @pytest.mark.parametrize("named", [None, [], "LlamaForCausalLM", [7], {}])
    def test_the_config_names_no_architecture(self, tiny_llama: Path, tmp_path: Path, named: Any) -> None:
        change_config(tiny_llama, tmp_path, architectures=named)
        with pytest.raises(BadCheckpoint, match="architecture"):
            make(tmp_path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("hidden_size", 0),
            ("hidden_size", "64"),
            ("num_hidden_layers", -1),
            ("num_hidden_layers", None),
            ("num_attention_heads", 3),
            ("vocab_size", 1.5),
            ("num_key_value_heads", 3),
            ("max_position_embeddings", 0),
            ("hidden_act", "spline"),
            ("rms_norm_eps", "small"),
            ("rope_parameters", {"rope_type": "spiral", "rope_theta": 1e4}),
        ],
    )
    def test_the_config_holds_a_value_that_makes_no_sense(
        self, tiny_llama: Path, tmp_path: Path, key: str, value: Any
    ) -> None:
        change_config(tiny_llama, tmp_path, **{key: value})
        with pytest.raises((ConfigError, BadCheckpoint), match=key if key != "rope_parameters" else "spiral"):
            make(tmp_path)

    @pytest.mark.parametrize("eos", ["two", [2, "x"], 320, -1, 2.5, True, {}])
    def test_the_end_of_sequence_is_no_token(self, tiny_llama: Path, tmp_path: Path, eos: Any) -> None:
        change_config(tiny_llama, tmp_path)
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
        with pytest.raises(BadCheckpoint, match="eos_token_id"):
            make(tmp_path)

    @pytest.mark.parametrize(("key", "value"), [("temperature", -1), ("top_k", "many"), ("top_p", 7)])
    def test_the_models_defaults_make_no_sense(
        self, tiny_llama: Path, tmp_path: Path, key: str, value: Any
    ) -> None:
        change_config(tiny_llama, tmp_path)
        (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
        with pytest.raises(BadCheckpoint, match=f"generation_config.json.*{key}.*generation_config=.?core"):
            make(tmp_path)
        make(tmp_path, generation_config="core").shutdown()

    def test_the_weights_are_truncated(self, tiny_llama: Path, tmp_path: Path) -> None:
        change_config(tiny_llama, tmp_path)
        whole = (tiny_llama / "model.safetensors").read_bytes()
        for length in (len(whole) - 1, len(whole) // 2, 100, 7, 0):
            (tmp_path / "model.safetensors").write_bytes(whole[:length])
            with pytest.raises(BadCheckpoint, match=r"model\.safetensors"):
                make(tmp_path)

    def test_the_weights_are_those_of_another_model(
        self, tiny_model: Callable[..., Path], tmp_path: Path
    ) -> None:
        change_config(tiny_model("llama"), tmp_path, num_hidden_layers=3)
        with pytest.raises(BadCheckpoint, match=r"9 missing: .*model\.layers\.2"):
            make(tmp_path)
        change_config(tiny_model("llama"), tmp_path, intermediate_size=95)
        with pytest.raises(BadCheckpoint, match=r"misshaped: .*mlp.* is \[96, 64\], expected \[95, 64\]"):
            make(tmp_path)

    def test_the_weights_could_run_code(self, tiny_llama: Path, tmp_path: Path) -> None:
        change_config(tiny_llama, tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(UnsafeCheckpoint, match="can run code"):
            make(tmp_path)


class TestMemory:
    def test_a_cache_that_holds_no_request(self, tiny_llama: Path) -> None:
        with pytest.raises(
            InsufficientMemory, match=r"holds 0 tokens.*set kv_cache_memory to .* or more"
        ) as caught:
            make(tiny_llama, kv_cache_memory="8KiB")
        assert caught.value.setting == "kv_cache_memory"

    def test_a_context_that_the_cache_does_not_hold(self, tiny_llama: Path) -> None:
        says = r"holds 112 tokens and max_model_len is 128; set max_model_len to 112 or less, or kv_cache_memory to"
        with pytest.raises(InsufficientMemory, match=says):
            make(tiny_llama, kv_cache_memory=8 * BLOCK_BYTES)
        make(tiny_llama, kv_cache_memory=9 * BLOCK_BYTES).shutdown()

    def test_more_than_the_machine_has(self, tiny_llama: Path) -> None:
        with pytest.raises(InsufficientMemory, match=r"kv_cache_memory is 9\.1 TiB and .* are free"):
            make(tiny_llama, kv_cache_memory="10TB")


class TestPlatform:
    def test_nobody_has_this_name(self, tiny_llama: Path) -> None:
        with pytest.raises(
            NoPlatform, match=r"'simulate'; did you mean simulated\? installed:\n(?s:.)*  cpu  "
        ):
            make(tiny_llama, platform="simulate")

    def test_it_cannot_run(self, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from core.discovery import load_plugins

        monkeypatch.setenv("LLM_SIMULATED", "memory=lots")
        load_plugins.cache_clear()
        try:
            with pytest.raises(
                NoPlatform, match="platform simulated cannot run: LLM_SIMULATED: memory is 'lots'"
            ):
                make(tiny_llama, platform="simulated")
        finally:
            load_plugins.cache_clear()


def change_config(source: Path, target: Path, **changes: Any) -> None:
    """Copy a model folder, its config.json changed."""
    for path in source.iterdir():
        shutil.copy(path, target / path.name)
    config = json.loads((source / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))


def poisoned(source: Path, target: Path, token: int) -> Path:
    """A copy in which this token's embedding is NaN: whoever reads it gets logits that are not finite."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = torch.nan
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


HEALTHY = [[60, 200, 31], [*range(20, 60)], [*range(100, 117)], [9]]


@pytest.mark.parametrize("platform", ["cpu", "simulated"])
class TestNotANumber:
    @pytest.fixture
    def folder(self, tiny_llama: Path, tmp_path: Path) -> Path:
        return poisoned(tiny_llama, tmp_path / "model", POISON)

    @pytest.mark.parametrize("at", [0, 5, 23, 39])
    @pytest.mark.parametrize("chunk", [8, 2048])
    def test_only_the_request_that_meets_it_ends(
        self, tiny_llama: Path, folder: Path, platform: str, at: int, chunk: int
    ) -> None:
        with make(tiny_llama, platform=platform) as llm:
            expected = answers(llm, HEALTHY)
        bad = [*range(20, 60)]
        bad[at] = POISON
        kinds = [GREEDY, GREEDY.with_(n=3), SamplingParams(seed=1, logprobs=2, top_p=0.5)]
        prompts = [HEALTHY[0], bad, HEALTHY[1], bad, HEALTHY[2], bad, HEALTHY[3]]
        given = [GREEDY, kinds[0], GREEDY, kinds[1], GREEDY, kinds[2], GREEDY]
        with make(folder, platform=platform, max_num_batched_tokens=chunk) as llm:
            for _ in range(2):  # the second time with whatever the first left in the cache
                outputs = llm.generate(prompts, given, use_tqdm=False)
                assert [o.outputs[0].token_ids for o in outputs[::2]] == expected
                for output in outputs[1::2]:
                    assert {a.finish_reason for a in output.outputs} == {"error"}
                    assert output.error is not None and "not finite" in output.error
                    assert [a.token_ids for a in output.outputs] == [[]] * len(output.outputs)
                assert all(o.error is None for o in outputs[::2])
            assert not llm.engine.has_work and llm.engine.statistics().kv_cache_usage == 0

    def test_no_log_probability_that_is_not_a_number_is_given_out(self, folder: Path, platform: str) -> None:
        for chunk in (8, 2048):
            with make(folder, platform=platform, max_num_batched_tokens=chunk) as llm:
                bad = [*range(20, 40), POISON, *range(40, 70)]
                outputs = llm.generate([bad, HEALTHY[1]], GREEDY.with_(prompt_logprobs=2), use_tqdm=False)
            assert [o.outputs[0].finish_reason for o in outputs] == ["error", "length"]
            for output in outputs:
                positions = [position for position in output.prompt_logprobs or [] if position]
                assert all(math.isfinite(e.logprob) for position in positions for e in position.values())
            assert len(outputs[1].prompt_logprobs or []) == len(HEALTHY[1])

    def test_meeting_it_half_way_keeps_what_was_said(
        self, tiny_llama: Path, folder: Path, platform: str
    ) -> None:
        with make(tiny_llama, platform=platform) as llm:
            expected = answers(llm, HEALTHY)
        with make(folder, platform=platform) as llm:
            forced = GREEDY.with_(logit_bias={POISON: 100.0})
            first, *others = llm.generate([HEALTHY[1], *HEALTHY], [forced, *[GREEDY] * 4], use_tqdm=False)
            assert first.outputs[0].token_ids == [POISON]
            assert first.outputs[0].finish_reason == "error"
            assert [o.outputs[0].token_ids for o in others] == expected

    def test_the_blocks_it_filled_are_good_for_others(
        self, tiny_llama: Path, folder: Path, platform: str
    ) -> None:
        # So few blocks that each is used by every request.
        few: dict[str, Any] = {"platform": platform, "max_model_len": 60, "kv_cache_memory": "50KiB"}
        with make(tiny_llama, **few) as llm:
            expected = [answers(llm, prompt)[0] for prompt in HEALTHY]
        with make(folder, **few) as llm:
            for prompt_, wanted in zip(HEALTHY, expected, strict=True):
                outputs = llm.generate(
                    [[POISON] * 47, [POISON] * 20, [5] * 30 + [POISON]], GREEDY, use_tqdm=False
                )
                assert {o.outputs[0].finish_reason for o in outputs} == {"error"}
                assert answers(llm, prompt_) == [wanted]

    def test_padding_may_be_anything_even_beside_a_window(
        self, tiny_model: Callable[..., Path], tmp_path: Path, platform: str
    ) -> None:
        """Padding tokens are token 0: here they write NaN into the block that belongs to nobody."""
        windowed = tiny_model("mistral", sliding_window=20)
        with make(windowed, platform="cpu") as llm:
            expected = answers(llm, HEALTHY, GREEDY.with_(max_tokens=50))
        assert not any(0 in answer for answer in expected)
        with make(poisoned(windowed, tmp_path / "padding", 0), platform=platform) as llm:
            assert answers(llm, HEALTHY, GREEDY.with_(max_tokens=50)) == expected
