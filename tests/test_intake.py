"""Texts that cannot be a model's: with tokens that it lacks, far too long, or no texts at all."""

from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from pooling_models import make
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from core import LLM
from core.errors import RequestError, RequestTooLong
from core.scoring import cosines

MARK = "<|image|>"
"""A token of the tokenizer, and none of the model."""


def engine(folder: Path) -> LLM:
    return LLM(str(folder), platform="cpu", dtype="float32", kv_cache_memory="8MiB")


def marked(folder: Path) -> Path:
    """The same model, its tokenizer with a token behind its vocabulary."""
    file = folder / "tokenizer.json"
    backend = Backend.from_file(str(file))
    backend.add_tokens([f"<{i}>" for i in range(320 - backend.get_vocab_size())])
    backend.add_special_tokens([MARK])
    assert backend.token_to_id(MARK) == 320
    backend.save(str(file))
    return folder


@pytest.fixture(scope="module")
def crosser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marked(make(tmp_path_factory.mktemp("crosser"), "Bert", "ForSequenceClassification", num_labels=1))


def pieces_of_words(folder: Path) -> Path:
    """BERT's kind of tokenizer: any space is nothing, and a word of any length one token."""
    backend = Backend(models.WordPiece(vocab={"[UNK]": 0, "sea": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def test_a_token_that_only_the_tokenizer_has_is_refused_by_name(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model("qwen3").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with engine(marked(folder)) as llm:
        written = [{"role": "image", "content": "a"}]  # by the template, which begins a turn with its role
        for ask in (lambda: llm.generate(f"a {MARK}"), lambda: llm.chat(written)):
            with pytest.raises(RequestError, match=r"token 320 of the tokenizer; .* ends at 319") as refused:
                ask()
            assert MARK in str(refused.value)
            assert refused.value.parameter == "prompt"
        assert llm.generate("a", use_tqdm=False)[0].error is None


@pytest.mark.parametrize(("pair", "parameter"), [((MARK, "a"), "prompt"), (("a", MARK), "second")])
def test_so_it_is_in_either_of_two_texts(crosser: Path, pair: tuple[str, str], parameter: str) -> None:
    with engine(crosser) as llm, pytest.raises(RequestError, match="token 320") as refused:
        llm.score(*pair, use_tqdm=False)
    assert refused.value.parameter == parameter


@pytest.mark.parametrize("data", [([5],), ("a", [5]), ([[5]], "a"), ("a", 5), (5, "a"), ("a", {"prompt": 5})])
def test_what_is_no_text_cannot_be_read_together_with_one(crosser: Path, data: Any) -> None:
    with engine(crosser) as llm, pytest.raises(RequestError):
        llm.score(*(data if len(data) == 2 else (*data, "a")), use_tqdm=False)


def test_a_text_is_as_long_as_its_tokens_not_as_its_characters(tmp_path: Path) -> None:
    with engine(pieces_of_words(make(tmp_path / "model", "Bert"))) as llm:
        spaced, word = llm.embed(["sea" + " " * 5_000, "x" * 5_000], use_tqdm=False)
        assert [spaced.prompt_token_ids, word.prompt_token_ids] == [[1], [0]]
        with pytest.raises(RequestTooLong, match="500,001 characters; at most 500,000 are read"):
            llm.embed("sea" + " " * 499_998)


def test_a_long_text_is_read_to_be_cut_but_no_text_of_any_length(crosser: Path) -> None:
    with engine(crosser) as llm:
        with pytest.raises(RequestTooLong, match="5,000 characters"):
            llm.classify("x" * 5_000, use_tqdm=False)
        assert (
            len(llm.classify("x" * 5_000, truncate_prompt_tokens=9, use_tqdm=False)[0].prompt_token_ids) == 9
        )
        with pytest.raises(RequestTooLong, match="500,001 characters"):
            llm.classify("x" * 500_001, truncate_prompt_tokens=9, use_tqdm=False)


def test_an_embedding_that_is_not_there_has_no_cosine() -> None:
    one, zero = bytes([0, 0, 128, 63]), bytes(4)
    same, none, missing = cosines([(one, one), (one, zero), (one, None)])
    assert (same, none) == (1.0, 0.0) and isnan(missing)
