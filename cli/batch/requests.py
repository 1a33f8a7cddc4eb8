"""The lines of a batch's input: {"custom_id": …, "method": "POST", "url": "/v1/completions", "body": {…}}.

A line that cannot be told from others by its custom_id could never be answered, so such a file is refused. What
else may be wrong with a line is its own affair, and answered there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from cli.failures import CommandError, file_errors

URLS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
)
SHOWN = 10  # faults of a file that are listed


class _Line(msgspec.Struct):
    """Of the body it is only checked that it is JSON."""

    custom_id: str
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One line. `refusal` says why it cannot be asked; then url and body mean nothing."""

    custom_id: str
    url: str
    body: bytes
    refusal: str | None


def custom_ids(path: Path) -> set[str]:
    """The names of all lines. Raises CommandError with the numbers of lines that have none of their own."""
    seen: dict[str, int] = {}
    faults = [fault for number, line in _lines(path) if (fault := _fault(number, line, seen))]
    if faults:
        more = "" if len(faults) <= SHOWN else f"\n  and {len(faults) - SHOWN} more lines"
        listed = "\n".join(f"  {fault}" for fault in islice(faults, SHOWN))
        raise CommandError(f"{path} cannot be run as a batch:\n{listed}{more}")
    if not seen:
        raise CommandError(f"{path} holds no requests")
    return set(seen)


def batch_requests(path: Path) -> Iterator[BatchRequest]:
    """The lines of a file that `custom_ids` has found in order."""
    for _, line in _lines(path):
        found = msgspec.json.decode(line, type=_Line)
        yield BatchRequest(found.custom_id, str(found.url), bytes(found.body), _refusal(found))


def _fault(number: int, line: bytes, seen: dict[str, int]) -> str | None:
    try:
        line.decode()  # what is skipped is not looked at
        name = msgspec.json.decode(line, type=_Line).custom_id
    except msgspec.ValidationError as error:
        return f"line {number}: {error}"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"line {number}: this is no JSON: {error}"
    if not name:
        return f"line {number}: custom_id is empty"
    first = seen.setdefault(name, number)
    return None if first == number else f"line {number}: custom_id {name!r:.80} is that of line {first}"


def _refusal(line: _Line) -> str | None:
    if line.method != "POST":
        return f"method is {line.method!r:.80}; POST is accepted"
    if line.url not in URLS:
        return f"url is {line.url!r:.80}; accepted: {', '.join(URLS)}"
    try:
        body = msgspec.json.decode(line.body)
    except (msgspec.DecodeError, RecursionError) as error:
        return f"body cannot be read: {error}"
    if not isinstance(body, dict):
        return "body must be a JSON object"
    for name in ("stream", "background"):
        if body.get(name):
            return f"{name} is {body[name]!r:.80}; the answers of a batch are waited for and written whole"
    return None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with something in them, and their numbers."""
    with file_errors(f"read {path}"), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line
