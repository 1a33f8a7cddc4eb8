"""Prompts into requests: everything about a request that can be wrong is found here, before the engine sees it.

Runs in the caller's process or in the server's; knows no model, only what `EngineInfo` says of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from core.engine.engine import EngineInfo
from core.engine.pooling_checks import check_generates, check_pools, check_prompt_length, cut_length
from core.engine.request import Request
from core.errors import BadCheckpoint, RequestError, RequestTooLong
from core.pooling_params import PoolingParams
from core.sampling_params import SamplingParams
from core.text.chat import missing_chat_template
from core.text.fill import encode_fill
from core.text.tokenizer import Tokenizer

Messages = Sequence[dict[str, Any]]

CHARACTERS = 500_000
"""Of a text that may be cut off, or of which a token may stand for any number, so many are always read: a book."""


class Intake:
    """Checks and tokenizes. Thread-safe, so that a server may call it off its event loop."""

    def __init__(self, info: EngineInfo, tokenizer: Tokenizer | None) -> None:
        """Raises BadCheckpoint when the tokenizer is another model's."""
        if tokenizer is not None and tokenizer.plain_vocab_size > info.vocab_size:
            raise BadCheckpoint(
                f"the tokenizer at {info.tokenizer_path} has {tokenizer.plain_vocab_size:,} tokens and the model "
                f"{info.vocab_size:,}: it is another model's. Name the model's own (tokenizer)"
            )
        self.info = info
        self.tokenizer = tokenizer

    def default_params(self, **given: Any) -> SamplingParams:
        """Sampling parameters with the model's defaults behind what was given."""
        return SamplingParams.from_defaults(self.info.sampling_defaults, **given)

    def request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        add_special_tokens: bool = True,
        suffix: str | None = None,
    ) -> Request:
        """A request for a text or for token ids. Raises RequestError naming the parameter at fault.

        suffix  what is to follow the answer, where the model fills in the middle
        """
        check_generates(self.info)
        if isinstance(prompt, str):
            self._check_length(prompt, "prompt")
        else:
            prompt = self._given_ids(prompt)
        if suffix is not None:
            self._check_length(suffix, "suffix")
            prompt, ends = encode_fill(
                self._tokenizer(), prompt, suffix, add_special_tokens=add_special_tokens
            )
            self._check_known(prompt)
            params = self._ending_with(params, ends)
        elif isinstance(prompt, str):
            prompt = self._tokenizer().encode(prompt, add_special_tokens=add_special_tokens)
            self._check_known(prompt)
        return self._request(prompt, params, request_id, priority, cache_salt)

    def chat_request(
        self,
        messages: Messages,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        **template_arguments: Any,
    ) -> Request:
        """A request for a conversation. Further arguments are `chat_ids`'."""
        check_generates(self.info)
        token_ids = self.chat_ids(messages, **template_arguments)
        return replace(self._request(token_ids, params, request_id, priority, cache_salt), is_chat=True)

    def chat_ids(self, messages: Messages, **template_arguments: Any) -> list[int]:
        """A conversation, rendered through the model's template by `ChatTemplate.encode`, as token ids.

        Raises RequestError naming what is at fault.
        """
        chat = self._tokenizer().chat
        if chat is None:
            raise missing_chat_template()
        token_ids = chat.encode(messages, self._tokenizer(), **template_arguments)
        self._check_known(token_ids)
        return token_ids

    def pooling_request(
        self,
        prompt: str | Sequence[int],
        params: PoolingParams | None = None,
        *,
        request_id: str,
        second: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        truncate_prompt_tokens: int | None = None,
    ) -> Request:
        """A request for what a text or token ids are pooled to.

        second                  another text, which is read together with the first
        truncate_prompt_tokens  cut a longer text off; -1: at what the model takes. None: refuse it

        Raises RequestError naming the parameter at fault.
        """
        params = params or PoolingParams()
        check_pools(self.info, params)
        most = cut_length(self.info, truncate_prompt_tokens)
        begins, skip = None, 0
        if isinstance(prompt, str):
            token_ids, begins = self._read(prompt, second, most)
            skip = self._skipped(prompt, token_ids)
        elif second is None:
            token_ids = self._given_ids(prompt)[:most]
            check_prompt_length(self.info, token_ids)
        else:
            raise RequestError("two prompts that are read together must be texts", parameter="prompt")
        self._check_priority(priority)
        _check_salt(cache_salt)
        return Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            priority=priority,
            cache_salt=cache_salt,
            pooling=params,
            second=begins,
            skip=skip,
        )

    def _read(self, first: str, second: str | None, most: int | None) -> tuple[list[int], int | None]:
        """What `Tokenizer.encode_cut` makes of one text or two. Raises RequestError naming the one at fault."""
        self._check_length(first, "prompt", cut=most is not None)
        if second is not None:
            self._check_length(second, "second", cut=most is not None)
        token_ids, begins = self._tokenizer().encode_cut(first, second, most)
        self._check_known(token_ids, first, second)
        alone = token_ids
        if second is not None and len(token_ids) > self.info.max_model_len:
            alone, _ = self._tokenizer().encode_cut(first, None, None)
        check_prompt_length(self.info, alone)
        check_prompt_length(self.info, token_ids, "second")
        return token_ids, begins

    def _skipped(self, text: str, token_ids: list[int]) -> int:
        """How many leading tokens are an instruction, which is read and not pooled. Raises RequestError for all."""
        after = None if self.info.pooling is None else self.info.pooling.after
        instruction, mark, _ = text.partition(after) if after is not None else ("", "", "")
        if not mark:
            return 0
        alone = self._tokenizer().encode(instruction + mark)
        skip = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(alone, token_ids, strict=False))))
        if skip >= len(token_ids):
            raise RequestError(f"nothing follows {mark!r}, so there is nothing to embed", parameter="prompt")
        return skip

    def _ending_with(self, params: SamplingParams, ends: Sequence[int]) -> SamplingParams:
        """The same parameters for an answer that these tokens end, too."""
        if params.ignore_eos:
            return params
        more = [end for end in ends if end < self.info.vocab_size and end not in self.info.eos_token_ids]
        return params.with_(stop_token_ids=[*params.stop_token_ids, *more])

    def _given_ids(self, prompt: Any) -> list[int]:
        if not isinstance(prompt, Sequence) or isinstance(prompt, str | bytes | bytearray):
            raise RequestError(
                f"a prompt is a text or a list of token ids, not {prompt!r:.80}", parameter="prompt"
            )
        token_ids: list[int] = list(prompt)  # pyright: ignore[reportUnknownArgumentType]
        self._check_ids(token_ids, "prompt")
        return token_ids

    def _request(
        self, token_ids: list[int], params: SamplingParams, request_id: str, priority: int, cache_salt: str
    ) -> Request:
        limit = self.info.max_model_len
        if not token_ids:
            raise RequestError("the prompt is empty; at least one token is needed", parameter="prompt")
        if len(token_ids) >= limit:
            raise RequestTooLong(
                f"the prompt has {len(token_ids):,} tokens and this engine accepts {limit - 1:,}, "
                f"to leave room for one more (max_model_len is {limit:,})",
                parameter="prompt",
            )
        self._check_ids(params.stop_token_ids, "stop_token_ids")
        self._check_ids(params.logit_bias, "logit_bias")
        if params.stop and self.tokenizer is None:
            raise RequestError("stop strings need a tokenizer; use stop_token_ids instead", parameter="stop")
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else self.info.eos_token_ids)}
        if params.min_tokens > 0 and len(stops) >= self.info.vocab_size:
            raise RequestError(
                f"min_tokens is {params.min_tokens} and every token is one that stops; no token is left to choose",
                parameter="min_tokens",
            )
        self._check_priority(priority)
        _check_salt(cache_salt)
        return Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=params,
            priority=priority,
            cache_salt=cache_salt,
        )

    def _check_priority(self, priority: int) -> None:
        if isinstance(priority, bool) or not isinstance(priority, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RequestError(f"priority must be a whole number, not {priority!r}", parameter="priority")
        if priority != 0 and self.info.scheduling_policy != "priority":
            raise RequestError(
                f"priority {priority} has no effect under the scheduling policy {self.info.scheduling_policy}; leave "
                "it out, or start the engine with the policy priority",
                parameter="priority",
            )

    def _check_length(self, text: object, parameter: str, *, cut: bool = False) -> None:
        """Refuse a text that is far too long, without spending seconds on it; cut  whether what is too long is cut."""
        if not isinstance(text, str):
            raise RequestError(f"{parameter} must be a text, not {text!r:.80}", parameter=parameter)
        limit, tokenizer = self.info.max_model_len, self._tokenizer()
        most = limit * tokenizer.longest_token
        if cut or not tokenizer.loses_nothing:
            most = max(most, CHARACTERS)
        if len(text) > most:
            raise RequestTooLong(
                f"the text has {len(text):,} characters; at most {most:,} are read for the {limit:,} tokens that this "
                "engine accepts (max_model_len)",
                parameter=parameter,
            )

    def _check_known(self, token_ids: Sequence[int], first: str = "", second: str | None = None) -> None:
        """Refuse a text that spells a token which only the tokenizer has."""
        token = max(token_ids, default=0)
        if token < self.info.vocab_size:
            return
        name = self._tokenizer().id_to_token(token)
        raise RequestError(
            f"the text has {name!r}, token {token:,} of the tokenizer; the model's vocabulary ends at "
            f"{self.info.vocab_size - 1:,}",
            parameter="second"
            if name is not None and name in (second or "") and name not in first
            else "prompt",
        )

    def _check_ids(self, token_ids: Iterable[object], parameter: str) -> None:
        vocab_size = self.info.vocab_size
        for token in token_ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise RequestError(
                    f"{parameter} holds {token!r:.80}; token ids of this model are whole numbers from 0 to "
                    f"{vocab_size - 1}",
                    parameter=parameter,
                )

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(
                "this engine has no tokenizer (skip_tokenizer_init); send token ids", parameter="prompt"
            )
        return self.tokenizer


def _check_salt(cache_salt: object) -> None:
    if not isinstance(cache_salt, str):
        raise RequestError(f"cache_salt must be a text, not {cache_salt!r:.80}", parameter="cache_salt")
