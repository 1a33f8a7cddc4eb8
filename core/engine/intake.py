"""Prompts into requests: everything about a request that can be wrong is found here, before the engine sees it.

Runs in the caller's process or in the server's; knows no model, only what `EngineInfo` says of it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from core.engine.engine import EngineInfo
from core.engine.request import Request
from core.errors import RequestError, RequestTooLong
from core.sampling_params import SamplingParams
from core.text.chat import missing_chat_template
from core.text.tokenizer import Tokenizer

Messages = Sequence[dict[str, Any]]


class Intake:
    """Checks and tokenizes. Thread-safe, so that a server may call it off its event loop."""

    def __init__(self, info: EngineInfo, tokenizer: Tokenizer | None) -> None:
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
    ) -> Request:
        """A request for a text or for token ids. Raises RequestError naming the parameter at fault."""
        if isinstance(prompt, str):
            self._check_length(prompt)
            token_ids = self._tokenizer().encode(prompt, add_special_tokens=add_special_tokens)
        else:
            if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise RequestError(
                    f"a prompt is a text or a list of token ids, not {prompt!r:.80}", parameter="prompt"
                )
            token_ids = list(prompt)
            self._check_ids(token_ids, "prompt")
        return self._request(token_ids, params, request_id, priority, cache_salt)

    def chat_request(
        self,
        messages: Messages,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        add_generation_prompt: bool = True,
        **template_arguments: Any,
    ) -> Request:
        """A request for a conversation, rendered through the model's template."""
        chat = self._tokenizer().chat
        if chat is None:
            raise missing_chat_template()
        token_ids = chat.encode(
            messages, self._tokenizer(), add_generation_prompt=add_generation_prompt, **template_arguments
        )
        return self._request(token_ids, params, request_id, priority, cache_salt)

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
        if not isinstance(cache_salt, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RequestError(f"cache_salt must be a text, not {cache_salt!r:.80}", parameter="cache_salt")
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

    def _check_length(self, text: str) -> None:
        """Refuse a text that no tokenization could make fit, without spending seconds on it."""
        most = self.info.max_model_len * self._tokenizer().longest_token
        if len(text) > most:
            raise RequestTooLong(
                f"the prompt has {len(text):,} characters, which cannot be fewer than the {self.info.max_model_len:,} "
                "tokens that this engine accepts for prompt and answer (max_model_len)",
                parameter="prompt",
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
