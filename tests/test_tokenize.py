"""The tokenizer over HTTP, in the shapes that vLLM's clients and lm-eval know."""

from typing import Any

import httpx
import openai
import pytest
from live_server import CHAT, MAX_MODEL_LEN, NAME, ThreadedServer, chat, complete, refused

from core.text.tokenizer import Tokenizer
from server.openai.answers import Detokenized, Tokenized, TokenizerInfo
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

TEXT = "the tides come and go, ünd so weiter 🌊</s>"


@pytest.fixture
def tokenizer(server: ThreadedServer) -> Tokenizer:
    assert server.engine.intake.tokenizer is not None
    return server.engine.intake.tokenizer


def ask(http: httpx.Client, path: str, **body: Any) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_text_becomes_the_tokens_that_its_completion_reads(
    http: httpx.Client, client: openai.OpenAI
) -> None:
    read = complete(client, TEXT, return_token_ids=True).choices[0].prompt_token_ids

    answer = ask(http, "/tokenize", model=NAME, prompt=TEXT)

    assert answer["tokens"] == read
    assert (answer["count"], answer["max_model_len"]) == (len(read), MAX_MODEL_LEN)
    assert answer["token_strs"] is None
    Tokenized.model_validate(answer)


def test_a_conversation_becomes_the_tokens_that_its_answer_follows(
    http: httpx.Client, client: openai.OpenAI
) -> None:
    ids = ask(http, "/tokenize", messages=CHAT)["tokens"]
    closed = ask(http, "/tokenize", messages=CHAT, add_generation_prompt=False)["tokens"]

    assert chat(client).usage.prompt_tokens == len(ids)
    assert ids[:-1] == closed
    assert complete(client, ids).choices[0].text == chat(client).choices[0].message.content


def test_a_message_can_be_left_open(http: httpx.Client, tokenizer: Tokenizer) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "They come "}]

    ids = ask(http, "/tokenize", messages=begun, continue_final_message=True)["tokens"]

    assert tokenizer.decode(ids, skip_special_tokens=False).endswith("<|assistant|>They come ")


def test_a_template_gets_what_it_reads(
    http: httpx.Client, client: openai.OpenAI, tokenizer: Tokenizer
) -> None:
    named = {"chat_template_kwargs": {"opening": "Well, <|user|>"}}

    ids = ask(http, "/tokenize", messages=CHAT, **named)["tokens"]
    body = {"messages": CHAT, "temperature": 0, "max_tokens": 24, "ignore_eos": True} | named
    answered = ask(http, "/v1/chat/completions", **body)["choices"][0]

    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text.endswith("<|assistant|>Well, <|user|>")
    assert (
        ids.count(tokenizer.encode("<|user|>", add_special_tokens=False)[0]) == 1
    )  # what users write is text
    assert complete(client, ids).choices[0].text == answered["message"]["content"]


def test_tokens_are_shown_as_the_vocabulary_spells_them(http: httpx.Client, tokenizer: Tokenizer) -> None:
    answer = ask(http, "/tokenize", prompt="a tide</s>", return_token_strs=True)

    assert answer["token_strs"] == [tokenizer.id_to_token(token) for token in answer["tokens"]]
    assert answer["token_strs"][-1] == "</s>"
    Tokenized.model_validate(answer)


def test_tokens_become_the_text_they_came_from(http: httpx.Client) -> None:
    for text in (TEXT, "", " leading", "<|user|>hi"):
        tokens = ask(http, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]
        answer = ask(http, "/detokenize", tokens=tokens)

        assert answer == {"prompt": text}
        Detokenized.model_validate(answer)


def test_a_text_may_be_longer_than_the_context(http: httpx.Client) -> None:
    assert ask(http, "/tokenize", prompt="x" * (3 * MAX_MODEL_LEN))["count"] == 3 * MAX_MODEL_LEN


def test_the_tokenizer_describes_itself(http: httpx.Client, tokenizer: Tokenizer) -> None:
    info = http.get("/tokenizer_info", params={"model": NAME}).json()

    TokenizerInfo.model_validate(info)
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<s>", "</s>", "<pad>")
    assert info["unk_token"] is None
    assert info["additional_special_tokens"] == ["<|assistant|>", "<|user|>"]
    assert info["chat_template"] == tokenizer.chat_template
    assert http.get("/tokenizer_info", params={"model": "gpt-7"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": CHAT}, "prompt"),
        ("/tokenize", {"prompt": ["a", "b"]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/tokenize", {"messages": CHAT, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": CHAT, "continue_final_message": True}, "messages"),
        ("/tokenize", {"prompt": "a", "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {"opening": "b"}}, "chat_template_kwargs"),
        ("/tokenize", {"messages": CHAT, "chat_template_kwargs": {"openings": 1}}, "chat_template_kwargs"),
        ("/tokenize", {"messages": CHAT, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ("/tokenize", {"messages": CHAT, "chat_template_kwargs": []}, "chat_template_kwargs"),
        ("/tokenize", {"prompt": "a", "max_tokens": 1}, "max_tokens"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens"),
        ("/detokenize", {"tokens": [10**30]}, "tokens"),
    ],
)
def test_bad_input_is_refused_by_name(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    assert refused(http, path, body)["param"] == param


def test_the_tokenizer_is_closed_to_whoever_has_no_key(server: ThreadedServer) -> None:
    url = server.open(ServerSettings(port=0, served_model_name=NAME, api_key="sesame"))

    assert httpx.post(f"{url}/tokenize", json={"prompt": "a"}).status_code == 401
    assert httpx.post(f"{url}/detokenize", json={"tokens": [5]}).status_code == 401
    assert httpx.get(f"{url}/tokenizer_info").status_code == 401
