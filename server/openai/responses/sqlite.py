"""Responses in an SQLite file, which outlives the server."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from core.errors import ConfigError
from server.openai.responses.store import MIB

MAX_RESPONSES = 100_000
MAX_BYTES = 4096 * MIB

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS responses (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, record BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS totals (num_responses INTEGER NOT NULL, num_bytes INTEGER NOT NULL);
INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM totals);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON responses BEGIN
    UPDATE totals SET num_responses = num_responses + 1, num_bytes = num_bytes + length(new.record);
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON responses BEGIN
    UPDATE totals SET num_responses = num_responses - 1, num_bytes = num_bytes - length(old.record);
END;
"""

T = TypeVar("T")


class SqliteStore:
    """A `Store` in a file. Threads do the work, one at a time; when there is no room, the oldest responses go.

    Raises ConfigError when the file cannot be used.
    """

    def __init__(self, path: str, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._path = Path(path).absolute()
        self._limits = (max_responses, max_bytes)
        self._lock = threading.Lock()
        try:
            self._path.touch(mode=0o600)  # nobody else's to read
            with self._opened() as database:
                database.executescript(SCHEMA)
        except (OSError, ValueError, sqlite3.Error) as error:
            raise ConfigError(
                f"response_store is {path!r}, which cannot be used as an SQLite file: {error}",
                setting="response_store",
            ) from None

    async def put(self, response_id: str, record: bytes) -> None:
        def put(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM responses WHERE id = ?", (response_id,))
            database.execute("INSERT INTO responses (id, record) VALUES (?, ?)", (response_id, record))
            full = "SELECT num_responses > ? OR num_bytes > ? FROM totals"
            while database.execute(full, self._limits).fetchone()[0]:
                database.execute("DELETE FROM responses WHERE number = (SELECT min(number) FROM responses)")

        await self._run(put)

    async def get(self, response_id: str) -> bytes | None:
        query = "SELECT record FROM responses WHERE id = ?"
        row = await self._run(lambda database: database.execute(query, (response_id,)).fetchone())
        return None if row is None else row[0]

    async def delete(self, response_id: str) -> bool:
        query = "DELETE FROM responses WHERE id = ?"
        return await self._run(lambda database: database.execute(query, (response_id,)).rowcount > 0)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def locked() -> T:
            with self._lock, self._opened() as database:
                return work(database)

        return await asyncio.to_thread(locked)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction, which is undone when it raises."""
        with closing(sqlite3.connect(self._path)) as database, database:
            yield database
