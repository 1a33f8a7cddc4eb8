"""Offline inference: the engine in the caller's process.

llm = LLM(model="smollm2-135m")
for output in llm.generate(["Hello, my name is"], SamplingParams(temperature=0.8)):
    print(output.outputs[0].text)
"""

from collections.abc import Generator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from core.config import EngineConfig
from core.engine.build import Progress, build_engine
from core.engine.delivery import Delivery
from core.engine.engine import EngineInfo
from core.engine.intake import Intake
from core.engine.request import Request
from core.errors import EngineDead, RequestError
from core.ledger import Ledger
from core.outputs import RequestOutput
from core.sampling_params import SamplingParams
from core.text.tokenizer import Tokenizer, load_tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
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
        self._engine = build_engine(self.config, progress)
        self._tokenizer: Tokenizer | None = None
        if self.info.tokenizer_path is not None:
            try:
                self._tokenizer = load_tokenizer(Path(self.info.tokenizer_path))
            except BaseException:
                self._engine.close()
                raise
        self._intake = Intake(self.info, self._tokenizer)
        self._delivery = Delivery(self._tokenizer)
        self._ids = count()
        self._closed = False

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
        listed = _listed(prompts)
        params = self._params(sampling_params, len(listed))
        if priority is not None and len(priority) != len(listed):
            raise RequestError(
                f"priority has {len(priority)} entries for {len(listed)} prompts", parameter="priority"
            )
        priorities = priority or [0] * len(listed)
        requests = [
            self._request(prompt, p, rank) for prompt, p, rank in zip(listed, params, priorities, strict=True)
        ]
        return self._run(requests, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template.

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
                ),
                None,
            )
            for conversation, p in zip(conversations, params, strict=True)
        ]
        return self._run(requests, use_tqdm)

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
        return self._stream(request, text)

    def shutdown(self) -> None:
        """Give the device's memory back. The object is of no use afterwards."""
        if not self._closed:
            self._closed = True
            self._engine.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    def _stream(self, request: Request, text: str | None) -> Generator[RequestOutput, None, None]:
        output = self._add(request, text)
        try:
            told = False  # of the end; a step that somebody else made may have brought it
            while not told:
                if output.finished or any(changed is output for changed in self._step()):
                    told = output.finished
                    yield output
        finally:
            if not output.finished:
                self._abort([request.request_id])

    def _run(self, requests: Sequence[tuple[Request, str | None]], use_tqdm: bool) -> list[RequestOutput]:
        from tqdm import tqdm

        outputs: list[RequestOutput] = []
        try:
            for request, text in requests:
                outputs.append(self._add(request, text))
            unfinished = {output.request_id for output in outputs}
            with tqdm(
                total=len(outputs), desc="Processed prompts", disable=not use_tqdm, unit="prompt"
            ) as bar:
                while unfinished:
                    finished = unfinished & {output.request_id for output in self._step() if output.finished}
                    unfinished -= finished
                    bar.update(len(finished))
        finally:
            self._abort([output.request_id for output in outputs if not output.finished])
        return outputs

    def _add(self, request: Request, text: str | None) -> RequestOutput:
        self._check_open()
        self._engine.add(request)
        return self._delivery.register(request, text)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDead("this LLM was shut down; make a new one")

    def _step(self) -> list[RequestOutput]:
        self._check_open()
        try:
            deltas = self._engine.step()
        except BaseException as error:
            # What the failed step was to write is lost, and others may count on it already.
            self._engine.abort(
                self._delivery.fail(f"a step of the engine failed: {type(error).__name__}: {error}")
            )
            raise
        outputs, stops = self._delivery.apply(deltas)
        self._engine.stop(stops)
        return outputs

    def _abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort(request_ids)
        for request_id in request_ids:
            self._delivery.forget(request_id)

    def _params(
        self, given: SamplingParams | Sequence[SamplingParams] | None, number: int
    ) -> Sequence[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            return [given] * number
        listed: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        for params in listed:
            if not isinstance(params, SamplingParams):
                raise RequestError(
                    f"sampling_params must be SamplingParams, or a list of them, not {params!r:.80}",
                    parameter="sampling_params",
                )
        if len(listed) != number:
            raise RequestError(
                f"sampling_params has {len(listed)} entries for {number} prompts", parameter="sampling_params"
            )
        return listed

    def _request(self, prompt: Prompt, params: SamplingParams, priority: int) -> tuple[Request, str | None]:
        content: Any = prompt
        text, salt = (prompt if isinstance(prompt, str) else None), ""
        if isinstance(prompt, Mapping):
            text, salt = prompt.get("prompt"), prompt.get("cache_salt", "")
            content = prompt.get("prompt_token_ids", text)
            if content is None or not prompt.keys() <= _PROMPT_KEYS:
                raise RequestError(
                    f"a prompt given as a dict has prompt or prompt_token_ids, and may have cache_salt; "
                    f"this one has {', '.join(map(str, prompt)) or 'nothing'}",
                    parameter="prompt",
                )
        request = self._intake.request(
            content, params, request_id=str(next(self._ids)), priority=priority, cache_salt=salt
        )
        return request, text


_PROMPT_KEYS = {"prompt", "prompt_token_ids", "cache_salt"}


def _listed(prompts: Any) -> list[Prompt]:
    """One prompt or many, as a list: a flat list of ids is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes | bytearray):
        raise RequestError(
            f"prompts must be a text, token ids, or a list of either, not {prompts!r:.80}", parameter="prompt"
        )
    listed: list[Any] = list(prompts)  # pyright: ignore[reportUnknownArgumentType]
    if listed and all(isinstance(item, int) for item in listed):
        return [listed]
    return listed
