"""The offline API: what it takes, what it gives back, and that one call never disturbs another."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import LLM, SamplingParams
from core.engine.request import Request
from core.errors import BadCheckpoint, EngineDead, ModelError, RequestError
from core.text.tokenizer import Tokenizer

TEXTS = ["The first prompt", "and a second, longer one that spans blocks", "x"]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
BLOCK_BYTES = 8192  # 16 tokens of 2 layers, 2 heads of 16, keys and values, float32


def make(folder: Path, **settings: Any) -> LLM:
    return LLM(str(folder), **{"platform": "cpu", "dtype": "float32"} | settings)


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[LLM]:
    with make(tiny_llama) as llm:
        yield llm


def ids(llm: LLM, prompts: Any, params: Any = GREEDY, **options: Any) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False, **options)]


class TestPrompts:
    def test_texts_ids_and_dicts_of_either_mean_the_same(self, llm: LLM) -> None:
        tokenizer = llm.get_tokenizer()
        encoded = [tokenizer.encode(text) for text in TEXTS]
        expected = ids(llm, TEXTS)
        assert len({tuple(answer) for answer in expected}) == 3
        assert ids(llm, encoded) == expected
        assert ids(llm, [{"prompt": text} for text in TEXTS]) == expected
        assert ids(llm, [{"prompt_token_ids": e} for e in encoded]) == expected
        assert ids(llm, [TEXTS[0], encoded[1], {"prompt": TEXTS[2]}]) == expected
        assert ids(llm, tuple(TEXTS)) == expected
        for single in (TEXTS[1], encoded[1], tuple(encoded[1]), {"prompt": TEXTS[1]}):
            assert ids(llm, single) == [expected[1]]

    def test_outputs_are_in_the_order_of_the_prompts_however_long_each_takes(self, llm: LLM) -> None:
        params = [GREEDY.with_(max_tokens=count) for count in (20, 1, 9)]
        outputs = llm.generate(TEXTS, params, use_tqdm=False)
        assert [o.prompt for o in outputs] == TEXTS
        assert [o.prompt_token_ids for o in outputs] == [llm.get_tokenizer().encode(text) for text in TEXTS]
        assert [len(o.outputs[0].token_ids) for o in outputs] == [20, 1, 9]
        assert all(o.finished for o in outputs)
        assert len({o.request_id for o in outputs}) == 3

    def test_a_prompt_of_ids_may_carry_its_text(self, llm: LLM) -> None:
        named, unnamed = llm.generate(
            [{"prompt_token_ids": [7, 8], "prompt": "x"}, [7, 8]], GREEDY, use_tqdm=False
        )
        assert (named.prompt, named.prompt_token_ids) == ("x", [7, 8])
        assert (unnamed.prompt, unnamed.outputs[0].token_ids) == (None, named.outputs[0].token_ids)

    def test_no_prompts_give_no_outputs(self, llm: LLM) -> None:
        assert llm.generate([], GREEDY) == []

    def test_one_set_of_parameters_for_all_or_one_for_each(self, llm: LLM) -> None:
        each = [GREEDY.with_(max_tokens=count) for count in (1, 2, 3)]
        assert [len(answer) for answer in ids(llm, TEXTS, each)] == [1, 2, 3]
        assert [len(answer) for answer in ids(llm, TEXTS, tuple(each))] == [1, 2, 3]
        assert ids(llm, TEXTS[0], [GREEDY]) == ids(llm, TEXTS[0], GREEDY)

    @pytest.mark.parametrize("params", [[GREEDY] * 2, [GREEDY] * 4, []])
    def test_another_number_of_parameters_than_prompts_is_refused(self, llm: LLM, params: Any) -> None:
        with pytest.raises(RequestError, match=f"sampling_params has {len(params)} entries for 3 prompts"):
            llm.generate(TEXTS, params)

    def test_priorities_are_one_for_each_prompt_and_need_their_policy(
        self, tiny_llama: Path, llm: LLM
    ) -> None:
        with make(tiny_llama, scheduling_policy="priority") as by_priority:
            assert ids(by_priority, TEXTS, priority=[2, 0, 1]) == ids(llm, TEXTS)
            with pytest.raises(RequestError, match="priority has 1 entries for 3 prompts"):
                by_priority.generate(TEXTS, GREEDY, priority=[1])
        with pytest.raises(RequestError, match="priority 1 has no effect under the scheduling policy fcfs"):
            llm.generate(TEXTS, GREEDY, priority=[1, 2, 3])

    def test_a_cache_salt_keeps_prefixes_apart(self, llm: LLM) -> None:
        prompt = [33] * 40
        outputs = [
            llm.generate({"prompt_token_ids": prompt, "cache_salt": salt}, GREEDY, use_tqdm=False)[0]
            for salt in ("a", "b", "a")
        ]
        assert [o.num_cached_tokens for o in outputs] == [0, 0, 32]
        assert len({tuple(o.outputs[0].token_ids) for o in outputs}) == 1


class TestChat:
    TALK = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"})
    ASK = [*TALK, {"role": "user", "content": "More"}]

    def test_a_conversation_is_rendered_through_the_template(self, llm: LLM) -> None:
        output = llm.chat(self.ASK, GREEDY, use_tqdm=False)[0]
        text = "<|user|>Hello</s><|assistant|>Yes?</s><|user|>More</s><|assistant|>"
        assert output.prompt_token_ids == llm.get_tokenizer().encode(text, add_special_tokens=False)
        assert output.outputs[0].token_ids == ids(llm, output.prompt_token_ids)[0]

    def test_several_conversations_get_an_answer_each(self, llm: LLM) -> None:
        talks = [self.ASK, self.ASK[:1]]
        params = [GREEDY, GREEDY.with_(max_tokens=3)]
        outputs = llm.chat(talks, params, use_tqdm=False)
        alone = [llm.chat(talk, p, use_tqdm=False)[0] for talk, p in zip(talks, params, strict=True)]
        assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in alone]

    def test_the_assistants_turn_is_left_closed_on_request(self, llm: LLM) -> None:
        opened, closed = (
            llm.chat(self.ASK, GREEDY, use_tqdm=False, add_generation_prompt=flag)[0].prompt_token_ids
            for flag in (True, False)
        )
        assert opened == [*closed, 4]

    def test_without_a_template_chat_is_refused(self, tiny_llama: Path, tmp_path: Path) -> None:
        for path in tiny_llama.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
        with make(tmp_path) as llm:
            with pytest.raises(RequestError, match="chat template"):
                llm.chat(self.ASK)
            assert len(ids(llm, "still works")[0]) == 12


class TestStream:
    def test_the_output_grows_to_what_generate_gives(self, llm: LLM) -> None:
        expected = llm.generate(TEXTS[0], GREEDY, use_tqdm=False)[0]
        seen = [
            (list(o.outputs[0].token_ids), o.outputs[0].text, o.finished)
            for o in llm.stream(TEXTS[0], GREEDY)
        ]
        final = expected.outputs[0]
        assert [tokens for tokens, _, _ in seen] == [final.token_ids[: i + 1] for i in range(12)]
        assert all(final.text.startswith(text) for _, text, _ in seen)
        assert seen[-1] == (final.token_ids, final.text, True)
        assert [finished for *_, finished in seen[:-1]] == [False] * 11

    def test_a_conversation_can_be_streamed(self, llm: LLM) -> None:
        *_, last = llm.stream(TestChat.ASK, GREEDY)
        assert (
            last.outputs[0].token_ids
            == llm.chat(TestChat.ASK, GREEDY, use_tqdm=False)[0].outputs[0].token_ids
        )

    def test_closing_it_aborts_the_request_and_frees_its_blocks(self, llm: LLM) -> None:
        stream = llm.stream(TEXTS[1], GREEDY.with_(max_tokens=100, n=3))
        next(stream)
        assert llm.engine.statistics().num_running > 0
        stream.close()
        assert idle(llm)

    def test_leaving_the_loop_early_does_too(self, llm: LLM) -> None:
        for output in llm.stream(TEXTS[1], GREEDY):
            if len(output.outputs[0].token_ids) == 3:
                break
        del output
        assert idle(llm)

    def test_one_that_is_never_read_costs_nothing(self, llm: LLM) -> None:
        llm.stream(TEXTS[1], GREEDY)
        assert idle(llm)

    def test_a_bad_request_is_refused_before_the_first_token_is_asked_for(self, llm: LLM) -> None:
        with pytest.raises(RequestError):
            llm.stream([999], GREEDY)

    def test_streams_take_turns(self, llm: LLM) -> None:
        streams = [llm.stream(text, GREEDY) for text in TEXTS]
        lasts: list[Any] = [None] * 3
        for outputs in zip(*streams, strict=False):
            lasts = [list(o.outputs[0].token_ids) for o in outputs]
        for i, stream in enumerate(streams):
            for output in stream:
                lasts[i] = list(output.outputs[0].token_ids)
        assert lasts == ids(llm, TEXTS)

    def test_every_stream_tells_its_end_even_when_others_made_its_steps(self, llm: LLM) -> None:
        short, long = llm.stream(TEXTS[0], GREEDY.with_(max_tokens=3)), llm.stream(TEXTS[1], GREEDY)
        next(short)
        assert len(list(long)) > 0  # drives the short one to its end
        remaining = [(o.finished, len(o.outputs[0].token_ids)) for o in short]
        assert remaining[-1] == (True, 3)

    def test_generating_meanwhile_leaves_a_stream_whole(self, llm: LLM) -> None:
        expected = ids(llm, TEXTS)
        stream = llm.stream(TEXTS[0], GREEDY)
        next(stream)
        assert ids(llm, TEXTS[2], GREEDY.with_(max_tokens=5)) == [expected[2][:5]]
        seen = [list(o.outputs[0].token_ids) for o in stream]
        assert len(seen[0]) < 12, "generate waited for a request that was not its own"
        assert seen[-1] == expected[0]


def idle(llm: LLM) -> bool:
    """Nothing runs or waits, and every block is free."""
    return not llm.engine.has_work and llm.engine.statistics().kv_cache_usage == 0


class TestTokenizer:
    def test_get_tokenizer_gives_the_models(self, llm: LLM) -> None:
        tokenizer = llm.get_tokenizer()
        assert isinstance(tokenizer, Tokenizer)
        assert tokenizer.decode(tokenizer.encode("a text")) == "a text"

    def test_without_a_tokenizer_there_are_token_ids_only(self, tiny_llama: Path, llm: LLM) -> None:
        with make(tiny_llama, skip_tokenizer_init=True) as bare:
            output = bare.generate([7, 8, 9], GREEDY.with_(logprobs=1), use_tqdm=False)[0]
            assert output.outputs[0].token_ids == ids(llm, [7, 8, 9])[0]
            assert output.outputs[0].text == ""
            assert output.outputs[0].logprobs is not None
            assert {e.decoded_token for p in output.outputs[0].logprobs for e in p.values()} == {None}
            for refused in (
                lambda: bare.generate("text", GREEDY),
                lambda: bare.chat(TestChat.ASK, GREEDY),
                lambda: bare.generate([7], GREEDY.with_(stop="x")),
                bare.get_tokenizer,
            ):
                with pytest.raises(RequestError, match="tokenizer"):
                    refused()

    def test_another_models_tokenizer_can_be_named(self, tiny_llama: Path, tmp_path: Path, llm: LLM) -> None:
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
        with make(tmp_path, tokenizer=str(tiny_llama)) as other:
            assert ids(other, TEXTS) == ids(llm, TEXTS)
        with pytest.raises(ModelError, match="has no tokenizer"):
            make(tmp_path)

    def test_a_tokenizer_of_more_tokens_than_the_model_is_another_models(
        self, tiny_llama: Path, smollm2_hf: Path
    ) -> None:
        with pytest.raises(
            BadCheckpoint, match=r"has 49,152 tokens and the model 320: it is another model's"
        ):
            make(tiny_llama, tokenizer=str(smollm2_hf))


class TestProgress:
    def test_a_bar_counts_the_prompts(self, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
        llm.generate(TEXTS, GREEDY)
        shown = capsys.readouterr()
        assert "Processed prompts" in shown.err and "3/3" in shown.err
        assert shown.out == ""

    def test_or_nothing_is_shown(self, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
        llm.generate(TEXTS, GREEDY, use_tqdm=False)
        llm.chat(TestChat.ASK, GREEDY, use_tqdm=False)
        assert capsys.readouterr() == ("", "")

    def test_the_slow_parts_of_the_start_are_told(self, tiny_llama: Path) -> None:
        told: list[str] = []
        make(tiny_llama, progress=told.append).shutdown()
        assert any("float32 on cpu" in line for line in told)


class TestShutdown:
    def test_afterwards_it_says_so_and_shutting_down_twice_is_harmless(self, tiny_llama: Path) -> None:
        llm = make(tiny_llama)
        stream = llm.stream(TEXTS[0], GREEDY)
        next(stream)
        llm.shutdown()
        llm.shutdown()
        for use in (lambda: llm.generate("x"), lambda: llm.chat(TestChat.ASK), lambda: next(stream)):
            with pytest.raises(EngineDead, match="was shut down"):
                use()

    def test_a_with_block_shuts_down_whatever_happens_in_it(self, tiny_llama: Path) -> None:
        with pytest.raises(KeyError), make(tiny_llama) as llm:
            raise KeyError
        with pytest.raises(EngineDead):
            llm.generate("x")


class TestFailingStep:
    def test_its_error_reaches_the_caller_and_the_engine_works_on(
        self, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with make(tiny_llama, platform="simulated") as llm:
            expected = ids(llm, TEXTS)
        # 5 norms a step; the fault comes in the middle of the third.
        monkeypatch.setenv("LLM_SIMULATED", "fail_kernel=add_rms_norm@11")
        with make(tiny_llama, platform="simulated") as llm:
            stream = llm.stream(TEXTS[1], GREEDY.with_(n=3))
            next(stream)
            with pytest.raises(Exception, match="add_rms_norm"):
                llm.generate(TEXTS, GREEDY, use_tqdm=False)
            assert idle(llm)
            last = list(stream)[-1]
            assert {a.finish_reason for a in last.outputs} == {"error"}
            assert last.error is not None and "add_rms_norm" in last.error
            assert ids(llm, TEXTS) == expected, "something of the lost step was taken for computed"


class TestCache:
    PROMPT = list(range(40, 105))  # 65 tokens: four blocks and a token

    def test_a_prompt_that_came_before_is_not_computed_again(self, tiny_llama: Path) -> None:
        with make(tiny_llama) as llm:
            first, second = (llm.generate(self.PROMPT, GREEDY, use_tqdm=False)[0] for _ in range(2))
            assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 64)
            assert first.outputs[0].token_ids == second.outputs[0].token_ids
            longer = llm.generate([*self.PROMPT[:50], 7], GREEDY, use_tqdm=False)[0]
            assert longer.num_cached_tokens == 48
            statistics = llm.engine.statistics()
            assert (statistics.prefix_cache_queries, statistics.prefix_cache_hits) == (65 + 65 + 51, 64 + 48)
            assert statistics.prompt_tokens == 65 + 65 + 51
            assert statistics.generation_tokens == 36

    def test_the_answer_is_remembered_too(self, tiny_llama: Path) -> None:
        with make(tiny_llama) as llm:
            answer = ids(llm, self.PROMPT, GREEDY.with_(max_tokens=40))[0]
            follow_up = llm.generate([*self.PROMPT, *answer, 9], GREEDY, use_tqdm=False)[0]
            assert follow_up.num_cached_tokens == 96

    def test_it_can_be_switched_off(self, tiny_llama: Path) -> None:
        with make(tiny_llama, enable_prefix_caching=False) as llm:
            assert ids(llm, self.PROMPT) == ids(llm, self.PROMPT)
            statistics = llm.engine.statistics()
            assert (statistics.prefix_cache_queries, statistics.prefix_cache_hits) == (0, 0)

    def test_preemption_gives_the_same_tokens_and_counts_no_hits_of_its_own(
        self, tiny_llama: Path, llm: LLM
    ) -> None:
        prompts = [[100 + i, *range(20 + i, 55 + i)] for i in range(12)]
        params = GREEDY.with_(max_tokens=50)
        with make(tiny_llama, kv_cache_memory=12 * BLOCK_BYTES, max_model_len=90) as small:
            outputs = small.generate(prompts, params, use_tqdm=False)
            statistics = small.engine.statistics()
            assert statistics.num_preemptions > 5
            assert statistics.prefix_cache_queries == sum(map(len, prompts))
            assert statistics.prefix_cache_hits == 0
            assert {o.num_cached_tokens for o in outputs} == {0}
            assert idle(small)
        assert [o.outputs[0].token_ids for o in outputs] == ids(llm, prompts, params)


def test_the_priority_policy_runs_lower_numbers_first(tiny_llama: Path) -> None:
    with make(tiny_llama, scheduling_policy="priority", max_num_seqs=1) as llm:
        for name, priority in (("late", 5), ("normal", 0), ("first", -3), ("normal too", 0)):
            llm.engine.add(
                Request(request_id=name, prompt_token_ids=[7, 8], params=GREEDY, priority=priority)
            )
        ended = []
        while llm.engine.has_work:
            ended += [delta.request_id for delta in llm.engine.step() if delta.finish_reason]
    assert ended == ["first", "normal", "normal too", "late"]


def test_a_sharded_checkpoint_gives_the_same_tokens(tiny_llama: Path, tmp_path: Path, llm: LLM) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with make(tmp_path) as sharded:
        assert ids(sharded, TEXTS) == ids(llm, TEXTS)


def test_the_model_may_be_a_path_object(tiny_llama: Path) -> None:
    with LLM(tiny_llama, platform="cpu", dtype="float32") as llm:  # type: ignore[arg-type]
        assert llm.info.model == str(tiny_llama)


def test_the_callers_own_arithmetic_keeps_its_smallest_numbers(llm: LLM) -> None:
    ids(llm, TEXTS)
    smallest = float.fromhex("0x1p-1074")
    assert smallest * 1.0 > 0.0


def test_the_ledger_says_what_was_chosen(llm: LLM) -> None:
    choices = {choice.what: choice.provider for choice in llm.ledger.choices}
    assert choices["platform"] == "cpu"
    assert choices["architecture"] == "LlamaForCausalLM"
    assert choices["linear"] == "cpu" and choices["sample"] == "reference"
    assert json.dumps(llm.info.ledger)
