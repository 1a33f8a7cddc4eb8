"""A line for each request on standard error: when, what, how it ended, how long it took. Never what it holds."""

import sys
from datetime import UTC, datetime
from urllib.parse import quote

from starlette.types import Scope

LONGEST_PATH = 256


def log_access(scope: Scope, status: int, seconds: float) -> None:
    """Paths are written percent-encoded, so that no client can forge a line."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    path = quote(scope["path"], safe="/:@!$&'()*+,;=~")[:LONGEST_PATH]
    label = scope["state"]["request_id"]
    line = f"{now} {quote(scope['method'])} {path} {status} {seconds:.3f}s {label}"
    print(line, file=sys.stderr, flush=True)
