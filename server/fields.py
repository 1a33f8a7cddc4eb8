"""What a body may hold, field by field.

Nothing is ignored in silence: a field is honoured, or stands in ACCEPTED_WITHOUT_EFFECT, or has here the one
value that asks for nothing (`NEUTRAL`), or is refused by name. null means "not given" everywhere. A body of
another API than OpenAI's has tables of its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, ClassVar

from msgspec import json
from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from core.errors import RequestError
from core.sampling_params import Range

ACCEPTED_WITHOUT_EFFECT = (
    "user",
    "safety_identifier",
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
)
"""Labels for a provider's books, and hints at what to cache: here every prompt's beginning is. They cannot change
an answer, so clients that always send them are served.
"""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "chat_template": (),
    "continue_final_message": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields that are not supported, and the values with which they ask for nothing."""


class Body(BaseModel):
    """JSON with known fields of exactly the right types: "5" is not 5, and true is not 1.

    RANGES  of fields that are checked elsewhere, for the description of the API
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ACCEPTED_WITHOUT_EFFECT
    RANGES: ClassVar[dict[str, Range]] = {}

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, given: Any) -> Any:
        return without_nulls(given)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The model's JSON schema, in which fields have their ranges, and are null where they may be left out."""
        schema = handler.resolve_ref_schema(handler(core))
        fields: dict[str, Any] = schema.get("properties", {})
        for name in fields:
            if name in cls.RANGES:
                _limit(fields[name], cls.RANGES[name])
            if name not in schema.get("required", ()):
                fields[name] = nullable(fields[name])
        return schema


def limits(accepted: Range) -> dict[str, Any]:
    """The range as JSON Schema spells it."""
    low = "exclusiveMinimum" if accepted.open_low else "minimum"
    return {low: accepted.low, "maximum": accepted.high}


def _limit(schema: dict[str, Any], accepted: Range) -> None:
    for shape in schema.get("anyOf", [schema]):
        if shape.get("type") in ("integer", "number"):
            shape |= limits(accepted)


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema that admits null, too."""
    if {"type": "null"} in schema.get("anyOf", ()):
        return schema
    annotations = {name: schema[name] for name in ("title", "default", "description") if name in schema}
    shape = {name: value for name, value in schema.items() if name not in annotations}
    return annotations | {"anyOf": [shape, {"type": "null"}]} if shape else schema


def without_nulls(given: Any) -> Any:
    return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given


@contextmanager
def called(**names: str) -> Iterator[None]:
    """While inside, errors about parameters of ours have these names, which their fields have in the client's API."""
    try:
        yield
    except RequestError as error:
        ours = error.parameter or ""
        error.parameter = names.get(ours, error.parameter)
        if str(error).startswith(f"{ours} ") and ours in names:
            error.args = (f"{names[ours]}{str(error).removeprefix(ours)}",)
        raise


def known_fields(kind: type[Body], given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a body that `kind` knows. Raises RequestError naming one that it does not."""
    known: dict[str, Any] = {}
    for name, value in without_nulls(given).items():
        if name in kind.model_fields:
            known[name] = value
        elif name in kind.WITHOUT_EFFECT:
            continue
        elif name not in kind.NEUTRAL:
            close = get_close_matches(name, kind.model_fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else "; leave it out"
            raise RequestError(f"{name!r:.80} is not a parameter of this endpoint{hint}", parameter=name[:80])
        elif not _asks_for_nothing(value, kind.NEUTRAL[name]):
            accepted = " or ".join(json.encode(neutral).decode() for neutral in kind.NEUTRAL[name])
            hint = f"leave it out, or send {accepted}" if accepted else "leave it out"
            raise RequestError(f"{name} is not supported by this server; {hint}", parameter=name)
    return known


def _asks_for_nothing(value: Any, neutral: Sequence[Any]) -> bool:
    given = without_nulls(value)
    return any(type(given) is type(nothing) and given == nothing for nothing in neutral)
