"""What sampling parameters do to the tokens of a real engine, against oracles that know nothing of it.

The oracle for a distribution, a penalty or a log-probability is transformers' logits and a few lines of numpy.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from parity import TIE, Reference

from core import LLM, SamplingParams
from core.outputs import CompletionOutput, RequestOutput

Floats = NDArray[np.float64]
PROMPT = [60, 200, 31, 77, 150, 9, 240, 18, 99, 123, 45, 301]
VOCABULARY = 320


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[LLM]:
    with LLM(str(tiny_llama), platform="cpu", dtype="float32", max_num_seqs=256) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> Reference:
    return Reference(tiny_llama)


def ask(llm: LLM, prompt: Sequence[int] = PROMPT, **params: Any) -> RequestOutput:
    return llm.generate(list(prompt), SamplingParams(**params), use_tqdm=False)[0]


def tokens(llm: LLM, prompt: Sequence[int] = PROMPT, **params: Any) -> list[int]:
    return ask(llm, prompt, **params).outputs[0].token_ids


def next_logits(reference: Reference, prompt: Sequence[int], answer: Sequence[int] = ()) -> Floats:
    """Of every token of the answer and one more: [len(answer) + 1, vocabulary]."""
    return reference.logits([*prompt, *answer])[len(prompt) - 1 :].double().numpy()


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


class TestDistribution:
    """The first token of 2048 seeded answers, against the distribution that the definitions give."""

    CASES: dict[str, dict[str, Any]] = {
        "plain": {},
        "cold": {"temperature": 0.5},
        "hot": {"temperature": 3.0},
        "top_k": {"top_k": 4},
        "top_p": {"top_p": 0.6},
        "min_p": {"min_p": 0.2, "temperature": 1.2},
        "top_k, then top_p of what is left": {"top_k": 6, "top_p": 0.7},
        "min_p, then top_p of what is left": {"min_p": 0.1, "top_p": 0.8},
        "all": {"min_p": 0.1, "top_k": 12, "top_p": 0.85, "temperature": 0.8},
    }

    @staticmethod
    def expected(
        logits: Floats, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
    ) -> Floats:
        probabilities = np.exp(log_softmax(logits / temperature))
        order = np.argsort(-probabilities, kind="stable")
        kept = np.zeros(len(order), dtype=bool)
        kept[order[: top_k or None]] = True
        kept &= probabilities >= min_p * probabilities.max()
        probabilities = np.where(kept, probabilities, 0.0)
        probabilities /= probabilities.sum()
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= top_p]] = 0.0
        return probabilities / probabilities.sum()

    @pytest.mark.parametrize("case", CASES)
    def test_tokens_are_drawn_as_often_as_they_are_likely(
        self, llm: LLM, reference: Reference, case: str
    ) -> None:
        given = self.CASES[case]
        expected = self.expected(next_logits(reference, PROMPT)[0], **given)
        params = [SamplingParams(n=128, seed=1000 * i, max_tokens=1, **given) for i in range(16)]

        outputs = llm.generate([PROMPT] * 16, params, use_tqdm=False)

        drawn = np.bincount([a.token_ids[0] for o in outputs for a in o.outputs], minlength=VOCABULARY)
        assert drawn.sum() == 2048
        assert not drawn[expected == 0].any(), "a token was drawn that the limits exclude"
        assert chi_square_sigmas(drawn, expected * 2048) < 4.0

    def test_the_limits_leave_several_tokens_to_choose_from(self, reference: Reference) -> None:
        """Else the tests above would prove nothing."""
        logits = next_logits(reference, PROMPT)[0]
        left = {case: int((self.expected(logits, **given) > 0).sum()) for case, given in self.CASES.items()}
        assert all(left[case] == VOCABULARY for case in ("plain", "cold", "hot"))
        assert left["top_k"] == 4
        assert all(2 < count < 100 for case, count in left.items() if count != VOCABULARY), str(left)


def chi_square_sigmas(drawn: NDArray[np.int64], expected: Floats) -> float:
    """How many standard deviations the drawn counts lie above what chance explains; rare tokens are pooled."""
    common = expected >= 8
    drawn_, expected_ = [*drawn[common]], [*expected[common]]
    if expected[~common].sum() > 0:
        drawn_.append(drawn[~common].sum())
        expected_.append(expected[~common].sum())
    statistic = sum((d - e) ** 2 / max(e, 1.0) for d, e in zip(drawn_, expected_, strict=True))
    freedom = len(drawn_) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def test_temperature_zero_takes_the_likeliest_whatever_the_other_limits(llm: LLM) -> None:
    greedy = tokens(llm, temperature=0, max_tokens=12)
    assert tokens(llm, temperature=0, max_tokens=12, top_k=5, top_p=0.3, min_p=0.2, seed=4) == greedy
    assert tokens(llm, temperature=3, max_tokens=12, top_k=1) == greedy
    assert tokens(llm, temperature=3, max_tokens=12, top_p=1e-6) == greedy
    assert tokens(llm, temperature=3, max_tokens=12, min_p=1.0) == greedy
    assert tokens(llm, temperature=1e-6, max_tokens=12) == greedy


class TestSeed:
    PARAMS: dict[str, Any] = {"temperature": 1.5, "seed": 42, "max_tokens": 24, "ignore_eos": True}

    @pytest.fixture
    def alone(self, llm: LLM) -> list[int]:
        return tokens(llm, **self.PARAMS)

    @staticmethod
    def crowd(rng: random.Random) -> list[tuple[list[int], SamplingParams]]:
        kinds = [{}, {"temperature": 0}, {"top_k": 3}, {"repetition_penalty": 2.0}, {"n": 3}, {"seed": 42}]
        prompts = [[rng.randrange(5, VOCABULARY) for _ in range(rng.randrange(1, 60))] for _ in range(12)]
        return [
            (prompt, SamplingParams(max_tokens=rng.randrange(1, 40), **kinds[i % len(kinds)]))
            for i, prompt in enumerate(prompts)
        ]

    def in_a_crowd(self, llm: LLM) -> list[int]:
        crowd = self.crowd(random.Random(1))
        crowd.insert(5, (PROMPT, SamplingParams(**self.PARAMS)))
        prompts, params = zip(*crowd, strict=True)
        return llm.generate(list(prompts), list(params), use_tqdm=False)[5].outputs[0].token_ids

    def test_the_same_seed_gives_the_same_tokens_again(self, llm: LLM, alone: list[int]) -> None:
        assert tokens(llm, **self.PARAMS) == alone

    def test_another_seed_gives_other_tokens(self, llm: LLM, alone: list[int]) -> None:
        others = [
            tokens(llm, **self.PARAMS | {"seed": seed}) for seed in (0, 1, 41, -42, 2**63 - 1, -(2**63))
        ]
        assert len({tuple(answer) for answer in [alone, *others]}) == 7

    def test_without_a_seed_answers_differ_within_a_process(self, llm: LLM) -> None:
        answers = {tuple(tokens(llm, **self.PARAMS | {"seed": None})) for _ in range(4)}
        assert len(answers) == 4

    def test_the_engines_seed_repeats_a_whole_run(self, tiny_llama: Path) -> None:
        def run(seed: int) -> list[list[int]]:
            with LLM(str(tiny_llama), platform="cpu", dtype="float32", seed=seed) as llm:
                outputs = llm.generate([PROMPT] * 3, SamplingParams(max_tokens=12), use_tqdm=False)
            return [o.outputs[0].token_ids for o in outputs]

        assert run(3) == run(3)
        assert run(3) != run(4)

    def test_a_crowd_changes_nothing(self, llm: LLM, alone: list[int]) -> None:
        assert self.in_a_crowd(llm) == alone

    @pytest.mark.parametrize("chunk", [1, 3, 16])
    def test_the_size_of_prompt_chunks_changes_nothing(
        self, tiny_llama: Path, alone: list[int], chunk: int
    ) -> None:
        with LLM(str(tiny_llama), platform="cpu", dtype="float32", max_num_batched_tokens=chunk) as llm:
            assert tokens(llm, **self.PARAMS) == alone
            assert self.in_a_crowd(llm) == alone

    def test_preemption_changes_nothing(self, tiny_llama: Path, alone: list[int]) -> None:
        with LLM(
            str(tiny_llama), platform="cpu", dtype="float32", max_model_len=112, kv_cache_memory=12 * 8192
        ) as llm:
            assert self.in_a_crowd(llm) == alone
            assert llm.engine.statistics().num_preemptions > 5

    def test_the_first_of_several_answers_is_what_one_alone_would_be(
        self, llm: LLM, alone: list[int]
    ) -> None:
        answers = [a.token_ids for a in ask(llm, **self.PARAMS, n=4).outputs]
        assert answers[0] == alone
        assert len({tuple(answer) for answer in answers}) == 4
        assert [a.token_ids for a in ask(llm, **self.PARAMS, n=4).outputs] == answers


class TestAnswers:
    """n"""

    def test_greedy_answers_are_all_the_same(self, llm: LLM) -> None:
        output = ask(llm, n=3, temperature=0, max_tokens=9)
        assert [a.index for a in output.outputs] == [0, 1, 2]
        assert len({tuple(a.token_ids) for a in output.outputs}) == 1
        assert all(a.finish_reason == "length" for a in output.outputs)

    @pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 32, 33])
    def test_answers_to_prompts_of_any_length_are_those_of_one_request_each(
        self, llm: LLM, reference: Reference, length: int
    ) -> None:
        prompt = (PROMPT * 3)[:length]
        for answer in ask(llm, prompt, n=5, temperature=1.0, seed=length, max_tokens=20, logprobs=0).outputs:
            expected = log_softmax(next_logits(reference, prompt, answer.token_ids))
            found = [
                position[t].logprob
                for position, t in zip(answer.logprobs or [], answer.token_ids, strict=True)
            ]
            assert np.allclose(found, [expected[i, t] for i, t in enumerate(answer.token_ids)], atol=1e-3)

    def test_each_answer_ends_by_itself(self, llm: LLM) -> None:
        answers = [a.token_ids for a in ask(llm, n=6, seed=0, max_tokens=20).outputs]
        stop = answers[2][4]

        again = ask(llm, n=6, seed=0, max_tokens=20, stop_token_ids=[stop]).outputs

        for answer, whole in zip(again, answers, strict=True):
            end = whole.index(stop) + 1 if stop in whole else 20
            assert answer.token_ids == whole[:end]
            assert answer.finish_reason == ("stop" if stop in whole else "length")


def penalised(
    logits: Floats,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    logit_bias: dict[int, float] | None = None,
) -> Floats:
    """The definition, token by token: OpenAI's of presence and frequency, CTRL's of repetition."""
    changed = logits.copy()
    for token, bias in (logit_bias or {}).items():
        changed[token] += bias
    for token in {*prompt, *answer}:
        changed[token] *= repetition_penalty if changed[token] < 0 else 1 / repetition_penalty
    for token in {*answer}:
        changed[token] -= presence_penalty + frequency_penalty * list(answer).count(token)
    return changed


PENALTIES: list[dict[str, Any]] = [
    {"presence_penalty": 2.0},
    {"presence_penalty": -2.0},
    {"frequency_penalty": 2.0},
    {"frequency_penalty": -1.0},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.7},
    {"repetition_penalty": 1.3, "presence_penalty": 1.1, "frequency_penalty": 0.4},
    {"repetition_penalty": 1.3, "logit_bias": {60: 3.0, 200: -2.5, 18: 6.0}},
]


class TestPenalties:
    def check(self, reference: Reference, prompt: list[int], answer: list[int], given: dict[str, Any]) -> int:
        """Each token is the likeliest under the definition. Returns how many are not the plain model's choice."""
        changed = 0
        for step, row in enumerate(next_logits(reference, prompt, answer)[:-1]):
            wanted = penalised(row, prompt, answer[:step], **given)
            assert wanted.max() - wanted[answer[step]] <= TIE, f"step {step}"
            changed += int(row.argmax()) != answer[step]
        return changed

    def test_penalties_and_biases_are_what_they_are_defined_to_be_one_batch_of_all(
        self, llm: LLM, reference: Reference
    ) -> None:
        # A prompt of its own likely answers, so that what counts the prompt differs from what does not.
        prompts = [[*PROMPT, *tokens(llm, PROMPT[:k], temperature=0, max_tokens=8)] for k in range(3, 12)]
        plain = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        params = [plain, *(plain.with_(**given) for given in PENALTIES)]

        outputs = llm.generate(prompts, params, use_tqdm=False)

        assert self.check(reference, prompts[0], outputs[0].outputs[0].token_ids, {}) == 0
        for prompt, output, given in zip(prompts[1:], outputs[1:], PENALTIES, strict=True):
            changed = self.check(reference, prompt, output.outputs[0].token_ids, given)
            assert changed > 0, f"{given} changed no token: nothing was tested"

    def test_a_strong_bias_forces_a_token_and_a_negative_one_forbids_it(self, llm: LLM) -> None:
        assert tokens(llm, logit_bias={77: 100}, max_tokens=6, seed=0) == [77] * 6
        usual = tokens(llm, temperature=0, max_tokens=6)
        without = tokens(llm, temperature=0, max_tokens=30, logit_bias=dict.fromkeys(usual, -100.0))
        assert not {*usual} & {*without}

    def test_a_bias_stays_with_its_request(self, llm: LLM) -> None:
        usual = tokens(llm, temperature=0, max_tokens=6)
        params = [
            SamplingParams(temperature=0, max_tokens=6, logit_bias=bias)
            for bias in ({}, {VOCABULARY - 1: 100.0}, {}, {0: 100.0})
        ]
        answers = [o.outputs[0].token_ids for o in llm.generate([PROMPT] * 4, params, use_tqdm=False)]
        assert answers == [usual, [VOCABULARY - 1] * 6, usual, [0] * 6]


class TestLogprobs:
    def check(self, expected: Floats, answer: CompletionOutput, count: int) -> None:
        assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_ids)
        total = 0.0
        for row, token, position in zip(expected, answer.token_ids, answer.logprobs, strict=True):
            assert next(iter(position)) == token, "the chosen token comes first"
            check_position(row, position, token, count)
            total += position[token].logprob
        assert answer.cumulative_logprob == pytest.approx(total)

    @pytest.mark.parametrize("count", [0, 1, 5, 20])
    def test_they_are_the_models_own_whatever_sampling_makes_of_them(
        self, llm: LLM, reference: Reference, count: int
    ) -> None:
        given: dict[str, Any] = {
            "temperature": 2.5,
            "top_k": 50,
            "repetition_penalty": 1.5,
            "logit_bias": {9: 4.0},
        }
        for extra in ({"temperature": 0}, given):
            answer = ask(llm, logprobs=count, max_tokens=12, seed=1, **extra).outputs[0]
            self.check(log_softmax(next_logits(reference, PROMPT, answer.token_ids)[:-1]), answer, count)

    def test_nothing_is_reported_unasked(self, llm: LLM) -> None:
        output = ask(llm, max_tokens=3)
        answer = output.outputs[0]
        assert (answer.logprobs, answer.cumulative_logprob, output.prompt_logprobs) == (None, None, None)

    def test_they_are_named_by_the_text_of_the_token(self, llm: LLM) -> None:
        answer = ask(llm, logprobs=3, max_tokens=4, seed=0).outputs[0]
        for position in answer.logprobs or []:
            for token, entry in position.items():
                assert entry.decoded_token == llm.get_tokenizer().token_text(token)


def check_position(expected: Floats, position: dict[int, Any], token: int, count: int) -> None:
    """One position's entries: the token's own and the `count` likeliest, with true values and ranks."""
    likeliest = np.argsort(-expected, kind="stable")[:count].tolist()
    assert {*position} == {token, *likeliest}
    for entry_token, entry in position.items():
        assert entry.logprob == pytest.approx(expected[entry_token], abs=1e-3)
        assert entry.rank == 1 + int((expected > expected[entry_token]).sum())


class TestPromptLogprobs:
    LONG = [(37 * i + 11) % 300 + 10 for i in range(75)]

    def check(self, reference: Reference, output: RequestOutput, count: int = 2) -> None:
        prompt, found = output.prompt_token_ids, output.prompt_logprobs
        assert found is not None and len(found) == len(prompt)
        assert found[0] is None, "nothing precedes the first token"
        expected = log_softmax(reference.logits(prompt).double().numpy())
        for i in range(1, len(prompt)):
            position = found[i]
            assert position is not None
            check_position(expected[i - 1], position, prompt[i], count)

    def test_every_prompt_token_but_the_first_has_its_own(self, llm: LLM, reference: Reference) -> None:
        for length in (1, 2, 16, 17, 75):
            output = ask(llm, self.LONG[:length], prompt_logprobs=2, max_tokens=3, temperature=0)
            self.check(reference, output)
            assert output.outputs[0].token_ids == tokens(llm, self.LONG[:length], max_tokens=3, temperature=0)

    def test_a_prompt_that_is_cached_already_reports_the_same(self, llm: LLM, reference: Reference) -> None:
        tokens(llm, self.LONG, max_tokens=1)
        first = ask(llm, self.LONG, prompt_logprobs=2, max_tokens=2)
        second = ask(llm, self.LONG, prompt_logprobs=2, max_tokens=2)
        self.check(reference, first)
        self.check(reference, second)

    @pytest.mark.parametrize("chunk", [1, 7, 16])
    def test_a_prompt_computed_in_chunks_reports_the_same(
        self, tiny_llama: Path, reference: Reference, chunk: int
    ) -> None:
        with LLM(str(tiny_llama), platform="cpu", dtype="float32", max_num_batched_tokens=chunk) as llm:
            params = SamplingParams(prompt_logprobs=2, max_tokens=4, n=2)
            for output in llm.generate([self.LONG, self.LONG[3:], PROMPT], params, use_tqdm=False):
                self.check(reference, output)

    def test_a_preempted_prompt_reports_each_token_once(self, tiny_llama: Path, reference: Reference) -> None:
        with LLM(
            str(tiny_llama),
            platform="cpu",
            dtype="float32",
            max_num_batched_tokens=20,
            max_model_len=112,
            kv_cache_memory=9 * 8192,
        ) as llm:
            params = SamplingParams(prompt_logprobs=2, max_tokens=30, temperature=0, ignore_eos=True)
            outputs = llm.generate([self.LONG[i : i + 40] for i in range(6)], params, use_tqdm=False)
            assert llm.engine.statistics().num_preemptions > 3
        for output in outputs:
            self.check(reference, output)
