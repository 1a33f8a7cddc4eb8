"""The tokenizer of a model folder: tokenizer.json and the files beside it, or what transformers can convert.

tokenizer.json holds everything but the roles of special tokens and the chat template, which other files name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from core.errors import ModelError
from core.text.tokenizer import SPECIAL_TOKENS, Tokenizer, add_bos_eos
from core.weights.checkpoint import read_json

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def json_tokenizer(folder: Path) -> Tokenizer:
    """From tokenizer.json, with the special tokens that the files beside it name. Raises ModelError."""
    file = folder / "tokenizer.json"
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{file} is not a tokenizer that can be read: {error}") from error
    config = _optional_json(folder / "tokenizer_config.json")
    names = _optional_json(folder / "special_tokens_map.json") | config
    special = {name: text for name in SPECIAL_TOKENS if (text := _content(names.get(name)))}
    try:
        _add_tokens(backend, config, [*special.values(), *_extra_tokens(names)])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}/tokenizer_config.json describes tokens wrongly: {error}") from error
    if backend.post_processor is None:
        add_bos_eos(backend, special, bool(config.get("add_bos_token")), bool(config.get("add_eos_token")))
    return Tokenizer(backend, special, _chat_template(folder, config))


def converted_tokenizer(folder: Path) -> Tokenizer:
    """What transformers makes of it; runs no code of the folder. Raises ModelError."""
    import transformers

    try:
        library: Any = transformers
        converted: Any = library.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        backend: Backend = converted.backend_tokenizer
    except Exception as error:  # of any kind: the formats are many, and packages they need may be missing
        raise ModelError(
            f"{folder} has no tokenizer.json, and transformers could not convert the tokenizer there: {error}"
        ) from error
    roles = {name: getattr(converted, name, None) for name in SPECIAL_TOKENS}
    special = {name: str(text) for name, text in roles.items() if text is not None}
    config = _optional_json(folder / "tokenizer_config.json")
    return Tokenizer(backend, special, _chat_template(folder, config))


def _add_tokens(backend: Backend, config: Mapping[str, Any], named: Sequence[str]) -> None:
    """Tokens that only tokenizer_config.json has, and the special tokens that are not marked as such yet."""
    declared: dict[str, Any] = config.get("added_tokens_decoder") or {}
    known = backend.get_added_tokens_decoder()
    library: Any = backend
    for token_id, entry in sorted(declared.items(), key=lambda item: int(item[0])):
        if int(token_id) not in known:
            flags = {flag: bool(entry.get(flag)) for flag in _FLAGS}
            library.add_tokens([AddedToken(entry["content"], **flags)])
    marked = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    library.add_special_tokens([AddedToken(text, normalized=False) for text in named if text not in marked])


def _extra_tokens(names: Mapping[str, Any]) -> list[str]:
    extra: Any = names.get("additional_special_tokens") or names.get("extra_special_tokens") or []
    entries: list[Any] = [*(cast("dict[str, Any]", extra).values() if isinstance(extra, dict) else extra)]
    return [text for entry in entries if (text := _content(entry))]


def _content(entry: Any) -> str | None:
    """A special token is written as its text, or as {"content": its text, ...}."""
    text = cast("dict[str, Any]", entry).get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else the config's (of several, that named "default"), else chat_template.json."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template") or _optional_json(folder / "chat_template.json").get(
        "chat_template"
    )
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in cast("list[dict[str, str]]", template)}
        return named.get("default")
    return template


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
