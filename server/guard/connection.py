"""uvicorn's connection, and what it leaves to others: errors as our clients expect them, and an end of patience.

A request has to arrive in some time, and its answer has to be read: what is open and says nothing, or a little now
and then, would otherwise hold a connection for ever.
"""

import asyncio
import socket
import struct
import sys
from typing import Any

import h11
import msgspec
from starlette.exceptions import HTTPException
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import ErrorAnswer, describe
from server.guard.limits import header_too_long

READ_BYTES = 16 * 1024
"""Read at once. They can be thousands of chunks, and nobody else is served while they are taken apart."""

LINGER_S = 2.0
"""After a refusal, how long the client may take to notice it."""

NO_LINGER = struct.pack("ii", 1, 0)


class Connection(H11Protocol):
    """`patience` is how many seconds a request's header and body may take to arrive, both together.

    It is also how long a client may leave unread what it is sent: its connection is cut off then, and whatever is
    computed for it aborted.
    """

    def __init__(self, *given: Any, patience: float, **more: Any) -> None:
        super().__init__(*given, **more)
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.max_size = READ_BYTES
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._rest()
        self._has_read()

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._patience, self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._has_read()

    def send_400_response(self, msg: str) -> None:
        """Called while what h11 has raised is handled."""
        error = sys.exception()
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._refuse(header_too_long())
        else:
            self._refuse(HTTPException(400, "this is no valid HTTP/1.1 request"))

    def _watch(self) -> None:
        """The timer runs while the client owes a part of a request; uvicorn's own while it owes nothing."""
        state = self.conn.their_state
        owes = state is h11.SEND_BODY or (state is h11.IDLE and self.timeout_keep_alive_task is None)
        if self._refused:
            return
        if not owes or self.transport.is_closing():
            self._rest()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._patience, self._end)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut_off(self) -> None:
        """At once, with all that was not read: the system would keep it for minutes."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self.transport.abort()

    def _has_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _end(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self.transport.close()  # it never began
        else:
            self._refuse(HTTPException(408, f"the request took longer than {self._patience:g} s to arrive"))

    def _refuse(self, error: HTTPException) -> None:
        """Answer, if nothing has been answered yet, and close the connection."""
        asked = self.cycle is not None and not self.cycle.response_complete
        answered = self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE)
        if not answered:
            self._write(describe(error), dict(self.cycle.scope) if asked else None)
        if asked:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if answered or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self._linger()

    def _write(self, answer: ErrorAnswer, scope: Scope | None) -> None:
        body = msgspec.json.encode(answer.body_for(scope))
        headers = answer.headers | {"content-type": "application/json", "content-length": str(len(body))}
        response = h11.Response(
            status_code=answer.status, headers=[*headers.items(), ("connection", "close")]
        )
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _linger(self) -> None:
        """Throw away for a moment what the client still sends: closing at once would take the answer back."""
        self._refused = True
        self._rest()
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self.transport.close)
