"""Conversations through a model's chat template.

The template comes with the model and runs in Jinja's immutable sandbox. What users write is never markup:
text that spells a special token stays text, so nobody can end a turn or speak as the system by typing it.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn, cast

from jinja2 import TemplateError

from core.errors import ModelError, RequestError
from core.text.sandbox import MAX_CHARACTERS, Sandbox
from core.text.tokenizer import Tokenizer, check_text

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_RESERVED = frozenset({"messages", "add_generation_prompt", "raise_exception", "strftime_now"})


class ChatTemplate:
    """One model's template. Thread-safe.

    source          Jinja, as in tokenizer_config.json
    special_tokens  name -> text, for templates that write {{ bos_token }}

    Raises ModelError when the source is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._sandbox = Sandbox({"tojson": _to_json}, {"raise_exception": _raise, "strftime_now": _now})
        try:
            self._template = self._sandbox.template(source)
        except TemplateError as error:
            raise ModelError(f"the model's chat template is not valid Jinja: {error}") from error
        self._source = source
        self._special_tokens = dict(special_tokens)

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template reads and that are not set here: those which can be chosen for it."""
        return self._sandbox.names(self._source) - _RESERVED - self._special_tokens.keys()

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **arguments: Any
    ) -> str:
        """The conversation as the model was trained to see it.

        messages   each has a role, and as content a text, a list of {"type": "text", "text": ...}, or None
                   beside other keys
        arguments  further variables of the template: tools, documents, enable_thinking, ...

        Raises RequestError naming `messages` or the argument at fault.
        """
        return self._render(check_messages(messages), add_generation_prompt, arguments)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> list[int]:
        """The conversation as token ids. Special tokens are only those that the template itself writes.

        continue_final_message  the last message stays open, so that an answer continues it; it must be an
                                assistant's, and add_generation_prompt False
        chat_template_kwargs    more arguments, by names that somebody else has chosen: only `variables` are taken

        Equal to encoding `render` when no message spells a special token. Raises RequestError as `render`.
        """
        more = dict(chat_template_kwargs or {})
        self._check_known(more)
        swap = _Swap(tokenizer.special_texts)
        swapped = [swap.message(message) for message in check_messages(messages)]
        if continue_final_message:
            check_continued(swapped[-1], add_generation_prompt)
            swapped[-1]["content"] += swap.end
        rendered = self._render(swapped, add_generation_prompt, swap.value({**arguments, **more}))
        text, ranges = swap.restore(_before(swap.end, rendered) if continue_final_message else rendered)
        check_text(text, "messages")
        return tokenizer.encode_guarded(text, ranges)

    def _check_known(self, names: Iterable[str]) -> None:
        """Raises RequestError for one that would have no effect, or is ours."""
        for name in names:
            if name not in self.variables:
                raise RequestError(
                    f"the model's chat template reads no {name!r:.80} from a request; "
                    f"{', '.join(sorted(self.variables)) or 'nothing'} is what it reads",
                    parameter="chat_template_kwargs",
                )

    def _render(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool, arguments: Mapping[str, Any]
    ) -> str:
        for name in arguments:
            if name in _RESERVED or name in self._special_tokens:
                raise RequestError(
                    f"{name} cannot be given to the chat template; it is set here", parameter=name
                )
        variables = {"tools": None, "documents": None, **self._special_tokens, **arguments}
        variables |= self._sandbox.budget()
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(
                messages=messages, add_generation_prompt=add_generation_prompt, **variables
            ):
                parts.append(part)
                size += len(part)
                if size > MAX_CHARACTERS:
                    break
        except Exception as error:  # whatever a template's expressions can raise, about what it was given
            said = str(error).split("\n")[0] or type(error).__name__
            raise RequestError(
                f"the model's chat template refused the messages: {said:.500}", parameter="messages"
            ) from error
        if size > MAX_CHARACTERS:
            raise RequestError(
                f"the rendered conversation exceeds {MAX_CHARACTERS:,} characters; send less",
                parameter="messages",
            )
        return "".join(parts)


def missing_chat_template() -> RequestError:
    """What to say when a model has none."""
    return RequestError(
        "this model has no chat template, so it takes no messages; send a plain prompt (completions) instead",
        parameter="messages",
    )


def check_continued(message: Mapping[str, Any], add_generation_prompt: bool) -> None:
    """Raises RequestError unless this last message can be continued by an answer."""
    if add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other; send one as true",
            parameter="continue_final_message",
        )
    if message["role"] != "assistant":
        raise RequestError(
            f"the last message is the {message['role']}'s; only an assistant's can be continued",
            parameter="messages",
        )


def _before(end: str, rendered: str) -> str:
    """What was rendered up to the end of the message that stays open."""
    text, *rest = rendered.split(end)
    if len(rest) != 1:
        raise RequestError(
            "this model's chat template does not keep the text of an assistant's last message together, so it "
            "cannot be continued; end the conversation with the user's message",
            parameter="messages",
        )
    return text


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the messages, each content as one text. Raises RequestError naming the one at fault."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RequestError("messages must be a list with at least one message", parameter="messages")
    return [_check_message(index, message) for index, message in enumerate(messages)]


def _check_message(index: int, message: Any) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise RequestError(
            f"{where} must have role and content, not be {message!r:.80}", parameter="messages"
        )
    fields = cast("Mapping[str, Any]", message)
    role = fields.get("role")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise RequestError(
            f"{where}.role must be a name such as system, user or assistant, not {role!r:.80}",
            parameter="messages",
        )
    return {**fields, "content": _text_of(where, fields)}


def _text_of(where: str, fields: Mapping[str, Any]) -> str:
    content = fields.get("content")
    if isinstance(content, str):
        return content
    if content is None and fields.keys() - {"role", "content"}:
        return ""
    if not isinstance(content, list):
        raise RequestError(
            f"{where}.content must be a text or a list of parts, not {content!r:.80}", parameter="messages"
        )
    parts: list[str] = []
    for number, part in enumerate(cast("list[Any]", content)):
        given: Mapping[str, Any] = (
            cast("Mapping[str, Any]", part) if isinstance(part, Mapping) else {"type": part}
        )
        kind, text = given.get("type"), given.get("text")
        if kind != "text" or not isinstance(text, str):
            raise RequestError(
                f"{where}.content[{number}] is {kind!r:.80}; this model takes parts of type text only, "
                'as {"type": "text", "text": "..."}',
                parameter="messages",
            )
        parts.append(text)
    return "\n".join(parts)


class _Swap:
    """Takes special tokens out of what users wrote, and puts them back, as text, once the template has run.

    Each is replaced by a random word while the template runs, so that no text can pretend to be one.
    """

    def __init__(self, special_texts: frozenset[str]) -> None:
        longest_first = sorted(special_texts, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._nonce = secrets.token_hex(8)
        self.end = f"x{self._nonce}endx"
        self._taken: list[str] = []

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value if name == "role" else self.value(value) for name, value in message.items()}

    def value(self, value: Any) -> Any:
        """The same value without special tokens in any of its texts."""
        if self._special is None:
            return value
        if isinstance(value, str):
            return self._special.sub(self._take, value)
        if isinstance(value, Mapping):
            return {
                self.value(key): self.value(item) for key, item in cast("Mapping[Any, Any]", value).items()
            }
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in cast("list[Any]", value)]
        return value

    def restore(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """The rendered text with what was taken out, and the [start, end) of each."""
        parts: list[str] = []
        ranges: list[tuple[int, int]] = []
        position = done = 0
        for word in re.finditer(f"x{self._nonce}([0-9]+)x", text) if self._taken else ():
            taken = self._taken[int(word[1])]
            parts += [text[done : word.start()], taken]
            position += word.start() - done
            ranges.append((position, position + len(taken)))
            position += len(taken)
            done = word.end()
        return "".join([*parts, text[done:]]), ranges

    def _take(self, match: re.Match[str]) -> str:
        self._taken.append(match[0])
        return f"x{self._nonce}{len(self._taken) - 1}x"


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
