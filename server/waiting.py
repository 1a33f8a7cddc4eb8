"""How long an answer is worth computing: until its client hangs up, or its time is up."""

import asyncio
import math
from dataclasses import dataclass
from typing import Self

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from core.errors import DeadlineExceeded, RequestError
from server.routes import Handler
from server.sse import EventStream, hanging_up

HEADER = "x-request-timeout"


@dataclass(frozen=True)
class Deadline:
    """Until when an answer is worth computing, on the event loop's clock, and what its reader gets afterwards."""

    when: float
    error: DeadlineExceeded

    @classmethod
    def of(cls, request: Request, longest: float | None) -> Self | None:
        """From now on. None: there is none. Raises RequestError when the header is no time."""
        seconds = allowed_seconds(request, longest)
        if seconds is None:
            return None
        error = DeadlineExceeded(f"the answer was not finished in {seconds:g} s")
        return cls(asyncio.get_running_loop().time() + seconds, error)


def attended(handler: Handler, longest: float | None) -> Handler:
    """The handler of a route with a body. It is cancelled when the client hangs up, or when the time is up.

    The time is `longest` seconds from the arrival of the request, or what its header x-request-timeout asks for
    if that is less. A stream that the handler returns is ended by the same.
    """

    async def attend(request: Request) -> Response:
        deadline = Deadline.of(request, longest)
        limit = asyncio.timeout_at(None if deadline is None else deadline.when)
        hung_up = asyncio.Event()

        def leave() -> None:
            hung_up.set()
            limit.reschedule(0.0)

        try:
            async with limit:
                await request.body()
                async with hanging_up(request.receive, leave):
                    response = await handler(request)
        except TimeoutError:
            if not limit.expired():
                raise
            if deadline is None or hung_up.is_set():
                raise ClientDisconnect from None
            raise deadline.error from None
        if deadline is not None and isinstance(response, EventStream):
            response.end_at(deadline.when, deadline.error)
        return response

    return attend


def allowed_seconds(request: Request, longest: float | None) -> float | None:
    """How long the answer may take. Raises RequestError when the header holds anything but one number above 0."""
    given = request.headers.getlist(HEADER)
    if not given:
        return longest
    try:
        (asked,) = map(float, given)
    except ValueError:
        asked = math.nan
    if not (math.isfinite(asked) and asked > 0):
        raise RequestError(
            f"the header {HEADER} is {', '.join(given)!r:.80}; one number of seconds above 0 is accepted",
            parameter=HEADER,
        )
    return asked if longest is None else min(asked, longest)
