"""Bytes of a request into a checked model, off the event loop when there are many."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError
from starlette.requests import Request

from core.errors import RequestError
from server.fields import Body, known_fields

ON_LOOP_BYTES = 32 * 1024
MAX_DEPTH = 64

SAY_ALL = ("missing", "too_short", "too_long")
"""What pydantic finds and says with what there was."""

B = TypeVar("B", bound=Body)
P = TypeVar("P")


async def read_body(request: Request, kind: type[B]) -> B:
    """The request's body as a `kind`. Raises RequestError naming the field at fault."""
    return await _parsed(request, lambda raw: parse_body(raw, kind))


async def read_object(request: Request) -> dict[str, Any]:
    """The same of a body that may be of several kinds. Raises RequestError when it is no JSON object."""
    return await _parsed(request, parse_object)


async def _parsed(request: Request, parse: Callable[[bytes], P]) -> P:
    raw = await request.body()
    return parse(raw) if len(raw) <= ON_LOOP_BYTES else await asyncio.to_thread(parse, raw)


def parse_body(raw: bytes, kind: type[B]) -> B:
    """Raises RequestError when the bytes are no JSON object, or not one of this kind."""
    return checked_fields(kind, parse_object(raw))


def checked_fields(kind: type[B], given: dict[str, Any]) -> B:
    """Fields as a `kind`. Raises RequestError naming the one at fault."""
    try:
        return kind.model_validate(known_fields(kind, given))
    except ValidationError as error:
        raise _named(error) from None


def parse_object(raw: bytes) -> dict[str, Any]:
    """Raises RequestError when the bytes are no JSON object, or one that nests too deeply."""
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
    return given


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
        if first["type"] in SAY_ALL or isinstance(first["input"], dict)
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
