"""The engine in the caller's process: requests go in, steps are driven until their outputs are complete."""

from collections.abc import Generator, Sequence

from core.engine.delivery import Delivery
from core.engine.engine import Engine
from core.engine.request import Request
from core.errors import EngineDead
from core.outputs import RequestOutput
from core.text.tokenizer import Tokenizer

Texted = tuple[Request, str | None]
"""A request, and its text if it came as text."""


class InlineEngine:
    """One engine and what it has delivered so far. Not thread-safe: one owner calls it."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None) -> None:
        self.engine = engine
        self._delivery = Delivery(tokenizer)
        self._closed = False

    def close(self) -> None:
        """Give the device's memory back. May be called twice; nothing else may follow."""
        if not self._closed:
            self._closed = True
            self.engine.close()

    def run(self, requests: Sequence[Texted], use_tqdm: bool) -> list[RequestOutput]:
        """Compute requests to their end, with a progress bar if asked for; outputs in the order of the requests."""
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

    def stream(self, request: Request, text: str | None) -> Generator[RequestOutput, None, None]:
        """The same growing output whenever it has changed. Closing the iterator aborts the request."""
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

    def _add(self, request: Request, text: str | None) -> RequestOutput:
        self._check_open()
        self.engine.add(request)
        return self._delivery.register(request, text)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDead("this LLM was shut down; make a new one")

    def _step(self) -> list[RequestOutput]:
        self._check_open()
        try:
            deltas = self.engine.step()
        except BaseException as error:
            # What the failed step was to write is lost, and others may count on it already.
            self.engine.abort(
                self._delivery.fail(f"a step of the engine failed: {type(error).__name__}: {error}")
            )
            raise
        outputs, stops = self._delivery.apply(deltas)
        self.engine.stop(stops)
        return outputs

    def _abort(self, request_ids: Sequence[str]) -> None:
        self.engine.abort(request_ids)
        for request_id in request_ids:
            self._delivery.forget(request_id)
