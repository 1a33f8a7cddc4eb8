"""Finished answers of submitted requests, for whoever does not stream them."""

import logging

from core.engine.answers import Answers
from core.outputs import RequestOutput
from server.errors import RequestFailed

log = logging.getLogger("server")


async def collected(answers: Answers) -> list[RequestOutput]:
    """The finished outputs in the order of their requests. Being cancelled aborts what is unfinished.

    Raises RequestFailed, EngineDead, ServerStopping.
    """
    with answers:
        finished = [output async for output in answers if checked(output).finished]
    place = {request_id: i for i, request_id in enumerate(answers.request_ids)}
    return sorted(finished, key=lambda output: place[output.request_id])


def checked(output: RequestOutput) -> RequestOutput:
    """The output itself. Raises RequestFailed when it could not be computed."""
    if output.error is not None:
        log.error("request %s failed: %s", output.request_id, output.error)
        raise RequestFailed("this request could not be computed; other requests are not affected")
    return output
