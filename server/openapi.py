"""GET /openapi.json: this server's routes as they declare themselves, in OpenAPI 3.1.

What a field accepts is said where it is declared (`fields`, `shapes`, the bodies), what a route answers in the
`answers` beside it. The web page is not part of the API.
"""

import asyncio
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from core import __version__
from server.answers import ErrorObject, OpenAPIDocument
from server.anthropic.answers import AnthropicErrorObject
from server.errors import JSON, is_anthropic
from server.fields import Body
from server.routes import Access, Route, Routes
from server.state import State

SCHEMAS = "#/components/schemas/"

ERRORS = {
    400: "The request is wrong; `param` names the field at fault.",
    401: "A key is asked for, and none of this server's was sent.",
    403: "Web pages of this origin may not call this server.",
    404: "There is no such model, or nothing of this id.",
    408: "The request took too long to arrive.",
    413: "The body is longer than this server reads.",
    421: "This server does not go by the name in the Host header.",
    429: "As much waits as may; `retry-after` says when to try again.",
    431: "The headers are longer than this server reads.",
    500: "This request could not be computed; others are not affected.",
    503: "The server cannot answer now, or not any more.",
    504: "The answer took longer than an answer may.",
}

KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def openapi_routes(state: State, others: Sequence[Route]) -> Routes:
    """The route that describes the others and itself."""
    routes = Routes()

    @cache
    def document() -> dict[str, Any]:
        return openapi([*others, *routes], list(state.models), has_keys=bool(state.settings.api_key))

    @routes.get("/openapi.json", answer=OpenAPIDocument)
    async def describe_api(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """This description."""
        return JSON(await asyncio.to_thread(document))

    return routes


def openapi(routes: Sequence[Route], models: Sequence[str], *, has_keys: bool) -> dict[str, Any]:
    """The document. `models` are the names that a body's `model` can have."""
    described = [route for route in routes if is_api(route)]
    paths: dict[str, dict[str, Any]] = {}
    for i, route in enumerate(described):
        same = [other.handler for other in described[:i]].count(route.handler)
        operation = _operation(route, f"_{same + 1}" if same else "", has_keys=has_keys)
        paths.setdefault(_plain(route.path), {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "core", "version": __version__, "description": "Inference of language models."},
        "tags": [{"name": tag} for tag in dict.fromkeys(map(_tag, described))],
        "paths": paths,
        "components": {
            "schemas": _schemas(described, models),
            "responses": _error_responses(),
            "securitySchemes": KEYS,
        },
    }


def is_api(route: Route) -> bool:
    """Whether programs call the route. The page and its files are for browsers."""
    return route.path != "/" and not route.path.startswith("/ui/")


def _operation(route: Route, suffix: str, *, has_keys: bool) -> dict[str, Any]:
    name = route.handler.__name__
    operation: dict[str, Any] = {
        "operationId": name + suffix,
        "summary": (route.handler.__doc__ or name.replace("_", " ").capitalize()).strip().partition("\n")[0],
        "tags": [_tag(route)],
        "security": [{key: []} for key in KEYS] if has_keys and route.access is Access.KEY else [],
        "responses": {"200": _success(route)} | _errors(route),
    }
    if parameters := [*_path_parameters(route), *_query_parameters(route)]:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(route.body)}
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)", route.path)
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    fields: dict[str, Any] = route.query.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]


def _success(route: Route) -> dict[str, Any]:
    content: dict[str, Any] = {} if route.answer is None else _json(route.answer)
    if route.events:
        content["text/event-stream"] = {"schema": _event(route)}
    return {"description": "The answer."} | ({"content": content} if content else {})


def _event(route: Route) -> dict[str, Any]:
    """One event of a stream. The last one is [DONE], or an error, where the events are all of one kind."""
    data: dict[str, Any] = {"type": "string"}
    if route.event is not None:
        shapes = [{"$ref": SCHEMAS + kind.__name__} for kind in (route.event, ErrorObject)]
        chunk = {"contentMediaType": "application/json", "contentSchema": {"anyOf": shapes}}
        data |= {"anyOf": [{"const": "[DONE]"}, chunk]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _errors(route: Route) -> dict[str, Any]:
    statuses = {400, 421, 431, 500, 503}
    statuses |= {401, 403} if route.access is Access.KEY else {403}
    if route.body is not None:
        statuses |= {404, 408, 413, 429, 504}
    if "{" in route.path:
        statuses.add(404)
    kind = "Anthropic" if is_anthropic(route.path) else ""
    return {
        str(status): {"$ref": f"#/components/responses/{kind}Error{status}"} for status in sorted(statuses)
    }


def _error_responses() -> dict[str, Any]:
    return {
        f"{kind}Error{status}": {"description": text, "content": _json(shape)}
        for kind, shape in (("", ErrorObject), ("Anthropic", AnthropicErrorObject))
        for status, text in ERRORS.items()
    }


def _schemas(routes: Sequence[Route], models: Sequence[str]) -> dict[str, Any]:
    """Every model's JSON schema by its name."""
    bodies = dict.fromkeys(route.body for route in routes if route.body is not None)
    said = [kind for route in routes for kind in (route.answer, route.event) if kind is not None]
    kinds = dict.fromkeys([*bodies, *said, ErrorObject, AnthropicErrorObject])
    _, found = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template=f"{SCHEMAS}{{model}}"
    )
    schemas: dict[str, Any] = found["$defs"]
    for body in bodies:
        if issubclass(body, Body):
            _complete(schemas[body.__name__]["properties"], body, models)
    return schemas


def _complete(fields: dict[str, Any], body: type[Body], models: Sequence[str]) -> None:
    """Add what is accepted besides the fields that a body has: see `fields.known_fields`."""
    for name in body.WITHOUT_EFFECT:
        fields.setdefault(name, {"description": "Accepted, and has no effect."})
    for name, values in body.NEUTRAL.items():
        text = "Not supported: only what asks for nothing is accepted."
        fields.setdefault(name, {"description": text, "enum": [*values, None]})
    if "model" in fields:
        fields["model"]["examples"] = list(models)


def _json(kind: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": SCHEMAS + kind.__name__}}}


def _plain(path: str) -> str:
    """A path without the converters of its parameters."""
    return re.sub(r":\w+}", "}", path)


def _tag(route: Route) -> str:
    """The part of the API that a route belongs to: the folder of its handler."""
    parts = route.handler.__module__.split(".")
    return parts[1]
