"""What may be asked for in the query of a URL, field by field like a body."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field
from starlette.requests import Request

from core.errors import RequestError
from server.body import checked_fields
from server.fields import Body
from server.openai.responses.bodies import Includable


class Query(Body):
    """Fields as a URL spells them. `include` asks for nothing more: what there is was asked for at the beginning."""

    model_config = ConfigDict(extra="forbid", strict=False)

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {}
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ()

    include: list[Includable] = Field(default_factory=list[Includable])


class ResponseQuery(Query):
    """GET /v1/responses/{id}. The events of a response are not kept."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {"stream": ("false",), "include_obfuscation": ("false",)}


class ItemsQuery(Query):
    """GET /v1/responses/{id}/input_items."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None

    def page(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The part of a list that is asked for. Raises RequestError when `after` is no item of it."""
        listed = list(items if self.order == "asc" else reversed(items))
        if self.after is not None:
            ids = [item["id"] for item in listed]
            if self.after not in ids:
                raise RequestError(
                    f"after is {self.after!r:.80}, which is none of the items", parameter="after"
                )
            listed = listed[ids.index(self.after) + 1 :]
        page = listed[: self.limit]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(listed) > len(page),
        }


Q = TypeVar("Q", bound=Query)


def read_query(request: Request, kind: type[Q]) -> Q:
    """The query as a `kind`. A list is written as name=a&name=b, or with name[]. Raises RequestError."""
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        plain = name.removesuffix("[]")
        if plain == "include":
            given.setdefault(plain, []).append(value)
        else:
            given[plain] = value
    return checked_fields(kind, given)
