"""What each token spells, in bytes.

Text is the UTF-8 decoding of what its tokens spell, one after the other. Kept apart from decoding, this makes
detokenizing incremental: a token is looked up once and never looked at again.
"""

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from core.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, kw_only=True)
class SpellingRule:
    """How the strings of a vocabulary stand for bytes.

    byte_level     each character stands for one byte, as in GPT-2
    space          what stands for a space, "▁" in SentencePiece
    byte_fallback  "<0x0A>" stands for that byte
    prefix         put before every token: " " for vocabularies of whole words
    continuation   what a token begins with that goes on with a word, "##" in WordPiece: it gets no prefix
    strip          a text loses one leading space, because encoding put it there
    """

    byte_level: bool = False
    space: str | None = None
    byte_fallback: bool = False
    prefix: str = ""
    continuation: str | None = None
    strip: bool = False


class Spelling:
    """Token id -> bytes, for one tokenizer. Thread-safe: entries are written once, always the same."""

    def __init__(self, backend: "Backend") -> None:
        self.rule = _rule(backend)
        self._backend = backend
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        """The bytes of a token; none for an id outside the vocabulary."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._spell(token_id)
        return found

    def _spell(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if token is None:
            return b""
        rule = self.rule
        if rule.byte_level:
            known = [_BYTE_OF.get(character) for character in token]
            return token.encode() if None in known else bytes(cast("list[int]", known))
        if rule.byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        if rule.continuation is not None and token.startswith(rule.continuation):
            return token.removeprefix(rule.continuation).encode()
        return (rule.prefix + (token if rule.space is None else token.replace(rule.space, " "))).encode()


def _byte_characters() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, other bytes for characters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_characters()


def _rule(backend: "Backend") -> SpellingRule:
    """Read from the tokenizer's decoder. Raises ModelError for one that cannot run token by token."""
    if backend.decoder is None:
        return SpellingRule(prefix=" ", strip=True)
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse", "ByteFallback"}:
        return SpellingRule(byte_level=True)
    if kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return _sentencepiece(steps, "ByteFallback" in kinds)
    if kinds == {"WordPiece"}:  # spaces before punctuation stay, which the decoder would take away
        return SpellingRule(prefix=" ", continuation=steps[0]["prefix"], strip=True)
    raise ModelError(
        f"the tokenizer decodes with {', '.join(sorted(kinds))}, which is not supported here (ByteLevel, "
        "SentencePiece and WordPiece are); skip_tokenizer_init works on token ids alone"
    )


def _sentencepiece(steps: list[dict[str, Any]], byte_fallback: bool) -> SpellingRule:
    space, strip = None, False
    for step in steps:
        if step["type"] == "Replace":
            space = step["pattern"].get("String")
            if space is None or step["content"] != " ":
                raise ModelError(f'the tokenizer decodes by replacing {step["pattern"]}; only "▁" is known')
        elif step["type"] == "Metaspace":
            space, strip = step["replacement"], step.get("prepend_scheme", "always") != "never"
        elif step["type"] == "Strip":
            strip = step["start"] > 0
    return SpellingRule(space=space, byte_fallback=byte_fallback, strip=strip)
