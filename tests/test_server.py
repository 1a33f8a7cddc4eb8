"""OpenAI's API over a real socket, with OpenAI's own client, in front of a real engine: the answers."""

from itertools import pairwise
from typing import Any

import httpx
import msgspec
import openai
import pytest
from live_server import CHAT, MAX_MODEL_LEN, NAME, ThreadedServer, chat, complete, events

from core.outputs import CompletionOutput, Logprob
from server.openai.choices import Reader
from server.openai.fingerprint import system_fingerprint
from server.openai.logprobs import chat_logprobs, legacy_logprobs, positions

pytest_plugins = ("server_fixtures",)


def test_a_streamed_completion_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    whole = complete(client)
    chunks = list(complete(client, stream=True))

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert len(chunks) > 2


def test_a_streamed_chat_answer_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    whole = chat(client)
    chunks = list(chat(client, stream=True))

    assert whole.choices[0].message.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert [c.choices[0].delta.role for c in chunks if c.choices[0].delta.role] == ["assistant"]
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]


def test_r12_the_event_stream_has_the_shape_that_strict_parsers_want(http: httpx.Client) -> None:
    body = {"model": NAME, "messages": CHAT, "max_tokens": 5, "stream": True, "ignore_eos": True}
    with http.stream(
        "POST", "/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}}
    ) as r:
        assert r.headers["content-type"] == "text/event-stream; charset=utf-8"
        *chunks, usage, done = events(r)

    assert done == "[DONE]"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 5
    assert {(c["id"], c["object"], c["created"], c["model"]) for c in [*chunks, usage]} == {
        (chunks[0]["id"], "chat.completion.chunk", chunks[0]["created"], NAME)
    }
    assert all(chunk["usage"] is None for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_a_stream_without_include_usage_says_nothing_of_usage(http: httpx.Client) -> None:
    with http.stream(
        "POST", "/v1/completions", json={"prompt": "a", "max_tokens": 3, "stream": True}
    ) as response:
        *chunks, done = events(response)

    assert done == "[DONE]"
    assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_usage_can_come_with_every_chunk(http: httpx.Client, path: str) -> None:
    asked = {"prompt": "a"} if path == "/v1/completions" else {"messages": CHAT}
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = asked | {"max_tokens": 5, "stream": True, "ignore_eos": True, "stream_options": options}
    with http.stream("POST", path, json=body) as response:
        *chunks, last, _ = events(response)

    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 5
    assert chunks[-1]["usage"] == last["usage"]


def test_texts_and_token_ids_are_the_same_prompt(client: openai.OpenAI) -> None:
    first = complete(client, "Once upon a time", return_token_ids=True).choices[0]
    ids = first.prompt_token_ids
    other = complete(client, "Far away").choices[0].text

    assert complete(client, ids).choices[0].text == first.text
    assert [c.text for c in complete(client, ["Once upon a time", "Far away"]).choices] == [first.text, other]
    assert [c.text for c in complete(client, [ids, ids]).choices] == [first.text] * 2


def test_several_prompts_with_n_number_their_choices_prompt_by_prompt(client: openai.OpenAI) -> None:
    prompts = ["Once upon a time", "Far away"]
    whole = complete(client, prompts, n=2)
    streamed = [""] * 4
    for chunk in complete(client, prompts, n=2, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text

    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in whole.choices] == streamed
    assert streamed[0] == streamed[1] != streamed[2]


def test_n_sampled_answers_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    answers = [chat(client, n=2, temperature=1.0, seed=7).choices for _ in range(2)]
    texts = [[choice.message.content for choice in choices] for choices in answers]

    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


def test_chat_logprobs_spell_the_answer_and_rank_its_tokens(client: openai.OpenAI) -> None:
    choice = chat(client, logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    spelled = b"".join(bytes(entry.bytes) for entry in content)

    assert len(content) == 24
    assert spelled.decode(errors="replace") == choice.message.content
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert all(a.logprob >= b.logprob for a, b in pairwise(entry.top_logprobs))
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0  # greedy: the chosen one is the likeliest


def test_streamed_logprobs_are_the_whole_ones_in_pieces(client: openai.OpenAI) -> None:
    whole = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    streamed = [
        entry
        for chunk in chat(client, logprobs=True, top_logprobs=2, stream=True)
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content
    ]

    assert [entry.token for entry in streamed] == [entry.token for entry in whole]
    assert [entry.logprob for entry in streamed] == pytest.approx(
        [entry.logprob for entry in whole], abs=1e-4
    )


def test_completion_logprobs_run_in_parallel_lists(client: openai.OpenAI) -> None:
    choice = complete(client, logprobs=2, max_tokens=8).choices[0]
    lists = choice.logprobs

    assert {
        len(values) for values in (lists.tokens, lists.token_logprobs, lists.top_logprobs, lists.text_offset)
    } == {8}
    assert lists.text_offset[0] == 0
    assert [b - a for a, b in pairwise(lists.text_offset)] == [len(token) for token in lists.tokens[:-1]]
    for token, logprob, top in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values())


def test_echo_with_logprobs_scores_the_prompt_as_lm_eval_wants_it(client: openai.OpenAI) -> None:
    prompt = "the tides come and go"
    ids = complete(client, prompt, return_token_ids=True).choices[0].prompt_token_ids
    scored = complete(client, [ids], echo=True, logprobs=1, max_tokens=1).choices[0]
    unseen = complete(client, [ids], echo=True, logprobs=1, max_tokens=0)

    assert scored.text.startswith(prompt)
    assert scored.logprobs.token_logprobs[0] is None and scored.logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in scored.logprobs.token_logprobs[1:])
    assert len(scored.logprobs.tokens) == len(ids) + 1
    assert "".join(scored.logprobs.tokens[:-1]) == prompt
    assert unseen.choices[0].text == prompt
    assert unseen.choices[0].logprobs.tokens == scored.logprobs.tokens[:-1]
    assert unseen.choices[0].logprobs.token_logprobs[1:] == pytest.approx(
        scored.logprobs.token_logprobs[1:-1]
    )
    assert unseen.usage.completion_tokens == 0


def test_max_tokens_0_scores_the_prompt_or_nothing(client: openai.OpenAI) -> None:
    for more in ({}, {"stream": True}):
        answer = complete(client, "Once upon", max_tokens=0, logit_bias={"2": 100}, **more)
        first = next(iter(answer)) if more else answer
        assert (first.choices[0].text, first.choices[0].finish_reason) == ("", "length")

    assert complete(client, "Once upon", max_tokens=0, n=2).usage.completion_tokens == 0
    assert complete(client, "Once upon", max_tokens=0, logprobs=1).choices[0].logprobs.tokens == []


def test_best_of_gives_the_likeliest_answers(client: openai.OpenAI) -> None:
    def score(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs)

    drawn = complete(client, n=5, seed=11, temperature=1.0, logprobs=0)
    ranked = sorted(drawn.choices, key=score, reverse=True)
    best = complete(client, best_of=5, n=2, seed=11, temperature=1.0)

    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert len({choice.text for choice in drawn.choices}) == 5
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.choices[0].logprobs is None
    assert best.usage.completion_tokens == drawn.usage.completion_tokens


def test_best_of_several_prompts_numbers_their_choices_prompt_by_prompt(client: openai.OpenAI) -> None:
    given = {"best_of": 3, "seed": 11, "temperature": 1.0, "logprobs": 1}
    together = complete(client, ["Once upon a time", "Far away"], **given).choices
    alone = [complete(client, prompt, **given).choices[0] for prompt in ("Once upon a time", "Far away")]

    assert [choice.index for choice in together] == [0, 1]
    assert [choice.text for choice in together] == [choice.text for choice in alone]


def test_a_streamed_echo_begins_with_the_prompt(client: openai.OpenAI) -> None:
    chunks = list(complete(client, "Once upon", echo=True, stream=True, logprobs=0, max_tokens=4))
    whole = complete(client, "Once upon", echo=True, logprobs=0, max_tokens=4).choices[0]

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert [o for c in chunks for o in c.choices[0].logprobs.text_offset] == whole.logprobs.text_offset


def test_prompt_logprobs_come_with_both_endpoints(http: httpx.Client) -> None:
    ask = {"max_tokens": 1, "prompt_logprobs": 1, "return_token_ids": True}
    completion = http.post("/v1/completions", json=ask | {"prompt": "Once upon"}).json()["choices"][0]
    answer = http.post("/v1/chat/completions", json=ask | {"messages": CHAT}).json()

    for holder in (completion, answer):
        assert len(holder["prompt_logprobs"]) == len(holder["prompt_token_ids"])
        assert holder["prompt_logprobs"][0] is None
        for token, candidates in zip(
            holder["prompt_token_ids"][1:], holder["prompt_logprobs"][1:], strict=True
        ):
            assert candidates[str(token)]["logprob"] <= 0


def test_usage_counts_prompt_answers_and_what_was_cached(client: openai.OpenAI) -> None:
    prompt = "a prompt long enough to fill several blocks of the cache, whatever their size may be. " * 4
    first, second = (
        complete(client, prompt, n=2, cache_salt="usage", return_token_ids=True) for _ in range(2)
    )
    num_prompt = len(first.choices[0].prompt_token_ids)

    for usage in (first.usage, second.usage):
        assert (usage.prompt_tokens, usage.completion_tokens) == (num_prompt, 48)
        assert usage.total_tokens == num_prompt + 48
        assert usage.completion_tokens_details.reasoning_tokens == 0
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert num_prompt > second.usage.prompt_tokens_details.cached_tokens > num_prompt // 2


def test_a_stop_string_ends_the_answer_and_never_shows(client: openai.OpenAI) -> None:
    free = complete(client, max_tokens=48).choices[0].text
    stop = free[20:24]
    before = free[: free.index(stop)]
    whole = complete(client, max_tokens=48, stop=[stop]).choices[0]
    chunks = [c.choices[0] for c in complete(client, max_tokens=48, stop=stop, stream=True)]

    assert (whole.text, whole.finish_reason) == (before, "stop")
    assert "".join(chunk.text for chunk in chunks) == before
    assert chunks[-1].finish_reason == "stop"


def test_r9_streamed_characters_are_whole(client: openai.OpenAI) -> None:
    for seed in range(6):
        given = {"seed": seed, "temperature": 2.0, "max_tokens": 64}
        whole = complete(client, **given).choices[0].text
        parts = [chunk.choices[0].text for chunk in complete(client, stream=True, **given)]

        assert "".join(parts) == whole


def test_r10_no_split_of_a_stop_string_leaks(client: openai.OpenAI) -> None:
    free = complete(client, max_tokens=32).choices[0].text
    for start in range(8, 24):
        stop = free[start : start + 3]
        before = free[: free.index(stop)]
        whole = complete(client, max_tokens=32, stop=stop).choices[0]
        parts = [chunk.choices[0].text for chunk in complete(client, max_tokens=32, stop=stop, stream=True)]

        assert (whole.text, whole.finish_reason, "".join(parts)) == (before, "stop", before)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("more", "reason", "cause"),
    [
        ({"max_tokens": 3}, "length", None),
        ({"max_tokens": 1}, "length", None),
        ({"logit_bias": {"2": 100}}, "stop", None),
        ({"logit_bias": {"2": 100}, "ignore_eos": True}, "length", None),
        ({"logit_bias": {"70": 100}, "stop_token_ids": [70]}, "stop", 70),
        ({"logit_bias": {"70": 100}, "stop": "bbb"}, "stop", "bbb"),
        ({"logit_bias": {"70": 100}, "stop": "bbbb", "max_tokens": 3}, "length", None),
        ({"logit_bias": {"70": 100}, "stop": "bbb", "max_tokens": 3}, "stop", "bbb"),
    ],
)
def test_r11_why_an_answer_ended_is_said_once_and_the_same_in_a_stream(
    http: httpx.Client, path: str, more: dict[str, Any], reason: str, cause: Any
) -> None:
    asked = {"prompt": "a"} if path == "/v1/completions" else {"messages": CHAT}
    body = asked | {"max_tokens": 8, "temperature": 0, "n": 2} | more
    whole = http.post(path, json=body).json()["choices"]
    with http.stream("POST", path, json=body | {"stream": True}) as response:
        *chunks, _ = events(response)

    ends = [c["choices"][0] for c in chunks if c["choices"][0]["finish_reason"] is not None]
    assert sorted(end["index"] for end in ends) == [0, 1]
    for choice in (*whole, *ends):
        assert (choice["finish_reason"], choice["stop_reason"]) == (reason, cause)


def test_logit_bias_and_stop_token_ids_reach_the_sampler(http: httpx.Client) -> None:
    body = {
        "prompt": "a",
        "max_tokens": 6,
        "logit_bias": {"70": 100},
        "return_token_ids": True,
        "temperature": 0,
    }
    biased = http.post("/v1/completions", json=body).json()["choices"][0]
    stopped = http.post("/v1/completions", json=body | {"stop_token_ids": [70]}).json()["choices"][0]

    assert biased["token_ids"] == [70] * 6
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", 70)


def test_content_may_come_in_text_parts_and_a_developer_is_a_system(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Tell me about"}, {"type": "text", "text": "the tides."}]
    joined = "Tell me about\nthe tides."

    in_parts = chat(
        client, messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    )
    at_once = chat(
        client, messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": joined}]
    )

    assert in_parts.choices[0].message.content == at_once.choices[0].message.content


def test_an_answer_may_continue_the_last_message(client: openai.OpenAI, http: httpx.Client) -> None:
    whole = chat(client).choices[0].message.content
    ids = http.post("/tokenize", json={"messages": CHAT}).json()["tokens"]
    begun = [*CHAT, {"role": "assistant", "content": "They come "}]
    open_ids = http.post("/tokenize", json={"messages": begun, "continue_final_message": True}).json()[
        "tokens"
    ]
    body = {"messages": begun, "continue_final_message": True, "temperature": 0, "max_tokens": 8}
    answer = http.post("/v1/chat/completions", json=body | {"ignore_eos": True}).json()["choices"][0]

    assert open_ids[: len(ids)] == ids
    assert complete(client, open_ids, max_tokens=8).choices[0].text == answer["message"]["content"]
    assert not whole.startswith(answer["message"]["content"])


def test_an_answer_can_be_sent_back_as_the_client_dumps_it(client: openai.OpenAI) -> None:
    message = chat(client).choices[0].message

    again = chat(client, messages=[*CHAT, message.model_dump(), {"role": "user", "content": "Go on."}])

    assert again.choices[0].finish_reason == "length"


def test_models_are_listed_and_found_by_name(client: openai.OpenAI, http: httpx.Client) -> None:
    (model,) = client.models.list().data

    assert model.id == NAME
    assert (model.object, model.owned_by) == ("model", "core")
    assert client.models.retrieve(NAME).id == NAME
    assert http.get("/v1/models").json()["data"][0]["max_model_len"] == MAX_MODEL_LEN
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-7")
    assert caught.value.code == "model_not_found"


def test_the_model_may_be_left_out(http: httpx.Client) -> None:
    assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).json()["model"] == NAME


def test_a_fingerprint_says_what_a_seeds_answers_depend_on(
    client: openai.OpenAI, server: ThreadedServer
) -> None:
    info = server.engine.info
    answer, completion = chat(client), complete(client)
    chunks = [*chat(client, stream=True), *complete(client, stream=True)]

    assert answer.service_tier == "default"
    assert {a.system_fingerprint for a in (answer, completion, *chunks)} == {system_fingerprint(info)}
    assert system_fingerprint(info) != system_fingerprint(msgspec.structs.replace(info, dtype="bfloat16"))


def test_a_reader_keeps_tokens_back_until_they_have_text() -> None:
    reader, answer = Reader(), CompletionOutput(0)
    assert reader.news(answer) is not None  # the first look always opens the answer

    answer.token_ids.append(7)
    assert reader.news(answer) is None
    answer.token_ids.append(8)
    answer.text = "é"
    news = reader.news(answer)

    assert news is not None
    assert (news.text, news.token_ids, news.first) == ("é", [7, 8], False)


def test_infinite_logprobs_are_written_as_numbers() -> None:
    impossible = [{5: Logprob(float("-inf"), 1, "a")}]

    assert chat_logprobs(impossible, 1, None)["content"][0]["logprob"] == -9999.0
    assert legacy_logprobs(positions(impossible), 0)["token_logprobs"] == [-9999.0]
