"""Bytes of a request into a checked model, off the event loop when there are many."""

import asyncio
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError
from starlette.requests import Request

from core.errors import RequestError
from server.openai_types import Body, known_fields

ON_LOOP_BYTES = 32 * 1024
MAX_DEPTH = 64

B = TypeVar("B", bound=Body)


async def read_body(request: Request, kind: type[B]) -> B:
    """The request's body as a `kind`. Raises RequestError naming the field at fault."""
    raw = await request.body()
    if len(raw) <= ON_LOOP_BYTES:
        return parse_body(raw, kind)
    return await asyncio.to_thread(parse_body, raw, kind)


def parse_body(raw: bytes, kind: type[B]) -> B:
    """Raises RequestError when the bytes are no JSON object, or not one of this kind."""
    try:
        given = msgspec.json.decode(raw)
    except RecursionError:
        raise RequestError(f"the body nests deeper than {MAX_DEPTH} levels") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise RequestError("the body must be a JSON object")
    if _deeper_than(given, MAX_DEPTH):
        raise RequestError(f"the body nests deeper than {MAX_DEPTH} levels")
    try:
        return kind.model_validate(known_fields(kind, given))
    except ValidationError as error:
        raise _named(error) from None


def _named(error: ValidationError) -> RequestError:
    """The first thing that is wrong, with the name of its field: messages[0].content."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return cause
    parameter = ""
    for part in first["loc"]:
        parameter += f"[{part}]" if isinstance(part, int) else f".{part}" if parameter else part
    shown = (
        ""
        if first["type"] == "missing" or isinstance(first["input"], dict)
        else f", not {first['input']!r:.80}"
    )
    return RequestError(f"{parameter}: {first['msg']}{shown}", parameter=parameter)


def _deeper_than(value: Any, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
