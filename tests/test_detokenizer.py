"""Tokens to text as they arrive, and stop strings that never leak."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from core.errors import ModelError
from core.text.detokenizer import Detokenizer, StopChecker
from core.text.tokenizer import Tokenizer, load_tokenizer

WORDS = {"a": 0, "b": 1, "c": 2}
PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "▁",
    "▁a",
    "a",
    "▁▁b",
    "é",
    "日",
]


@pytest.fixture(scope="module")
def byte_level(smollm2: Path) -> Tokenizer:
    return load_tokenizer(smollm2)


def sentencepiece(decoder: object) -> Tokenizer:
    backend = Backend(
        models.BPE(vocab={piece: i for i, piece in enumerate(PIECES)}, merges=[], byte_fallback=True)
    )
    backend.decoder = decoder  # type: ignore[assignment]
    backend.add_special_tokens(PIECES[:3])
    return Tokenizer(backend, {"bos_token": "<s>"})


def llama_decoder() -> object:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(steps)


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return sentencepiece(llama_decoder())


def streamed(tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip: bool) -> str:
    """The text that arrives when tokens are pushed in groups of these sizes, the last repeated."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    parts, position = [], 0
    while position < len(ids):
        size = cuts.pop(0) if cuts else 1
        parts.append(detokenizer.push(ids[position : position + size]))
        position += size
    return "".join(parts) + detokenizer.flush()


IDS = st.lists(st.integers(0, 49151), max_size=60)
PIECE_IDS = st.lists(st.integers(0, len(PIECES) - 1), max_size=60)
# The default model's vocabulary lacks the bytes of some control characters and of everything from U+40000 on.
SPELLABLE = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"])
CUTS = st.lists(st.integers(1, 5), max_size=20)


@settings(max_examples=200, deadline=None)
@given(ids=IDS, cuts=CUTS, skip=st.booleans())
def test_the_parts_of_random_tokens_join_to_what_the_library_decodes(
    byte_level: Tokenizer, ids: list[int], cuts: list[int], skip: bool
) -> None:
    expected = byte_level._backend.decode(ids, skip_special_tokens=skip)
    assert streamed(byte_level, ids, cuts, skip) == expected
    assert byte_level.decode(ids, skip_special_tokens=skip) == expected


@settings(max_examples=200, deadline=None)
@given(ids=PIECE_IDS, cuts=CUTS, skip=st.booleans())
def test_the_parts_of_random_pieces_join_to_the_whole(
    pieces: Tokenizer, ids: list[int], cuts: list[int], skip: bool
) -> None:
    assert streamed(pieces, ids, cuts, skip) == pieces.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30).filter(lambda text: not text.startswith(" ")), prefixed=st.booleans())
def test_pieces_of_valid_text_decode_as_the_library_does(
    pieces: Tokenizer, text: str, prefixed: bool
) -> None:
    known = {"é": PIECES.index("é"), "日": PIECES.index("日"), "a": PIECES.index("a"), " ": PIECES.index("▁")}
    ids = [PIECES.index("▁")] if prefixed else []
    for character in text:
        ids += [known[character]] if character in known else [3 + byte for byte in character.encode()]
    assert pieces.decode(ids) == pieces._backend.decode(ids) == text


def test_a_character_is_held_back_until_it_is_complete(pieces: Tokenizer) -> None:
    detokenizer = Detokenizer(pieces)
    parts = [detokenizer.push([3 + byte]) for byte in "日".encode()]
    assert parts == ["", "", "日"]
    assert detokenizer.flush() == ""


def test_a_character_that_never_completes_is_one_replacement_at_the_end(pieces: Tokenizer) -> None:
    detokenizer = Detokenizer(pieces)
    assert detokenizer.push([3 + byte for byte in "日".encode()[:2]]) == ""
    assert detokenizer.flush() == "\ufffd"


@settings(max_examples=100, deadline=None)
@given(text=st.text(SPELLABLE, max_size=40))
def test_text_that_was_encoded_streams_without_replacement_characters(
    byte_level: Tokenizer, text: str
) -> None:
    ids = byte_level.encode(text, parse_special=False)
    detokenizer = Detokenizer(byte_level)
    parts = [detokenizer.push([token]) for token in ids]
    assert "".join(parts) + detokenizer.flush() == text
    assert sum(part.count("\ufffd") for part in parts) == text.count("\ufffd")


def test_a_text_loses_the_space_that_encoding_put_before_it(pieces: Tokenizer) -> None:
    a, space = PIECES.index("▁a"), PIECES.index("▁")
    assert pieces.decode([a, a]) == "a a"
    assert pieces.decode([1, a]) == "a"
    assert pieces.decode([1, a], skip_special_tokens=False) == "<s> a"
    assert pieces.decode([space, space, a]) == "  a"


def test_an_answer_keeps_its_leading_space_after_a_prompt(pieces: Tokenizer) -> None:
    a = PIECES.index("▁a")
    assert Detokenizer(pieces, prompt_ids=[1, a]).push([a]) == " a"


def test_an_answer_finishes_a_character_that_its_prompt_began(pieces: Tokenizer) -> None:
    first, *rest = [3 + byte for byte in "日".encode()]
    detokenizer = Detokenizer(pieces, prompt_ids=[PIECES.index("a"), first])
    assert detokenizer.push(rest) == "日"


def test_ids_outside_the_vocabulary_spell_nothing(byte_level: Tokenizer) -> None:
    a = byte_level.encode("a")
    assert byte_level.decode([*a, 49152, 2**40, -1, *a]) == "aa"


def test_a_tokenizer_without_a_decoder_puts_spaces_between_words() -> None:
    words = Tokenizer(Backend(models.WordLevel(vocab=WORDS, unk_token="a")), {})
    assert words.decode([0, 1, 2]) == words._backend.decode([0, 1, 2]) == "a b c"
    assert streamed(words, [0, 1, 2], [], skip=True) == "a b c"


def test_a_decoder_that_cannot_run_token_by_token_is_refused() -> None:
    backend = Backend(models.WordLevel(vocab=WORDS, unk_token="a"))
    backend.decoder = decoders.CTC()  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"decodes with CTC, which is not supported"):
        Tokenizer(backend, {})


def test_metaspace_decoders_are_understood() -> None:
    metaspace = sentencepiece(decoders.Metaspace())
    a = PIECES.index("▁a")
    assert metaspace.decode([a, a]) == metaspace._backend.decode([a, a]) == "a a"


def test_the_work_per_token_does_not_grow_with_the_answer(byte_level: Tokenizer) -> None:
    detokenizer = Detokenizer(byte_level)
    ids = byte_level.encode("the cat sat on the mat and ") * 4000

    def seconds(part: list[int]) -> float:
        start = time.process_time()
        for token in part:
            detokenizer.push([token])
        return time.process_time() - start

    seconds(ids[:1000])
    first, middle, last = seconds(ids[:8000]), seconds(ids[8000:20000]), seconds(ids[20000:28000])
    assert middle > 0
    assert last < 5 * first


# Stop strings


def run_stops(stops: list[str], parts: list[str], include: bool = False) -> tuple[str, str | None, list[str]]:
    checker = StopChecker(stops, include)
    emitted: list[str] = []
    for part in parts:
        text, hit = checker.push(part)
        emitted.append(text)
        if hit is not None:
            return "".join(emitted), hit, emitted
    return "".join([*emitted, checker.flush()]), None, emitted


def expected_stop(stops: list[str], text: str, include: bool) -> tuple[str, str | None]:
    """By definition: the stop string that is completed first; of several, the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end if include else end - len(stop)], stop


LETTERS = st.text(alphabet="ab", max_size=30)


@settings(max_examples=500, deadline=None)
@given(
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=4),
    parts=st.lists(st.text(alphabet="ab", max_size=5), max_size=12),
    include=st.booleans(),
)
def test_stop_strings_are_found_however_the_text_is_cut(
    stops: list[str], parts: list[str], include: bool
) -> None:
    text, hit, _ = run_stops(stops, parts, include)
    assert (text, hit) == expected_stop(stops, "".join(parts), include)


@pytest.mark.parametrize("cut", range(1, 4))
def test_no_part_of_a_stop_string_leaks(cut: int) -> None:
    stop = "STOP"
    _, hit, emitted = run_stops([stop], ["text ", stop[:cut], stop[cut:], "more"])
    assert hit == stop
    assert emitted == ["text ", "", ""]


def test_text_that_turned_out_to_be_no_stop_string_is_given_out() -> None:
    checker = StopChecker(["STOP"])
    assert checker.push("ST") == ("", None)
    assert checker.push("ART") == ("START", None)
    assert checker.push("ST") == ("", None)
    assert checker.flush() == "ST"


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert StopChecker([]).push("anything") == ("anything", None)


def test_a_hostile_text_takes_linear_time() -> None:
    checker = StopChecker([("a" * 255 + "b")] * 16)
    start = time.process_time()
    for _ in range(100):
        checker.push("a" * 100)
    assert time.process_time() - start < 5
