"""Requests by route and status.

Paths are those that routes declare, with their parameters' names in braces; any other path counts as OTHER, so that
clients cannot make up new ones.
"""

import re
from collections import defaultdict
from collections.abc import Collection

from starlette.routing import compile_path
from starlette.types import Scope

from server.operations.histogram import Histogram

OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
DURATION_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class HTTPCounts:
    """How many answers there were by method, path and status, and how long they took to their last byte."""

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self.durations: defaultdict[tuple[str, str], Histogram] = defaultdict(lambda: Histogram(DURATION_S))

    def note(self, method: str, path: str, status: int, seconds: float) -> None:
        self.requests[method, path, str(status)] += 1
        self.durations[method, path].observe(seconds)


class CountRequests:
    """Notes how requests end, by the paths that are declared."""

    def __init__(self, counts: HTTPCounts, paths: Collection[str]) -> None:
        self._counts = counts
        self._plain = frozenset(path for path in paths if "{" not in path)
        self._templates = [
            (compile_path(path)[0], re.sub(r":\w+}", "}", path)) for path in sorted(set(paths) - self._plain)
        ]

    def __call__(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self._counts.note(method, self._template(scope["path"]), status, seconds)

    def _template(self, path: str) -> str:
        if path in self._plain:
            return path
        return next((template for pattern, template in self._templates if pattern.match(path)), OTHER)
