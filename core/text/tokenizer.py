"""One Tokenizer for every model, from a model folder or a .gguf file.

Built on the `tokenizers` library directly: importing transformers would cost every start seconds, so it is
used only for folders that have no tokenizer.json. The library itself is imported when a tokenizer is loaded, so
that a server starts its engine first. Decoding is ours (see spelling.py), so that text that is
streamed and text that is decoded whole are the same.
"""

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast, overload

from core.errors import ModelError, ModelNotFound, RequestError
from core.text.detokenizer import Detokenizer
from core.text.spelling import Spelling
from core.weights.checkpoint import find_gguf

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

    from core.text.chat import ChatTemplate

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Names of single special tokens, as tokenizer_config.json and chat templates know them."""

_WITHOUT_JSON = (
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "tiktoken.model",
)


class Tokenizer:
    """Text to token ids and back. Thread-safe.

    special_tokens    name as in SPECIAL_TOKENS -> the token's text
    special_ids       ids of all tokens that are markup, not text
    chat_template     Jinja source, or None
    vocab_size        number of tokens, added ones included
    plain_vocab_size  without those
    """

    def __init__(
        self, backend: "Backend", special_tokens: Mapping[str, str], chat_template: str | None = None
    ) -> None:
        # The library would start threads for batches, and warn of them after every fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._plain: Backend | None = None
        self._lock = Lock()
        self._repeated = lru_cache(maxsize=2)(self._beginning)
        self.spelling = Spelling(backend)
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.plain_vocab_size = backend.get_vocab_size(with_added_tokens=False)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.special_texts = frozenset(token.content for token in added.values() if token.special)
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_id = self._special_id("eos_token")
        self.pad_token_id = self._special_id("pad_token")

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        add_special_tokens  begin (and end) as the model was trained to, usually with the bos token
        parse_special       text that spells a special token becomes that token; False: it stays text

        Raises RequestError for what is no valid Unicode text.
        """
        check_text(text, "prompt")
        backend = self._backend if parse_special else self._plain_backend()
        # As a batch of one: only batches let other threads run meanwhile, and a long text takes seconds.
        return backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def encode_cut(self, first: str, second: str | None, most: int | None) -> tuple[list[int], int | None]:
        """Token ids of a text, or of two that are joined as the model was trained to, cut off at `most`.

        What begins and ends a text stays; of two, the longer one is cut first.

        Returns the index of the second's first token, too; None where the model is not to tell them apart.
        Raises RequestError naming prompt, second, or truncate_prompt_tokens where nothing of a text would be left.
        """
        check_text(first, "prompt")
        if second is not None:
            check_text(second, "second")
        room = self._room(most, second is not None)
        # A first text usually comes again and again, with each of many second ones.
        begun = [self._beginning(first, room) if second is None else self._repeated(first, room)]
        begun += [] if second is None else [self._beginning(second, room)]
        encodings = [encoding for encoding, _ in begun]
        if room is not None:
            lengths = _shared(room, [length for _, length in begun])
            encodings = [_leading(e, length) for e, length in zip(encodings, lengths, strict=True)]
        joined = self._backend.post_process(encodings[0], encodings[1] if second is not None else None)
        return joined.ids, joined.type_ids.index(1) if 1 in joined.type_ids else None

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[list[int]]:
        """`encode` of each text."""
        for text in texts:
            check_text(text, "prompt")
        backend = self._backend if parse_special else self._plain_backend()
        return [
            encoding.ids for encoding in backend.encode_batch([*texts], add_special_tokens=add_special_tokens)
        ]

    def encode_guarded(self, text: str, guarded: Sequence[tuple[int, int]]) -> list[int]:
        """As encode without added tokens, but special tokens that touch a guarded range stay text.

        guarded  [start, end) in characters, ascending and disjoint
        """
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=False)
        if not guarded:
            return encoding.ids
        ids: list[int] = []
        plain: dict[str, list[int]] = {}
        ranges = iter([*guarded, (len(text) + 1, len(text) + 1)])
        start, end = next(ranges)
        for token, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            while end <= first:
                start, end = next(ranges)
            if token in self.special_ids and start < last:
                spelled = text[first:last]
                if spelled not in plain:
                    plain[spelled] = self.encode(spelled, add_special_tokens=False, parse_special=False)
                ids += plain[spelled]
            else:
                ids.append(token)
        return ids

    def decode(self, token_ids: Sequence[int] | int, *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Bytes that are no UTF-8 become U+FFFD; unknown ids spell nothing."""
        detokenizer = Detokenizer(self, skip_special_tokens=skip_special_tokens)
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return detokenizer.push(ids) + detokenizer.flush()

    def token_text(self, token_id: int) -> str:
        """What one token spells by itself, for showing it; its leading space is kept."""
        return self.spelling[token_id].decode("utf-8", errors="replace")

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own string for an id."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def token_to_id(self, token: str) -> int | None:
        """The id of one of the vocabulary's strings."""
        return self._backend.token_to_id(token)

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str | None: ...
    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]: ...
    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str | None] | None:
        """`id_to_token`, of one id or of each."""
        return self.id_to_token(ids) if isinstance(ids, int) else [self.id_to_token(token) for token in ids]

    @property
    def loses_nothing(self) -> bool:
        """Whether tokens spell a text's every character. Else one token may stand for any number of them."""
        return self.spelling.rule.byte_level or self.spelling.rule.byte_fallback

    @cached_property
    def longest_token(self) -> int:
        """Characters of the vocabulary's longest token: where nothing is lost, n tokens are n times as many at most."""
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)), default=1)

    @cached_property
    def chat(self) -> "ChatTemplate | None":
        """The model's chat template, ready to use. Raises ModelError when it is not valid Jinja."""
        from core.text.chat import ChatTemplate

        return None if self.chat_template is None else ChatTemplate(self.chat_template, self.special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = True,
        **arguments: Any,
    ) -> list[int] | str:
        """A conversation as token ids, or as text with tokenize=False. Raises RequestError."""
        from core.text.chat import missing_chat_template

        if self.chat is None:
            raise missing_chat_template()
        if not tokenize:
            return self.chat.render(messages, add_generation_prompt=add_generation_prompt, **arguments)
        return self.chat.encode(messages, self, add_generation_prompt=add_generation_prompt, **arguments)

    def __call__(self, text: str | Sequence[str], *, add_special_tokens: bool = True) -> dict[str, Any]:
        """{"input_ids": ...} of one text, or of each."""
        if isinstance(text, str):
            return {"input_ids": self.encode(text, add_special_tokens=add_special_tokens)}
        return {"input_ids": self.encode_batch(text, add_special_tokens=add_special_tokens)}

    def __len__(self) -> int:
        return self.vocab_size

    def _room(self, most: int | None, pair: bool) -> int | None:
        """Tokens that are left for the texts themselves."""
        special = self._backend.num_special_tokens_to_add(pair)
        if most is not None and most <= special:
            raise RequestError(
                f"cut at {most} tokens, nothing of the text would be left: the model's own take {special}",
                parameter="truncate_prompt_tokens",
            )
        return None if most is None else most - special

    def _beginning(self, text: str, most: int | None) -> "tuple[Encoding, int]":
        """A text's tokens, at most so many, and how many it has."""
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=False)
        return (encoding if most is None else _leading(encoding, most)), len(encoding)

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)

    def _plain_backend(self) -> "Backend":
        """A twin for which no text is special; made when first needed: it costs as much as loading."""
        from tokenizers import Tokenizer as Backend

        with self._lock:
            if self._plain is None:
                self._plain = Backend.from_str(self._backend.to_str())
                self._plain.encode_special_tokens = True
            return self._plain


def _leading(encoding: "Encoding", length: int) -> "Encoding":
    """The first tokens. `Encoding.truncate` would keep the others beside them, and whatever follows copy those, too."""
    from tokenizers import Encoding

    if len(encoding) <= length:
        return encoding
    given: Any = encoding
    kept: Any = Encoding()
    state: dict[str, Any] = json.loads(given.__getstate__())
    lists = {
        name: cast("list[Any]", value)[:length] for name, value in state.items() if isinstance(value, list)
    }
    kept.__setstate__(json.dumps(state | lists).encode())
    return kept


def _shared(room: int, lengths: Sequence[int]) -> list[int]:
    """How much of each of one or two lengths fits, when the longer one is cut first."""
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    shorter = min(*lengths, room // 2)
    return [shorter, room - shorter] if lengths[0] <= lengths[1] else [room - shorter, shorter]


def check_text(text: str, parameter: str) -> None:
    """Raises RequestError for what is no text: JSON can spell half a character, "\\ud800"."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RequestError(f"{parameter} must be a text, not {text!r:.80}", parameter=parameter)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{parameter} is no valid Unicode text: {error}", parameter=parameter) from None


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model folder or a .gguf file.

    Raises ModelNotFound when nothing is there, ModelError when that is no usable tokenizer.
    """
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist; expected a folder with tokenizer.json, or a .gguf file")
    if (path / "tokenizer.json").is_file():
        from core.text.folder_tokenizer import json_tokenizer

        return json_tokenizer(path)
    if path.is_dir() and any((path / name).is_file() for name in _WITHOUT_JSON):
        from core.text.folder_tokenizer import converted_tokenizer

        return converted_tokenizer(path)
    gguf = find_gguf(path)
    if gguf is not None:
        from core.text.gguf_tokenizer import gguf_tokenizer

        return gguf_tokenizer(gguf)
    raise ModelError(
        f"{path} has no tokenizer: looked for tokenizer.json, {', '.join(_WITHOUT_JSON)} and *.gguf. "
        "Name another model's with --tokenizer, or work on token ids with skip_tokenizer_init"
    )


def add_bos_eos(backend: "Backend", special: Mapping[str, str], add_bos: bool, add_eos: bool) -> None:
    """Have every encoded text begin with the bos token, or end with the eos token, where these exist."""
    from tokenizers.processors import TemplateProcessing

    begin = ["bos_token"] if add_bos and "bos_token" in special else []
    end = ["eos_token"] if add_eos and "eos_token" in special else []
    if begin or end:
        roles = {name: special[name] for name in (*begin, *end)}
        tokens: Any = [
            {"id": name, "ids": [backend.token_to_id(text)], "tokens": [text]} for name, text in roles.items()
        ]
        backend.post_processor = TemplateProcessing(single=[*begin, "$A", *end], special_tokens=tokens)
