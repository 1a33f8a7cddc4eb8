"""How long an answer is worth computing: until its client hangs up, or its time is up."""

import asyncio
import math

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from core.errors import DeadlineExceeded, RequestError
from server.routes import Handler
from server.sse import EventStream, hanging_up

HEADER = "x-request-timeout"


def attended(handler: Handler, longest: float | None) -> Handler:
    """The handler of a route with a body. It is cancelled when the client hangs up, or when the time is up.

    The time is `longest` seconds from the arrival of the request, or what its header x-request-timeout asks for
    if that is less. A stream that the handler returns is ended by the same.
    """

    async def attend(request: Request) -> Response:
        seconds = allowed_seconds(request, longest)
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        too_late = DeadlineExceeded(f"the answer was not finished in {seconds or 0:g} s")
        limit = asyncio.timeout_at(end)
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
            raise ClientDisconnect if hung_up.is_set() else too_late from None
        if end is not None and isinstance(response, EventStream):
            response.end_at(end, too_late)
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
