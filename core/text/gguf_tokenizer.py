"""The tokenizer inside a GGUF file: byte-level BPE ("gpt2") and SentencePiece BPE ("llama").

Built from the file's own arrays. What GGUF leaves out, the way text is cut before merging, is looked up by
the name it gives (see pretokenizers.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from core.errors import BadCheckpoint, ModelError
from core.text.pretokenizers import FAMILIES, Family
from core.text.tokenizer import Tokenizer, add_bos_eos
from core.weights.gguf_file import read_gguf_metadata

_UNKNOWN, _CONTROL, _USER_DEFINED, _NORMAL = 2, 3, 4, 1
_NAMES = {
    **{"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator"},
    **{"pad_token": "padding", "cls_token": "cls", "mask_token": "mask"},
}
_SPACE = "▁"


class _Vocabulary:
    """The metadata under `tokenizer.ggml.`, checked as it is read."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.metadata = metadata
        self.tokens: list[str] = self.array("tokens", str)
        kinds: list[int] = self.array("token_type", int, optional=True)
        self.kinds = kinds or [_NORMAL] * len(self.tokens)
        if len(self.kinds) != len(self.tokens):
            raise BadCheckpoint(f"{path} has {len(self.tokens)} tokens and {len(kinds)} token types")
        self.ids: dict[str, int] = {}
        for token_id, token in enumerate(self.tokens):
            self.ids.setdefault(token, token_id)

    def array(self, key: str, kind: type, *, optional: bool = False) -> list[Any]:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None and optional:
            return []
        if not isinstance(value, list) or (value and not isinstance(value[0], kind)):
            raise BadCheckpoint(f"{self.path}: tokenizer.ggml.{key} is no array of {kind.__name__}")
        return cast("list[Any]", value)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.metadata.get(f"tokenizer.ggml.{key}", default))

    def special(self) -> dict[str, str]:
        """Name -> text of the tokens with a role. Raises BadCheckpoint for an id out of range."""
        found: dict[str, str] = {}
        for name, key in _NAMES.items():
            token_id = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
            if token_id is None:
                continue
            if not isinstance(token_id, int) or not 0 <= token_id < len(self.tokens):
                raise BadCheckpoint(
                    f"{self.path}: {key}_token_id is {token_id!r:.40}, of {len(self.tokens)} tokens"
                )
            found[name] = self.tokens[token_id]
        return found


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a .gguf file.

    Raises BadCheckpoint when its arrays contradict each other, ModelError for a kind that is not known here.
    """
    metadata = read_gguf_metadata(path)
    kind = metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise ModelError(
            f"{path} has a tokenizer of kind {kind!r:.40}; known: {', '.join(builders)}. "
            "Give the folder of the original model with --tokenizer"
        )
    vocabulary = _Vocabulary(path, metadata)
    special = vocabulary.special()
    try:
        backend, add_bos = builders[kind](vocabulary, special)
        _add_special(backend, vocabulary, special)
    except ModelError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise BadCheckpoint(f"{path} has a tokenizer that contradicts itself: {error}") from error
    add_bos_eos(
        backend, special, vocabulary.flag("add_bos_token", add_bos), vocabulary.flag("add_eos_token", False)
    )
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(backend, special, template if isinstance(template, str) else None)


def _byte_level(vocabulary: _Vocabulary, special: Mapping[str, str]) -> tuple[Backend, bool]:
    """GPT-2's kind: merges over an alphabet of bytes."""
    family = _family(vocabulary)
    merges = [
        cast("tuple[str, str]", tuple(merge.split(" ", 1))) for merge in vocabulary.array("merges", str)
    ]
    model = models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=family.ignore_merges)
    backend = Backend(model)
    if family.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = family.build(vocabulary.flag("add_space_prefix", False))
    backend.decoder = decoders.ByteLevel()
    return backend, family.add_bos


def _family(vocabulary: _Vocabulary) -> Family:
    name = vocabulary.metadata.get("tokenizer.ggml.pre", "default")
    if name not in FAMILIES:
        raise ModelError(
            f"{vocabulary.path} has the pre-tokenizer {name!r:.40}, and guessing would give wrong tokens. "
            f"Known: {', '.join(sorted(FAMILIES))}. Give the original model's folder with --tokenizer"
        )
    return FAMILIES[name]


def _sentencepiece(vocabulary: _Vocabulary, special: Mapping[str, str]) -> tuple[Backend, bool]:
    """Llama 2's kind: pieces with scores, "▁" for a space, a token for each byte that has no piece."""
    scores = vocabulary.array("scores", float)
    if len(scores) != len(vocabulary.tokens):
        raise BadCheckpoint(f"{vocabulary.path} has {len(vocabulary.tokens)} tokens and {len(scores)} scores")
    model = models.BPE(
        vocab=vocabulary.ids,
        merges=_merges(vocabulary, scores),
        unk_token=special.get("unk_token"),
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Backend(model)
    prefix = vocabulary.flag("add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = cast(
        "normalizers.Normalizer",
        normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces,
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = cast(
        "decoders.Decoder", decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    )
    return backend, True


def _merges(vocabulary: _Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first: SentencePiece's choice at each step."""
    ids = {token: i for token, i in vocabulary.ids.items() if vocabulary.kinds[i] == _NORMAL}
    found: list[tuple[float, int, int, str, str]] = []
    for piece, token_id in ids.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((-scores[token_id], ids[left], ids[right], left, right))
    return [(left, right) for _, _, _, left, right in sorted(found)]


def _add_special(backend: Backend, vocabulary: _Vocabulary, special: Mapping[str, str]) -> None:
    """Markup by token type and by role; user-defined tokens are matched in text too, but are text."""
    roles = set(special.values())
    added = [
        AddedToken(token, normalized=False, special=kind != _USER_DEFINED or token in roles)
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        if token and (kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) or token in roles)
    ]
    library: Any = backend
    library.add_special_tokens([token for token in added if token.special])
    library.add_tokens([token for token in added if not token.special])
