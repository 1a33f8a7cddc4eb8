"""What ends an answer, what of it becomes text, and where parameters come from when none are given."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core import LLM, SamplingParams
from core.outputs import CompletionOutput, RequestOutput

PROMPT = [60, 200, 31, 77, 150, 9, 240, 18, 99, 123, 45, 301]
USER = 3  # <|user|>, a special token


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[LLM]:
    with LLM(str(tiny_llama), platform="cpu", dtype="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def letters(llm: LLM) -> dict[int, float]:
    """A bias under which the model writes nothing but ASCII letters."""
    tokenizer = llm.get_tokenizer()
    texts = {i: tokenizer.token_text(i) for i in range(5, 320)}
    return {i: 100.0 for i, text in texts.items() if text.isascii() and text.isalpha()}


def ask(llm: LLM, **params: Any) -> RequestOutput:
    return llm.generate(PROMPT, SamplingParams(**params), use_tqdm=False)[0]


def answer(llm: LLM, **params: Any) -> CompletionOutput:
    return ask(llm, **{"temperature": 0} | params).outputs[0]


def idle(llm: LLM) -> bool:
    """Nothing runs or waits, and every block is free."""
    return not llm.engine.has_work and llm.engine.statistics().kv_cache_usage == 0


class TestLength:
    def test_max_tokens_is_the_number_of_new_tokens(self, llm: LLM) -> None:
        for count in (1, 2, 16, 17):
            found = answer(llm, max_tokens=count)
            assert (len(found.token_ids), found.finish_reason, found.stop_reason) == (count, "length", None)

    def test_without_max_tokens_the_context_is_the_limit(self, tiny_llama: Path) -> None:
        with LLM(str(tiny_llama), platform="cpu", dtype="float32", max_model_len=40) as llm:
            for given in (None, 1000):
                found = answer(llm, max_tokens=given, ignore_eos=True)
                assert len(PROMPT) + len(found.token_ids) == 40
                assert found.finish_reason == "length"


class TestStopTokens:
    def test_a_stop_token_ends_the_answer_and_is_named(self, llm: LLM) -> None:
        whole = answer(llm, max_tokens=20)
        stop = whole.token_ids[7]
        end = whole.token_ids.index(stop) + 1

        found = answer(llm, max_tokens=20, stop_token_ids=[stop, 319])

        assert found.token_ids == whole.token_ids[:end]
        assert (found.finish_reason, found.stop_reason) == ("stop", stop)
        assert found.text == llm.get_tokenizer().decode(whole.token_ids[: end - 1])

    def test_its_text_is_shown_on_request(self, llm: LLM, letters: dict[int, float]) -> None:
        given: dict[str, Any] = {"max_tokens": 20, "logit_bias": letters}
        whole = answer(llm, **given)
        stop = whole.token_ids[5]
        found = answer(llm, **given, stop_token_ids=[stop], include_stop_str_in_output=True)
        assert found.text == llm.get_tokenizer().decode(found.token_ids)
        assert found.text.endswith(llm.get_tokenizer().token_text(stop))

    def test_the_models_end_of_sequence_ends_the_answer_without_a_reason(
        self, llm: LLM, tiny_model: Callable[..., Path]
    ) -> None:
        whole = answer(llm, max_tokens=20).token_ids
        eos = whole[6]
        end = whole.index(eos) + 1
        for eos_ids in (eos, [2, eos]):
            with LLM(
                str(tiny_model("llama", eos_token_id=eos_ids)), platform="cpu", dtype="float32"
            ) as other:
                found = answer(other, max_tokens=20)
                assert (found.token_ids, found.finish_reason, found.stop_reason) == (
                    whole[:end],
                    "stop",
                    None,
                )
                ignoring = answer(other, max_tokens=20, ignore_eos=True)
                assert (ignoring.token_ids, ignoring.finish_reason) == (whole, "length")
                named = answer(other, max_tokens=20, stop_token_ids=[eos])
                assert (named.token_ids, named.stop_reason) == (whole[:end], eos)

    def test_before_min_tokens_no_stop_token_and_no_end_of_sequence_is_possible(
        self, llm: LLM, tiny_model: Callable[..., Path]
    ) -> None:
        whole = answer(llm, max_tokens=20).token_ids
        eos, stop = whole[0], whole[1]
        with LLM(str(tiny_model("llama", eos_token_id=eos)), platform="cpu", dtype="float32") as other:
            for least in (1, 2, 9):
                # Both are far likelier than the rest, so that they come as soon as they may.
                found = answer(
                    other,
                    max_tokens=20,
                    min_tokens=least,
                    stop_token_ids=[stop],
                    logit_bias={eos: 90, stop: 90},
                )
                assert len(found.token_ids) == least + 1
                assert not {eos, stop} & {*found.token_ids[:least]}
                assert found.finish_reason == "stop"

    def test_neighbours_of_a_request_with_min_tokens_may_stop_at_once(self, llm: LLM) -> None:
        forced = SamplingParams(temperature=0, max_tokens=8, stop_token_ids=[50], logit_bias={50: 100.0})
        params = [forced, forced.with_(min_tokens=4), forced]
        counts = [len(o.outputs[0].token_ids) for o in llm.generate([PROMPT] * 3, params, use_tqdm=False)]
        assert counts == [1, 5, 1]


class TestStopStrings:
    @pytest.fixture
    def whole(self, llm: LLM, letters: dict[int, float]) -> CompletionOutput:
        found = answer(llm, max_tokens=30, logit_bias=letters)
        assert found.text.isalpha()
        return found

    def test_a_stop_string_ends_the_text_before_it(
        self, llm: LLM, letters: dict[int, float], whole: CompletionOutput
    ) -> None:
        for start in range(3, 14):
            for length in (1, 2, 3, 5):
                stop = whole.text[start : start + length]
                found = answer(llm, max_tokens=30, logit_bias=letters, stop=stop)
                assert found.text == whole.text[: whole.text.index(stop)]
                assert (found.finish_reason, found.stop_reason) == ("stop", stop)
                assert found.token_ids == whole.token_ids[: len(found.token_ids)]
        assert idle(llm)

    def test_it_may_span_tokens_and_end_within_one(
        self, llm: LLM, letters: dict[int, float], whole: CompletionOutput
    ) -> None:
        texts = [llm.get_tokenizer().token_text(token) for token in whole.token_ids]
        wide = next(i for i, text in enumerate(texts) if i > 1 and len(text) == 2)
        stop = texts[wide - 2] + texts[wide - 1] + texts[wide][0]  # two tokens and the half of a third
        found = answer(llm, max_tokens=30, logit_bias=letters, stop=[stop], include_stop_str_in_output=True)
        end = whole.text.index(stop) + len(stop)
        assert found.text == whole.text[:end], (
            "what follows the stop string in its last token is no part of it"
        )

    def test_of_several_the_first_completed_wins(
        self, llm: LLM, letters: dict[int, float], whole: CompletionOutput
    ) -> None:
        stops = [whole.text[12:15], whole.text[6:9], "zzzzzzz", whole.text[20:22]]
        first = min((s for s in stops if s in whole.text), key=lambda s: whole.text.index(s) + len(s))
        found = answer(llm, max_tokens=30, logit_bias=letters, stop=stops)
        assert found.stop_reason == first
        assert found.text == whole.text[: whole.text.index(first)]

    def test_no_part_of_it_is_ever_streamed(
        self, llm: LLM, letters: dict[int, float], whole: CompletionOutput
    ) -> None:
        stop = whole.text[9:14]
        params = SamplingParams(temperature=0, max_tokens=30, logit_bias=letters, stop=stop)
        expected = whole.text[: whole.text.index(stop)]
        seen = [output.outputs[0].text for output in llm.stream(PROMPT, params)]
        assert seen[-1] == expected
        assert all(expected.startswith(text) for text in seen)
        assert len(seen) > 5
        assert idle(llm)

    def test_what_only_looked_like_its_beginning_is_text(
        self, llm: LLM, letters: dict[int, float], whole: CompletionOutput
    ) -> None:
        almost = whole.text[-4:] + "?"
        found = answer(llm, max_tokens=30, logit_bias=letters, stop=[almost, whole.text[4:8] + "?"])
        assert (found.text, found.finish_reason) == (whole.text, "length")

    def test_before_min_tokens_it_is_ordinary_text(
        self, llm: LLM, letters: dict[int, float], whole: CompletionOutput
    ) -> None:
        found = answer(llm, max_tokens=30, min_tokens=30, logit_bias=letters, stop=whole.text[3:6])
        assert found.text == whole.text

    def test_it_ends_one_answer_and_lets_the_others_write_on(
        self, llm: LLM, letters: dict[int, float]
    ) -> None:
        given: dict[str, Any] = {"n": 4, "seed": 3, "max_tokens": 30, "logit_bias": letters}
        texts = [a.text for a in ask(llm, **given).outputs]
        stop = texts[1][10:14]
        found = ask(llm, **given, stop=stop).outputs
        for text, output in zip(texts, found, strict=True):
            assert output.text == (text[: text.index(stop)] if stop in text else text)
            assert output.finish_reason == ("stop" if stop in text else "length")
        assert found[1].finish_reason == "stop" and any(o.finish_reason == "length" for o in found)
        assert idle(llm)

    def test_reaching_max_tokens_with_the_same_token_is_still_a_stop(
        self, llm: LLM, letters: dict[int, float], whole: CompletionOutput
    ) -> None:
        text = llm.get_tokenizer().decode(whole.token_ids[:10])
        found = answer(llm, max_tokens=10, logit_bias=letters, stop=text[-3:])
        assert found.finish_reason == "stop"


class TestText:
    def test_special_tokens_are_left_out_unless_asked_for(self, llm: LLM) -> None:
        forced: dict[str, Any] = {"max_tokens": 3, "logit_bias": {USER: 100.0}}
        assert answer(llm, **forced).text == ""
        assert answer(llm, **forced, skip_special_tokens=False).text == "<|user|>" * 3
        assert answer(llm, **forced).token_ids == [USER] * 3

    def test_detokenize_false_leaves_the_text_empty(self, llm: LLM) -> None:
        found = answer(llm, max_tokens=5, detokenize=False)
        assert (found.text, len(found.token_ids)) == ("", 5)

    def test_the_text_is_what_the_tokenizer_makes_of_the_tokens(self, llm: LLM) -> None:
        for seed in range(5):
            found = answer(llm, temperature=1.0, seed=seed, max_tokens=60)
            assert found.text == llm.get_tokenizer().decode(found.token_ids)


GIVEN: dict[str, Any] = {
    "temperature": 0.25,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.01,
    "repetition_penalty": 1.2,
}


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a generation_config.json of its own."""
    folder = tmp_path_factory.mktemp("defaults") / "model"
    shutil.copytree(tiny_llama, folder)
    config = GIVEN | {"max_new_tokens": 9, "do_sample": True, "transformers_version": "5", "typical_p": None}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


class TestDefaults:
    def test_they_come_from_the_models_generation_config(self, folder: Path) -> None:
        expected = SamplingParams(**GIVEN, max_tokens=9)
        with LLM(str(folder), platform="cpu", dtype="float32", seed=1) as llm:
            assert llm.get_default_sampling_params() == expected
            unasked = llm.generate(PROMPT, use_tqdm=False)[0].outputs[0].token_ids
        with LLM(str(folder), platform="cpu", dtype="float32", seed=1) as llm:
            assert llm.generate(PROMPT, expected, use_tqdm=False)[0].outputs[0].token_ids == unasked

    def test_parameters_that_are_given_owe_the_model_nothing(self, folder: Path) -> None:
        with LLM(str(folder), platform="cpu", dtype="float32") as llm:
            assert len(ask(llm, temperature=1).outputs[0].token_ids) == 16

    def test_or_from_the_core_when_asked(self, folder: Path) -> None:
        with LLM(str(folder), platform="cpu", dtype="float32", generation_config="core") as llm:
            assert llm.get_default_sampling_params() == SamplingParams()
            assert len(llm.generate(PROMPT, use_tqdm=False)[0].outputs[0].token_ids) == 16
