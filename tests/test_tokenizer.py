"""Tokenizers from model folders and GGUF files."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from core.errors import BadCheckpoint, ModelError, ModelNotFound, RequestError
from core.text.pretokenizers import FAMILIES
from core.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "The capital of France is Paris.",
    "1234567890 12 3.14 1,000,000 ½ ² ١٢٣ Ⅷ",
    "  lots   of\n\n\tspace \r\n  ",
    "def f(x):\n    return x ** 2  # ok\n",
    "héllo wörld 日本語テキスト 한국어 🎉👩‍👩‍👧",
    "I'm you're it's WE'LL don't",
    "<|im_start|>user\nhi<|im_end|>\n",
    "\u200b\ufeff x\u00a0y",
    "a" * 500,
    "",
]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def reference(smollm2_hf: Path) -> Backend:
    return Backend.from_file(str(smollm2_hf / "tokenizer.json"))


def test_the_tokenizer_in_a_gguf_file_equals_the_models_own(tokenizer: Tokenizer, reference: Backend) -> None:
    for text in TEXTS:
        ids = reference.encode(text).ids
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_encodes_as_with_the_models_own_tokenizer(
    tokenizer: Tokenizer, reference: Backend, text: str
) -> None:
    assert tokenizer.encode(text) == reference.encode(text).ids


def test_a_model_folder_gives_the_same_tokenizer(tokenizer: Tokenizer, smollm2_hf: Path) -> None:
    folder = load_tokenizer(smollm2_hf)
    assert folder.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert folder.special_tokens == tokenizer.special_tokens
    assert folder.chat_template == tokenizer.chat_template
    assert folder.special_ids == tokenizer.special_ids


def test_every_digit_of_the_default_model_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("in 2024, 007"))
    assert tokens == ["in", "Ġ", "2", "0", "2", "4", ",", "Ġ", "0", "0", "7"]


def test_the_roles_of_special_tokens_are_known(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"
    assert tokenizer.special_ids == frozenset(range(17))
    assert len(tokenizer) == tokenizer.vocab_size == 49152


def test_text_that_spells_a_special_token_is_that_token_only_when_it_may_be(tokenizer: Tokenizer) -> None:
    for token_id in tokenizer.special_ids:
        spelled = tokenizer.id_to_token(token_id)
        assert spelled is not None
        assert tokenizer.encode(spelled) == [token_id]
        plain = tokenizer.encode(f"x{spelled}y", parse_special=False)
        assert not tokenizer.special_ids & set(plain)
        assert tokenizer.decode(plain) == f"x{spelled}y"


def test_one_tokens_text_keeps_its_space(tokenizer: Tokenizer) -> None:
    (token,) = tokenizer.encode(" Paris")
    assert tokenizer.token_text(token) == " Paris"
    assert tokenizer.id_to_token(token) == "ĠParis"
    assert tokenizer.token_to_id("ĠParis") == token
    assert tokenizer.id_to_token(10**6) is None


def test_it_is_called_as_people_know_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hello")
    assert tokenizer("Hello") == {"input_ids": ids}
    assert tokenizer(["Hello", "Hello"]) == {"input_ids": [ids, ids]}
    assert tokenizer.decode(ids[0]) == "Hello"


@pytest.mark.parametrize("text", ["half a character \ud800", None, 5, b"bytes"])
def test_what_is_no_text_is_the_requests_error(tokenizer: Tokenizer, text: Any) -> None:
    for encode in (tokenizer.encode, lambda given: tokenizer.encode_batch([given])):
        with pytest.raises(RequestError, match=r"prompt (is no valid Unicode text|must be a text)") as caught:
            encode(text)
        assert caught.value.parameter == "prompt"


def test_r8_thirty_two_threads_get_the_answers_that_one_gets(tokenizer: Tokenizer) -> None:
    expected = [(tokenizer.encode(t), tokenizer.encode(t, parse_special=False)) for t in TEXTS]

    def work(_: int) -> bool:
        found = [(tokenizer.encode(t), tokenizer.encode(t, parse_special=False)) for t in TEXTS]
        return found == expected and all(
            tokenizer.decode(ids) == t for (_, ids), t in zip(found, TEXTS, strict=True)
        )

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, range(128)))


def test_loading_imports_neither_torch_nor_transformers(smollm2: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from core.text.tokenizer import load_tokenizer; "
        f"load_tokenizer(Path({str(smollm2)!r})).apply_chat_template([{{'role': 'user', 'content': 'hi'}}]); "
        "print([name for name in ('torch', 'transformers', 'gguf', 'numpy') if name in sys.modules])"
    )
    root = str(Path(__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


# Model folders


def write_folder(folder: Path, config: dict[str, Any] | None = None, **files: str) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(
        models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<bos>", "plain"])}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_a_folder_never_truncates_or_pads(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path))
    assert len(tokenizer.encode("abcdefgh")) == 8
    assert len(tokenizer.encode("a")) == 1


def test_special_tokens_named_beside_the_tokenizer_are_special(tmp_path: Path) -> None:
    config = {
        "bos_token": {"content": "<bos>", "lstrip": False},
        "add_bos_token": True,
        "additional_special_tokens": ["<|turn|>"],
        "added_tokens_decoder": {
            "258": {"content": "<|turn|>", "special": True},
            "259": {"content": "<think>"},
        },
    }
    tokenizer = load_tokenizer(write_folder(tmp_path, config))
    assert tokenizer.bos_token_id == 256
    assert tokenizer.encode("a<|turn|><think>", add_special_tokens=True)[0] == 256
    assert tokenizer.encode("<|turn|><think>", add_special_tokens=False) == [258, 259]
    assert tokenizer.special_ids == {256, 258}
    assert len(tokenizer.encode("<|turn|>", add_special_tokens=False, parse_special=False)) == 8


@pytest.mark.parametrize(
    ("config", "files", "template"),
    [
        ({"chat_template": "in config"}, {}, "in config"),
        ({"chat_template": "in config"}, {"chat_template__jinja": "in file"}, "in file"),
        ({}, {"chat_template__json": '{"chat_template": "in json"}'}, "in json"),
        (
            {"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]},
            {},
            "d",
        ),
        ({}, {}, None),
    ],
)
def test_the_chat_template_is_found_wherever_it_is(
    tmp_path: Path, config: dict[str, Any], files: dict[str, str], template: str | None
) -> None:
    assert load_tokenizer(write_folder(tmp_path, config, **files)).chat_template == template


def test_a_missing_path_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"looked for tokenizer\.json.*skip_tokenizer_init"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "Magic"}}'])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_damaged_sentencepiece_file_is_an_error_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x00\x01 no model")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"transformers could not convert"):
        load_tokenizer(tmp_path)


def test_code_in_a_model_folder_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    (tmp_path / "canary.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass T: ...\n")
    auto_map = {"auto_map": {"AutoTokenizer": ["canary.T", None]}, "tokenizer_class": "T"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(auto_map))
    with pytest.raises(ModelError):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


# GGUF


NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def write_gguf(path: Path, kind: str, tokens: dict[str, int], **values: Any) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list([*tokens])
    writer.add_token_types([*tokens.values()])
    for key, value in values.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        add[type(value)](f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def byte_level(path: Path, **values: Any) -> Path:
    tokens = dict.fromkeys(ALPHABET, NORMAL) | {
        "ab": NORMAL,
        "<|end|>": CONTROL,
        "<tool>": USER,
        "<|start|>": CONTROL,
    }
    return write_gguf(path, "gpt2", tokens, **{"merges": ["a b"], "eos_token_id": 257, **values})


def pieces(path: Path, **values: Any) -> Path:
    tokens = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL} | {f"<0x{b:02X}>": BYTE for b in range(256)}
    scored = {"▁ab": -1.0, "bc": -2.0, "ab": -3.0, "▁a": -4.0, "▁": -5.0, "a": -6.0, "b": -7.0, "c": -8.0}
    scores = [0.0] * len(tokens) + [*scored.values()]
    tokens |= dict.fromkeys(scored, NORMAL)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return write_gguf(path, "llama", tokens, **{"scores": scores, **ids, **values})


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_encodes_and_decodes_without_loss(tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path / "t.gguf", pre=name, bos_token_id=259))
    text = "abc It's 123456 日本 ÀB\r\n\r\n  x = {y}; ½"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.encode("x")[0] == 259) == FAMILIES[name].add_bos


SPLITS = {
    "gpt-2": ["a", "Ġ12345", "'s", "Ġx"],
    "bloom": ["a", "Ġ12345's", "Ġx"],
    "smollm": ["a", "Ġ", "1", "2", "3", "4", "5", "'s", "Ġx"],
    "llama-bpe": ["a", "Ġ", "123", "45", "'s", "Ġx"],
    "qwen2": ["a", "Ġ", "1", "2", "3", "4", "5", "'s", "Ġx"],
    "deepseek-v3": ["a", "Ġ", "123", "45", "'s", "Ġx"],
    "tekken": ["a", "Ġ", "1", "2", "3", "4", "5", "'s", "Ġx"],
    "gpt-4o": ["a", "Ġ", "123", "45", "'s", "Ġx"],
    "falcon": ["a", "Ġ", "123", "45", "'", "s", "Ġx"],
}


@pytest.mark.parametrize("name", SPLITS)
def test_families_cut_text_in_their_own_way(name: str) -> None:
    pieces = FAMILIES[name].build(False).pre_tokenize_str("a 12345's x")
    assert [piece for piece, _ in pieces] == SPLITS[name]


def test_an_unknown_family_is_refused_because_a_guess_would_be_wrong(tmp_path: Path) -> None:
    path = byte_level(tmp_path / "t.gguf", pre="klingon")
    with pytest.raises(ModelError, match=r"'klingon'.*Known: .*smollm.*--tokenizer"):
        load_tokenizer(path)


def test_an_unknown_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"kind 'bert'; known: gpt2, llama"):
        load_tokenizer(write_gguf(tmp_path / "t.gguf", "bert", {"a": NORMAL}))


def test_user_defined_tokens_are_matched_and_are_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path / "t.gguf"))
    assert tokenizer.encode("<tool><|end|>") == [258, 257]
    assert tokenizer.special_ids == {257, 259}
    assert tokenizer.decode([258, 257]) == "<tool>"


def test_bos_and_eos_are_added_when_the_file_says_so(tmp_path: Path) -> None:
    ids = {"bos_token_id": 259, "add_bos_token": True, "add_eos_token": True}
    tokenizer = load_tokenizer(byte_level(tmp_path / "t.gguf", **ids))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a")) == ["<|start|>", "a", "<|end|>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False)) == ["a"]


def test_sentencepiece_merges_the_best_score_first(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pieces(tmp_path / "t.gguf"))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("abc"))
    assert tokens == ["<s>", "▁a", "bc"]  # "bc" scores better than "ab", so it is made first
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab")) == ["<s>", "▁ab"]
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"


def test_sentencepiece_spells_what_it_has_no_piece_for_in_bytes(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pieces(tmp_path / "t.gguf"))
    ids = tokenizer.encode("a 日", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁a", "▁", "<0xE6>", "<0x97>", "<0xA5>"]
    assert tokenizer.decode(ids) == "a 日"


def test_sentencepiece_without_a_space_prefix_keeps_text_as_it_is(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pieces(tmp_path / "t.gguf", add_space_prefix=False, add_bos_token=False))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a")) == ["a"]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"eos_token_id": 10**6}, "eos_token_id is 1000000, of 260 tokens"),
        ({"merges": ["a zz"]}, "contradicts itself"),
        ({"merges": ["nospace"]}, "contradicts itself"),
        ({"merges": [1, 2]}, "no array of str"),
    ],
)
def test_a_tokenizer_that_contradicts_itself_is_refused(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadCheckpoint, match=said):
        load_tokenizer(byte_level(tmp_path / "t.gguf", **values))


def test_fewer_scores_than_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="267 tokens and 2 scores"):
        load_tokenizer(pieces(tmp_path / "t.gguf", scores=[0.0, 1.0]))


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """BERT's kind: pieces of words, and a template for one text and for two."""
    from tokenizers.processors import TemplateProcessing

    pieces = ["[UNK]", "[CLS]", "[SEP]", "sea", "##side", "ship", "##s", "a", "b"]
    model = models.WordPiece(vocab={piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return Tokenizer(backend, {"cls_token": "[CLS]", "sep_token": "[SEP]"})


def test_pieces_of_words_join_to_words(words: Tokenizer) -> None:
    assert words.decode(words.encode("seaside ships sea")) == "seaside ships sea"


def test_two_texts_are_joined_by_the_models_template(words: Tokenizer) -> None:
    assert words.encode_cut("a", None, None) == (words.encode("a"), None)
    assert words.encode_cut("a", "b b", None) == ([1, 7, 2, 8, 8, 2], 3)


@pytest.mark.parametrize(
    ("first", "second", "most", "expected"),
    [
        ("a a a a", None, 4, [1, 7, 7, 2]),
        ("a", "b b b b", 6, [1, 7, 2, 8, 8, 2]),
        ("a a a a", "b", 6, [1, 7, 7, 2, 8, 2]),
        ("a a a a", "b b b b", 8, [1, 7, 7, 2, 8, 8, 8, 2]),
        ("a a", "b b", 100, [1, 7, 7, 2, 8, 8, 2]),
        ("a a", "b b", 4, [1, 2, 8, 2]),
    ],
)
def test_a_text_is_cut_off_within_its_template(
    words: Tokenizer, first: str, second: str | None, most: int, expected: list[int]
) -> None:
    assert words.encode_cut(first, second, most)[0] == expected


def test_a_cut_that_leaves_nothing_of_the_text_is_refused(words: Tokenizer) -> None:
    with pytest.raises(RequestError, match="the model's own take 3") as refused:
        words.encode_cut("a", "b", 3)
    assert refused.value.parameter == "truncate_prompt_tokens"


def test_a_first_text_that_was_cut_is_whole_for_the_next_second_one(words: Tokenizer) -> None:
    first = "a a a a"
    cuts = [words.encode_cut(first, second, 8)[0] for second in ("b b b b", "b", "b b b b")]
    assert cuts == [[1, 7, 7, 2, 8, 8, 8, 2], [1, 7, 7, 7, 7, 2, 8, 2], [1, 7, 7, 2, 8, 8, 8, 2]]
