"""Where responses are kept, by their ids, as bytes."""

from collections import OrderedDict
from typing import Protocol

MIB = 2**20

MAX_RESPONSES = 10_000
MAX_BYTES = 256 * MIB


class Store(Protocol):
    """Bounded. Methods are for the event loop and never block it."""

    async def put(self, response_id: str, record: bytes) -> None:
        """Keep this under the id, instead of what was there."""
        ...

    async def get(self, response_id: str) -> bytes | None: ...

    async def delete(self, response_id: str) -> bool:
        """Whether there was one."""
        ...


class MemoryStore:
    """Forgets everything when the server ends, and what was longest unused when there is no room."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, bytes] = OrderedDict()
        self._num_bytes = 0

    async def put(self, response_id: str, record: bytes) -> None:
        await self.delete(response_id)
        self._records[response_id] = record
        self._num_bytes += len(record)
        while len(self._records) > self._max_responses or self._num_bytes > self._max_bytes:
            _, oldest = self._records.popitem(last=False)
            self._num_bytes -= len(oldest)

    async def get(self, response_id: str) -> bytes | None:
        if response_id in self._records:
            self._records.move_to_end(response_id)
        return self._records.get(response_id)

    async def delete(self, response_id: str) -> bool:
        record = self._records.pop(response_id, None)
        self._num_bytes -= len(record or b"")
        return record is not None
