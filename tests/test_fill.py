"""Fill-in-the-middle: each family's marks, and a suffix over HTTP."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import NAME, ThreadedServer, engine_keywords, refused
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from core.config import EngineConfig
from core.errors import RequestError
from core.text.fill import FORMATS, FillFormat, encode_fill
from core.text.tokenizer import Tokenizer, load_tokenizer
from server.settings import ServerSettings

pytest_plugins = ("server_fixtures",)

MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>")


def with_marks(known: FillFormat) -> Tokenizer:
    """A tokenizer of single bytes with the marks of a family."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = (known.prefix, known.suffix, known.middle, *known.ends)
    backend.add_special_tokens([text for text in texts if text is not None])
    return Tokenizer(backend, {})


@pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.prefix)
def test_each_family_has_its_marks_around_prefix_and_suffix(known: FillFormat) -> None:
    tokenizer = with_marks(known)

    ids, ends = encode_fill(tokenizer, "def f(", "return x")

    text = tokenizer.decode(ids, skip_special_tokens=False)
    first_prefix = f"{known.prefix}def f({known.suffix}return x{known.middle}"
    assert text == (f"{known.suffix}return x{known.prefix}def f(" if known.middle is None else first_prefix)
    assert [tokenizer.id_to_token(end) for end in ends] == list(known.ends)


def test_marks_in_what_is_filled_stay_text() -> None:
    tokenizer = with_marks(FORMATS[0])
    middle = tokenizer.token_to_id("<|fim_middle|>")

    ids, _ = encode_fill(tokenizer, "a <|fim_middle|>", "<|fim_middle|> b")

    assert ids.count(middle) == 1 and ids[-1] == middle


def test_a_suffix_gets_no_space_of_its_own_in_sentencepiece() -> None:
    known = next(known for known in FORMATS if known.prefix == "▁<PRE>")
    vocabulary = ["<unk>", *"▁abc☺"]
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens([known.prefix, known.suffix, "▁<MID>"])
    tokenizer = Tokenizer(backend, {})

    ids, _ = encode_fill(tokenizer, "a", "b")

    shown = [tokenizer.id_to_token(token) for token in ids]
    assert shown == ["▁<PRE>", "▁", "a", "▁<SUF>", "b", "▁<MID>"]


def test_a_model_that_does_not_fill_says_so(tiny_llama: Path) -> None:
    with pytest.raises(RequestError, match="does not fill in the middle") as caught:
        encode_fill(load_tokenizer(tiny_llama), "a", "b")

    assert caught.value.parameter == "suffix"


@pytest.fixture(scope="module")
def filling(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose last tokens are marks."""
    folder = tmp_path_factory.mktemp("filling")
    shutil.copytree(tiny_model("llama"), folder, dirs_exist_ok=True)
    file = folder / "tokenizer.json"
    described: dict[str, Any] = json.loads(file.read_text())
    vocabulary: dict[str, int] = described["model"]["vocab"]
    for mark, token in zip(MARKS, sorted(vocabulary, key=vocabulary.__getitem__)[-len(MARKS) :], strict=True):
        vocabulary[mark] = vocabulary.pop(token)
        described["model"]["merges"] = [
            merge for merge in described["model"]["merges"] if "".join(merge).replace(" ", "") != token
        ]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        described["added_tokens"].append({"id": vocabulary[mark], "content": mark} | flags)
    file.write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def filler(filling: Path) -> Iterator[httpx.Client]:
    with ThreadedServer(EngineConfig(**engine_keywords(filling)), max_queued=8) as running:
        url = running.open(ServerSettings(port=0, served_model_name=NAME))
        with httpx.Client(base_url=url, timeout=60) as made:
            yield made


def completed(http: httpx.Client, **body: Any) -> dict[str, Any]:
    given = {"temperature": 0, "max_tokens": 12, "return_token_ids": True} | body
    response = http.post("/v1/completions", json=given)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def test_a_suffix_asks_for_what_stands_before_it(filler: httpx.Client, filling: Path) -> None:
    tokenizer = load_tokenizer(filling)
    prefix, suffix, middle, _ = [tokenizer.token_to_id(mark) for mark in MARKS]
    ids = [prefix, *tokenizer.encode("def f("), suffix, *tokenizer.encode(" return"), middle]

    filled = completed(filler, prompt="def f(", suffix=" return", ignore_eos=True)

    assert filled["prompt_token_ids"] == ids
    assert filled["text"] == completed(filler, prompt=ids, ignore_eos=True)["text"] != ""
    assert completed(filler, prompt=tokenizer.encode("def f("), suffix=" return")["prompt_token_ids"] == ids
    assert "prompt_token_ids" in completed(filler, prompt="", suffix=" return")


def test_a_middle_ends_with_the_familys_end(filler: httpx.Client, filling: Path) -> None:
    pad = load_tokenizer(filling).token_to_id("<|fim_pad|>")
    bias = {str(pad): 100}

    assert completed(filler, prompt="a", suffix="b", logit_bias=bias)["finish_reason"] == "stop"
    assert completed(filler, prompt="a", logit_bias=bias)["finish_reason"] == "length"
    assert (
        completed(filler, prompt="a", suffix="b", logit_bias=bias, ignore_eos=True)["token_ids"] == [pad] * 12
    )


def test_an_empty_suffix_asks_for_nothing(filler: httpx.Client) -> None:
    assert completed(filler, prompt="ab", suffix="") == completed(filler, prompt="ab")


def test_a_suffix_is_refused_where_it_cannot_be_honoured(filler: httpx.Client, http: httpx.Client) -> None:
    assert refused(http, "/v1/completions", {"prompt": "a", "suffix": "b"})["param"] == "suffix"
    assert refused(filler, "/v1/completions", {"prompt": "a", "suffix": "b", "echo": True})["param"] == "echo"
    long = {"prompt": "a", "suffix": "b" * 1000}
    assert refused(filler, "/v1/completions", long)["code"] == "context_length_exceeded"
