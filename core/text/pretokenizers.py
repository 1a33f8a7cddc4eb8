"""How each family of byte-level tokenizers cuts text before it merges bytes, by the names that GGUF uses.

The patterns are those of the models' own tokenizer.json; GGUF files carry only the name. A wrong one gives
wrong tokens without any error, so a name that is not listed is refused.
"""

from dataclasses import dataclass
from typing import cast

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Punctuation, Sequence, Split


@dataclass(frozen=True, kw_only=True)
class Family:
    """One way to cut text.

    patterns       each match becomes a piece of its own, pattern after pattern
    gpt2           GPT-2's pattern comes last
    nfc            text is brought to Unicode's composed form first
    ignore_merges  a piece that is a token as a whole becomes that token, whatever the merges say
    add_bos        texts begin with the bos token unless the file says otherwise
    """

    patterns: tuple[str, ...] = ()
    gpt2: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False
    falcon: bool = False

    def build(self, add_prefix_space: bool) -> PreTokenizer:
        """The pre-tokenizer; it ends by turning bytes into GPT-2's alphabet."""
        steps: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in self.patterns]
        byte_level = ByteLevel(add_prefix_space=add_prefix_space, use_regex=self.gpt2)
        if self.falcon:
            steps = [Punctuation("contiguous"), byte_level, Digits(individual_digits=False), *steps]
        else:
            steps.append(byte_level)
        return cast("PreTokenizer", Sequence(steps))


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)


def _words(digits: str) -> str:
    """Contractions, words with at most one sign before them, digits in groups, signs, line ends, spaces."""
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{_SYMBOLS}|{_SPACES}"


def _cased(suffix: str, digits: str) -> str:
    """As `_words`, with a cut where lower case turns to upper case."""
    return rf"{_CASED[0]}{suffix}|{_CASED[1]}{suffix}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")

_GPT2 = Family(gpt2=True)
_DIGITS = Family(patterns=(r"\p{N}",), gpt2=True)
_DIGITS_NFC = Family(patterns=(r"\p{N}",), gpt2=True, nfc=True)
_LLAMA3 = Family(patterns=(_words(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
_GROUPED = Family(patterns=(_words(r"\p{N}{1,3}"),))
_QWEN2 = Family(patterns=(_words(r"\p{N}"),), nfc=True)
_SINGLE = Family(patterns=(_words(r"\p{N}"),))
_GPT4O = Family(patterns=(_cased(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),))
_TEKKEN = Family(patterns=(_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "minerva-7b"), _DIGITS),
    "command-r": _DIGITS_NFC,
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _GROUPED),
    **dict.fromkeys(("qwen2", "megrez"), _QWEN2),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "hunyuan", "solar-open"), _SINGLE),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "tekken": _TEKKEN,
    "bloom": Family(patterns=(r" ?[^(\s|.,!?…。，、।۔،)]+",)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), Family(patterns=_DEEPSEEK_V3)),
    "deepseek-coder": Family(patterns=_DEEPSEEK_CODER),
    "falcon": Family(patterns=("[0-9][0-9][0-9]",), gpt2=True, falcon=True),
}
"""`tokenizer.ggml.pre` -> how to cut."""
