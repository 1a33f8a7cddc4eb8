"""Tokens to text as they arrive: UTF-8 safe, constant work per token, and stop strings that never leak."""

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.text.tokenizer import Tokenizer

# A character of UTF-8 has at most four bytes, so this many tokens reach back to where one began.
_TOKENS_OF_CHARACTER = 4


class Detokenizer:
    """The text of one sequence. `push` returns what is certain; the parts join to what `decode` gives.

    skip_special_tokens  special tokens spell nothing
    prompt_ids           tokens before the first that is pushed: the text goes on from them, so a leading
                         space is kept and a character that they began is finished
    """

    def __init__(
        self, tokenizer: "Tokenizer", *, skip_special_tokens: bool = True, prompt_ids: Sequence[int] = ()
    ) -> None:
        self._spelling = tokenizer.spelling
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = self._spelling.rule.strip
        if prompt_ids:
            self.push(prompt_ids[-_TOKENS_OF_CHARACTER:])
            self._at_start = False

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens make certain; a character that is not complete yet is held back."""
        spelling, skipped = self._spelling, self._skipped
        spelled = b"".join([spelling[token] for token in token_ids if token not in skipped])
        return self._stripped(self._decoder.decode(spelled))

    def flush(self) -> str:
        """What was held back: U+FFFD for a character that never became complete. Nothing may follow."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text[1:] if text[0] == " " else text
        return text


class StopChecker:
    """Finds the stop string that is completed first, and holds back text that may still become one.

    Works character by character, so the result is the same however the text is cut into parts. Of stop
    strings that end at the same character, the longest wins.

    stops    strings that end an answer
    include  whether the stop string itself is part of the text
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        given = [stops] if isinstance(stops, str) else stops
        self._stops = [(stop, _fallbacks(stop)) for stop in given if stop]
        self._include = include
        self._matched = [0] * len(self._stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that is certain, the stop string that was found). Nothing may follow one that was found."""
        if not self._stops:
            return text, None
        buffer, start = self._held + text, len(self._held)
        for position in range(start, len(buffer)):
            hit = self._advance(buffer[position])
            if hit is not None:
                end = position + 1
                self._held = ""
                return buffer[: end if self._include else end - len(hit)], hit
        certain = len(buffer) - max(self._matched)
        self._held = buffer[certain:]
        return buffer[:certain], None

    def flush(self) -> str:
        """The text that was held back and will never become a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        """Take one character into every automaton (Knuth, Morris and Pratt 1977)."""
        hit: str | None = None
        for index, (stop, fallbacks) in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = fallbacks[matched - 1]
            matched += stop[matched] == character
            self._matched[index] = matched
            if matched == len(stop) and (hit is None or len(stop) > len(hit)):
                hit = stop
        return hit


def _fallbacks(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    lengths, matched = [0], 0
    for character in stop[1:]:
        while matched and stop[matched] != character:
            matched = lengths[matched - 1]
        matched += stop[matched] == character
        lengths.append(matched)
    return lengths
