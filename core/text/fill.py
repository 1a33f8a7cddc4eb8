"""Fill-in-the-middle: what stands between a prefix and a suffix, for models that were trained to find it.

Which models those are, their tokenizers tell: each has the marks of one of FORMATS. Both texts are text: what spells
a mark in them stays text, so that code about marks can be completed, too.
Source: Efficient Training of Language Models to Fill in the Middle, Bavarian et al. 2022.
"""

from dataclasses import dataclass

from core.errors import RequestError
from core.text.tokenizer import Tokenizer

_ANCHOR = "☺"
"""Put before a text that goes on from something, where the tokenizer would begin a text with a space."""


@dataclass(frozen=True, kw_only=True)
class FillFormat:
    """The marks of a family, as its vocabulary spells them.

    middle        written last, where the answer begins; None: the prefix is written last, and its end is it
    ends          what a middle may end with, besides the end of sequence
    """

    prefix: str
    suffix: str
    middle: str | None
    ends: tuple[str, ...] = ()


FORMATS = (
    FillFormat(  # Qwen2.5-Coder, CodeGemma, Granite
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        ends=("<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<|file_separator|>"),
    ),
    FillFormat(  # StarCoder, StarCoder2, Granite Code, StableCode
        prefix="<fim_prefix>",
        suffix="<fim_suffix>",
        middle="<fim_middle>",
        ends=("<|endoftext|>", "<fim_pad>", "<file_sep>", "<repo_name>"),
    ),
    FillFormat(  # SantaCoder
        prefix="<fim-prefix>",
        suffix="<fim-suffix>",
        middle="<fim-middle>",
        ends=("<|endoftext|>", "<fim-pad>"),
    ),
    FillFormat(prefix="▁<PRE>", suffix="▁<SUF>", middle="▁<MID>", ends=("▁<EOT>",)),  # CodeLlama
    FillFormat(prefix="<｜fim▁begin｜>", suffix="<｜fim▁hole｜>", middle="<｜fim▁end｜>"),  # DeepSeek-Coder
    FillFormat(prefix="[PREFIX]", suffix="[SUFFIX]", middle=None),  # Codestral
)


def fill_format(tokenizer: Tokenizer) -> FillFormat | None:
    """The family's format; None for a model that does not fill in the middle."""
    return next((known for known in FORMATS if _marks(tokenizer, known) is not None), None)


def encode_fill(
    tokenizer: Tokenizer, prefix: str | list[int], suffix: str, *, add_special_tokens: bool = True
) -> tuple[list[int], list[int]]:
    """The prompt that asks for a middle, and the token ids that end one. What ends a sequence does, anyway.

    add_special_tokens  begin with the bos token, where the tokenizer begins every text with it

    Raises RequestError naming suffix where the model does not fill in the middle.
    """
    found = fill_format(tokenizer)
    marks = None if found is None else _marks(tokenizer, found)
    if found is None or marks is None:
        raise RequestError(
            "this model does not fill in the middle: its tokenizer has no tokens for prefix and suffix; leave "
            "suffix out",
            parameter="suffix",
        )
    before = prefix if isinstance(prefix, list) else _encode(tokenizer, prefix)
    after = _continued(tokenizer, suffix)
    begin = tokenizer.encode("")[:1] if add_special_tokens else []
    ids = begin if begin == [tokenizer.bos_token_id] else []
    if found.middle is None:
        ids = [*ids, marks[1], *after, marks[0], *before]
    else:
        ids = [*ids, marks[0], *before, marks[1], *after, marks[2]]
    ends = [token for text in found.ends if (token := tokenizer.token_to_id(text)) is not None]
    return ids, ends


def _marks(tokenizer: Tokenizer, known: FillFormat) -> list[int] | None:
    """Token ids of prefix, suffix and, where there is one, middle; None where the vocabulary lacks any."""
    texts = [text for text in (known.prefix, known.suffix, known.middle) if text is not None]
    ids = [token for text in texts if (token := tokenizer.token_to_id(text)) is not None]
    return ids if len(ids) == len(texts) else None


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, parse_special=False)


def _continued(tokenizer: Tokenizer, text: str) -> list[int]:
    """The token ids of a text that is no beginning, so that no space is put before it."""
    if not tokenizer.spelling.rule.strip:
        return _encode(tokenizer, text)
    return _encode(tokenizer, _ANCHOR + text)[len(_encode(tokenizer, _ANCHOR)) :]
