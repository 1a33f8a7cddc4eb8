"""Deltas into outputs: text, log-probabilities and stop strings, per request.

The engine knows tokens only; here they become what the caller asked for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

from core.contracts.runner import TokenLogprobs
from core.contracts.telemetry import Observer
from core.engine.engine import SequenceDelta
from core.engine.request import Request
from core.outputs import CompletionOutput, Logprob, PositionLogprobs, RequestOutput, RequestTimes
from core.text.detokenizer import Detokenizer, StopChecker
from core.text.tokenizer import Tokenizer


@dataclass(slots=True)
class _Answer:
    output: CompletionOutput
    detokenizer: Detokenizer | None
    stops: StopChecker
    grown_at: float | None = None


@dataclass(slots=True)
class _Delivery:
    request: Request
    output: RequestOutput
    answers: list[_Answer]


class Delivery:
    """The outputs of every request that is under way. One owner calls it."""

    def __init__(self, tokenizer: Tokenizer | None, observer: Observer | None = None) -> None:
        self._tokenizer = tokenizer
        self._observer = observer or Observer()
        self._deliveries: dict[str, _Delivery] = {}

    def register(self, request: Request, prompt: str | None = None) -> RequestOutput:
        """Expect deltas for a request; `prompt` is its text, if it came as text."""
        params = request.params
        answers: list[_Answer] = []
        for index in range(params.n):
            detokenizer = None
            if self._tokenizer is not None and params.detokenize and request.pooling is None:
                detokenizer = Detokenizer(
                    self._tokenizer,
                    skip_special_tokens=params.skip_special_tokens,
                    prompt_ids=request.prompt_token_ids,
                )
            output = CompletionOutput(index)
            if params.logprobs is not None:
                output.logprobs, output.cumulative_logprob = [], 0.0
            answers.append(
                _Answer(output, detokenizer, StopChecker(params.stop, params.include_stop_str_in_output))
            )
        output = RequestOutput(
            request_id=request.request_id,
            prompt=prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=[answer.output for answer in answers],
            prompt_logprobs=None if params.prompt_logprobs is None else [None],
            times=RequestTimes(request.arrived_at),
        )
        self._deliveries[request.request_id] = _Delivery(request, output, answers)
        return output

    def forget(self, request_id: str) -> None:
        """Expect nothing more for this request; answers that have not ended are marked "abort"."""
        delivery = self._deliveries.pop(request_id, None)
        if delivery is None:
            return
        for answer in delivery.answers:
            if answer.output.finish_reason is None:
                answer.output.finish_reason = "abort"
        self._observer.ended(delivery.request, delivery.output)

    def fail(self, error: str) -> list[str]:
        """End every request under way with this error; returns their ids."""
        request_ids = list(self._deliveries)
        for request_id in request_ids:
            count = self._deliveries[request_id].request.params.n
            self.apply(
                SequenceDelta(request_id=request_id, index=index, finish_reason="error", error=error)
                for index in range(count)
            )
        return request_ids

    def apply(self, deltas: Iterable[SequenceDelta]) -> tuple[list[RequestOutput], list[tuple[str, int]]]:
        """Take deltas in. Returns the outputs they changed, and the (request id, index) of answers that ended
        at a stop string, which the engine does not know of and must be told to stop.
        """
        changed: dict[str, RequestOutput] = {}
        stopped: list[tuple[str, int]] = []
        for delta in deltas:
            delivery = self._deliveries.get(delta.request_id)
            if delivery is None:
                continue
            if self._apply(delivery, delta):
                stopped.append((delta.request_id, delta.index))
            changed[delta.request_id] = delivery.output
            if all(answer.output.finish_reason for answer in delivery.answers):
                delivery.output.finished = True
                self.forget(delta.request_id)
        return list(changed.values()), stopped

    def _apply(self, delivery: _Delivery, delta: SequenceDelta) -> bool:
        """Take one delta in; True when it completed a stop string."""
        answer, result = delivery.answers[delta.index], delivery.output
        output = answer.output
        if output.finish_reason is not None:
            return False
        if delta.index == 0:
            result.num_cached_tokens = delta.num_cached_tokens
        if delta.error is not None:
            result.error = delta.error
        if delta.prompt_logprobs and delta.index == 0 and result.prompt_logprobs is not None:
            result.prompt_logprobs += [self._named(position) for position in delta.prompt_logprobs]
        output.token_ids += delta.token_ids
        self._add_logprobs(output, delta.logprobs)
        self._note_times(answer, delivery, delta)
        hit = self._add_text(answer, delivery.request, delta)
        if hit is not None:
            output.finish_reason, output.stop_reason = "stop", hit
            return delta.finish_reason is None
        output.finish_reason, output.stop_reason = delta.finish_reason, delta.stop_token
        result.pooled = delta.pooled
        return False

    def _note_times(self, answer: _Answer, delivery: _Delivery, delta: SequenceDelta) -> None:
        result, times = delivery.output, delivery.output.times
        assert times is not None
        if times.admitted is None:
            times.admitted = delta.admitted_at
        if not delta.token_ids and delta.pooled is None:
            return
        now, before = monotonic(), answer.grown_at
        answer.grown_at = times.last_token = now
        if times.first_token is None:
            times.first_token = now
            self._observer.began(delivery.request, result)
        self._observer.grew(result, len(delta.token_ids), None if before is None else now - before)

    def _add_text(self, answer: _Answer, request: Request, delta: SequenceDelta) -> str | None:
        """Append the text of new tokens; returns the stop string they completed, if any."""
        if answer.detokenizer is None:
            return None
        params, token_ids = request.params, delta.token_ids
        if delta.finish_reason == "stop" and not params.include_stop_str_in_output:
            token_ids = token_ids[:-1]
        text = answer.detokenizer.push(token_ids)
        if delta.finish_reason is not None:
            text += answer.detokenizer.flush()
        if len(answer.output.token_ids) < params.min_tokens:
            answer.output.text += text
            return None
        emit, hit = answer.stops.push(text)
        answer.output.text += emit
        if hit is None and delta.finish_reason is not None:
            answer.output.text += answer.stops.flush()
        return hit

    def _add_logprobs(self, output: CompletionOutput, positions: Sequence[TokenLogprobs]) -> None:
        if output.logprobs is None or output.cumulative_logprob is None:
            return
        for position in positions:
            output.logprobs.append(self._named(position))
            output.cumulative_logprob += position.logprobs[0]

    def _named(self, position: TokenLogprobs) -> PositionLogprobs:
        named: PositionLogprobs = {}
        for token, logprob, rank in zip(position.token_ids, position.logprobs, position.ranks, strict=True):
            text = None if self._tokenizer is None else self._tokenizer.token_text(token)
            named.setdefault(token, Logprob(logprob, rank, text))
        return named
