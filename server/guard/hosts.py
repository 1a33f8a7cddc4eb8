"""Names that this server answers to.

A web page can give its own name the address of this machine (DNS rebinding), and its browser then lets it read
what we answer. What it cannot do is send another Host than its own.
"""

import ipaddress
import re

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import describe
from server.settings import ServerSettings

ANY = "*"
LOCAL = ("localhost", "127.0.0.1", "[::1]")

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{0,5})?", re.IGNORECASE)


def accepted_hosts(settings: ServerSettings) -> frozenset[str]:
    """The names that were set; else this machine's, where only this machine can connect; else any."""
    if settings.allowed_hosts:
        return frozenset(name.lower() for name in settings.allowed_hosts)
    return frozenset({*LOCAL, _spelled(settings.host)}) if is_local(settings.host) else frozenset({ANY})


def is_local(host: str) -> bool:
    """Whether this machine alone can connect to the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _spelled(host: str) -> str:
    """An address as a Host header has it."""
    return f"[{host.lower()}]" if ":" in host else host.lower()


class AllowHosts:
    """Answers 421 to other names, whatever the port, and 400 to a Host that is none.

    names  "*.example.com" is every name below it; "*" is every name, or none
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names
        self._ends = tuple(known[1:] for known in names if known.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await describe(refusal).response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> HTTPException | None:
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if not given and ANY in self._names:
            return None  # HTTP/1.0
        host = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if host is None:
            return HTTPException(400, "send one header Host with a name, or an address, and a port")
        name = host[1].lower().rstrip(".")
        if ANY in self._names or name in self._names or name.endswith(self._ends):
            return None
        return HTTPException(
            421, f"this server does not answer to the name {name[:100]!r}; see --allowed-hosts"
        )
