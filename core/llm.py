"""Offline inference: the engine in the caller's process.

llm = LLM(model="smollm2-135m")
for output in llm.generate(["Hello, my name is"], SamplingParams(temperature=0.8)):
    print(output.outputs[0].text)
"""

from collections.abc import Generator, Mapping, Sequence
from itertools import count
from math import nan
from pathlib import Path
from typing import Any

from core.config import EngineConfig
from core.engine.build import Progress, build_engine
from core.engine.engine import EngineInfo
from core.engine.inline import InlineEngine, Texted
from core.engine.intake import Intake
from core.engine.pooling_checks import pooling_of
from core.errors import RequestError
from core.ledger import Ledger
from core.outputs import (
    ClassificationOutput,
    EmbeddingOutput,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
    floats,
    pooled_output,
)
from core.pooling_params import PoolingParams
from core.prompts import Prompt, listed_params, listed_prompts, opened_prompt
from core.sampling_params import SamplingParams
from core.scoring import cosines, paired, reads_pairs
from core.text.tokenizer import Tokenizer, load_tokenizer

Message = dict[str, Any]


def _silent(message: str) -> None:
    return


class LLM:
    """A model, ready to answer.

    Takes every keyword of `EngineConfig`: model, tokenizer, dtype, platform, max_model_len, max_num_seqs,
    max_num_batched_tokens, block_size, kv_cache_memory, enable_prefix_caching, seed and so on.
    `progress` is called with one line for each slow part of the start.

    Raises the CoreError of whatever is wrong with model, platform or settings.
    """

    def __init__(self, model: str | None = None, *, progress: Progress = _silent, **keywords: Any) -> None:
        given = keywords if model is None else {"model": model} | keywords
        self.config = EngineConfig.from_keywords(**given)
        self._tokenizer: Tokenizer | None = None
        self._engine = build_engine(self.config, progress, located=self._load_tokenizer)
        try:
            self._intake = Intake(self.info, self._tokenizer)
        except BaseException:
            self._engine.close()
            raise
        self._inline = InlineEngine(self._engine, self._tokenizer)
        self._ids = count()

    def _load_tokenizer(self, path: Path) -> None:
        self._tokenizer = load_tokenizer(path)

    @property
    def info(self) -> EngineInfo:
        """The resolved facts: platform, dtype, context length, size of the cache."""
        return self._engine.info

    @property
    def ledger(self) -> Ledger:
        """Which provider serves each kernel and contract, and why not another."""
        return self._engine.ledger

    @property
    def engine(self) -> Any:
        """The engine itself, for statistics and tests."""
        return self._engine

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises RequestError under skip_tokenizer_init."""
        if self._tokenizer is None:
            raise RequestError(
                "this engine has no tokenizer (skip_tokenizer_init)", parameter="skip_tokenizer_init"
            )
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses when it is given no parameters: the model's generation_config."""
        return self._intake.default_params()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts; the outputs are in the prompts' order.

        prompts          texts, token-id lists, or {"prompt": ...} / {"prompt_token_ids": ...}, which may have a
                         "cache_salt" too; one or many
        sampling_params  one for all, or one per prompt; None: the model's defaults
        priority         one per prompt, lower first, under scheduling_policy="priority"

        Raises RequestError before anything is computed when one of them is bad.
        """
        listed = listed_prompts(prompts)
        params = self._params(sampling_params, len(listed))
        if priority is not None and len(priority) != len(listed):
            raise RequestError(
                f"priority has {len(priority)} entries for {len(listed)} prompts", parameter="priority"
            )
        priorities = priority or [0] * len(listed)
        requests = [
            self._request(prompt, p, rank) for prompt, p, rank in zip(listed, params, priorities, strict=True)
        ]
        return self._inline.run(requests, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template.

        continue_final_message  the answer continues the last message, an assistant's; it excludes
                                add_generation_prompt
        chat_template_kwargs    what the template reads besides: {"enable_thinking": False}

        Raises RequestError when the template refuses the messages, or there is none.
        """
        if not isinstance(messages, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RequestError(
                f"messages must be a list of messages, not {messages!r:.80}", parameter="messages"
            )
        several = bool(messages) and not isinstance(messages[0], dict)
        conversations: Any = messages if several else [messages]
        params = self._params(sampling_params, len(conversations))
        requests = [
            (
                self._intake.chat_request(
                    conversation,
                    p,
                    request_id=str(next(self._ids)),
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    chat_template_kwargs=chat_template_kwargs,
                ),
                None,
            )
            for conversation, p in zip(conversations, params, strict=True)
        ]
        return self._inline.run(requests, use_tqdm)

    def stream(
        self, prompt: Prompt | Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> Generator[RequestOutput, None, None]:
        """Complete one prompt, or answer one conversation, step by step.

        Yields the same growing RequestOutput whenever it changed. Closing the iterator aborts the request.
        """
        params = self._params(sampling_params, 1)[0]
        if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], dict):
            conversation: Any = prompt
            request, text = (
                self._intake.chat_request(conversation, params, request_id=str(next(self._ids))),
                None,
            )
        else:
            plain: Any = prompt
            request, text = self._request(plain, params, 0)
        return self._inline.stream(request, text)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PoolingRequestOutput[EmbeddingOutput]]:
        """A vector for each text, in the prompts' order.

        truncate_prompt_tokens  cut longer texts off; -1: at what the model takes. None: refuse them

        Raises RequestError before anything is computed when one prompt is bad, or the model makes no embeddings.
        """
        pooled = self._pool(
            "embed", listed_prompts(prompts), pooling_params, use_tqdm, truncate_prompt_tokens
        )
        return [pooled_output(o, EmbeddingOutput([*floats(o.pooled)])) for o in pooled]

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PoolingRequestOutput[ClassificationOutput]]:
        """A number for each of the model's labels, `info.pooling.labels`, for each text. Else as `embed`."""
        listed = listed_prompts(prompts)
        pooled = self._pool("classify", listed, pooling_params, use_tqdm, truncate_prompt_tokens)
        return [pooled_output(o, ClassificationOutput([*floats(o.pooled)])) for o in pooled]

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """The numbers that the model pools each text to, whatever they are. Else as `embed`."""
        pooled = self._pool(None, listed_prompts(prompts), pooling_params, use_tqdm, truncate_prompt_tokens)
        return [pooled_output(o, PoolingOutput([*floats(o.pooled)])) for o in pooled]

    def score(
        self,
        data_1: Prompt | Sequence[Prompt],
        data_2: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PoolingRequestOutput[ScoringOutput]]:
        """How well texts go together: one with each of many, or each with its own.

        A model with one label reads both, which must be texts, and says; else it is the cosine of two embeddings.
        NaN for a pair with an `error`. Options as of `embed`.
        """
        first, second = listed_prompts(data_1), listed_prompts(data_2)
        pairs = paired(first, second, ("data_1", "data_2"))
        if reads_pairs(pooling_of(self.info)):
            firsts, seconds = [a for a, _ in pairs], [b for _, b in pairs]
            pooled = self._pool(None, firsts, pooling_params, use_tqdm, truncate_prompt_tokens, seconds)
            return [pooled_output(o, ScoringOutput(next(iter(floats(o.pooled)), nan))) for o in pooled]
        pooled = self._pool("embed", [*first, *second], pooling_params, use_tqdm, truncate_prompt_tokens)
        both = paired(pooled[: len(first)], pooled[len(first) :], ("data_1", "data_2"))
        scores = cosines([(a.pooled, b.pooled) for a, b in both])
        return [
            pooled_output(a if a.error else b, ScoringOutput(score))
            for (a, b), score in zip(both, scores, strict=True)
        ]

    def shutdown(self) -> None:
        """Give the device's memory back. The object is of no use afterwards."""
        self._inline.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    def _params(
        self, given: SamplingParams | Sequence[SamplingParams] | None, number: int
    ) -> Sequence[SamplingParams]:
        given = self.get_default_sampling_params() if given is None else given
        return listed_params(given, SamplingParams, number, "sampling_params")

    def _request(self, prompt: Prompt, params: SamplingParams, priority: int) -> Texted:
        content, text, salt = opened_prompt(prompt)
        request = self._intake.request(
            content, params, request_id=str(next(self._ids)), priority=priority, cache_salt=salt
        )
        return request, text

    def _pool(
        self,
        task: str | None,
        prompts: Sequence[Prompt],
        params: PoolingParams | Sequence[PoolingParams] | None,
        use_tqdm: bool,
        cut: int | None,
        seconds: Sequence[Any] | None = None,
    ) -> list[RequestOutput]:
        """seconds  of pairs that are read together, the second texts"""
        pooling_of(self.info, task)
        listed = listed_params(params or PoolingParams(), PoolingParams, len(prompts), "pooling_params")
        requests: list[Texted] = []
        for i, prompt in enumerate(prompts):
            content, text, salt = opened_prompt(prompt)
            request = self._intake.pooling_request(
                content,
                listed[i],
                request_id=str(next(self._ids)),
                second=None if seconds is None else seconds[i],
                cache_salt=salt,
                truncate_prompt_tokens=cut,
            )
            requests.append((request, text))
        return self._inline.run(requests, use_tqdm)
