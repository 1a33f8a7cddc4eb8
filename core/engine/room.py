"""How much may wait for an engine: requests that are unfinished, and prompt tokens that nobody has begun with."""

from collections.abc import Generator
from contextlib import contextmanager

from core.engine.request import Request
from core.errors import QueueFull, RequestError

MAX_REQUESTS = 1024
MAX_TOKENS = 1_000_000


class Room:
    """Counts what is under way; refuses what exceeds it before it costs anything.

    max_requests  unfinished at once
    max_tokens    of the prompts of requests that have no token yet; one request is always taken
    """

    def __init__(self, max_requests: int = MAX_REQUESTS, max_tokens: int = MAX_TOKENS) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._waiting: dict[str, int] = {}
        self._num_tokens = 0
        self._num_requests = 0

    @property
    def num_requests(self) -> int:
        """Requests that are unfinished, those that are being tokenized among them."""
        return self._num_requests

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of requests that have no token yet."""
        return self._num_tokens

    def check(self, num_requests: int = 1, num_tokens: int = 0) -> None:
        """Raises QueueFull when so much more cannot be taken now, RequestError when never.

        num_tokens  of their prompts; before it is known, that each has one is enough to find the queue full
        """
        if num_requests > self._max_requests:
            raise RequestError(
                f"{num_requests:,} requests at once; at most {self._max_requests:,} are taken (max_queued)",
                parameter="prompt",
            )
        if self.num_requests + num_requests > self._max_requests:
            raise QueueFull(
                f"{self.num_requests:,} requests are unfinished and at most {self._max_requests:,} may be "
                "(max_queued); send this one again later"
            )
        if self._num_tokens and self._num_tokens + max(num_tokens, num_requests) > self._max_tokens:
            raise QueueFull(
                f"{self._num_tokens:,} prompt tokens wait and at most {self._max_tokens:,} may "
                "(max_queued_tokens); send this one again later"
            )

    @contextmanager
    def preparing(self) -> Generator[None]:
        """While inside, a request is made that will enter."""
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1

    def enter(self, request: Request) -> None:
        """A request is under way."""
        self._num_requests += 1
        self._waiting[request.request_id] = len(request.prompt_token_ids)
        self._num_tokens += len(request.prompt_token_ids)

    def begin(self, request_id: str) -> None:
        """It has its first token."""
        self._num_tokens -= self._waiting.pop(request_id, 0)

    def leave(self, request_id: str) -> None:
        """It is over."""
        self.begin(request_id)
        self._num_requests -= 1
