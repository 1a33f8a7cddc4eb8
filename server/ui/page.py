"""GET /: the web page. Its files know nothing of the server but the HTTP API, which they call as any client does.

Each file is a route of its own, so there is no path to traverse. The page loads without a key and then asks for
one; what it shows is asked for with that key.
"""

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from server.routes import Access, Routes
from server.state import State

STATIC = Path(__file__).parent / "static"
INDEX = "index.html"

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = (
    "default-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "object-src 'none'",
    "require-trusted-types-for 'script'",  # a browser that knows this refuses innerHTML, whoever calls it
    "trusted-types 'none'",
)

HEADERS = {
    "cache-control": "no-cache",  # kept, and asked about each time: an update never mixes old files with new ones
    "content-security-policy": "; ".join(POLICY),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def page_routes(state: State) -> Routes:
    """The page and its files; none when the page is off."""
    routes = Routes()
    if state.settings.ui:
        for file in sorted(STATIC.iterdir()):
            _serve(routes, "/" if file.name == INDEX else f"/ui/{file.name}", file)
    return routes


def _serve(routes: Routes, path: str, file: Path) -> None:
    content = file.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | {"etag": tag}

    @routes.get(path, access=Access.OPEN)
    async def static_file(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        known = request.headers.get("if-none-match", "")
        if tag in known or known.strip() == "*":
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=MEDIA_TYPES[file.suffix])
