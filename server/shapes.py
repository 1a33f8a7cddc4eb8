"""Fields that may be given in several shapes: what they are read as, and what the description of the API says."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, TypeAdapter, ValidationInfo, WithJsonSchema

from core.errors import RequestError
from core.sampling_params import BIASES, MAX_LOGIT_BIAS, MAX_STOP, MAX_STOP_LENGTH, MAX_STOP_TOKENS, TOKEN_IDS
from server.fields import limits

_StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
_Texts = Annotated[list[str], Field(min_length=1)]
_Tokens = Annotated[list[int], Field(min_length=1)]
_Prompts = str | _Texts | _Tokens | Annotated[list[_Tokens], Field(min_length=1)]


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _listed_prompts(given: Any, info: ValidationInfo) -> Any:
    """One message for all shapes: pydantic's own would have one for each."""
    prompts = [given] if isinstance(given, str) or (isinstance(given, list) and _ids(given)) else given
    listed = isinstance(prompts, list) and bool(prompts)
    if listed and (all(isinstance(text, str) for text in prompts) or all(map(_ids, prompts))):
        return prompts
    raise RequestError(
        f"{info.field_name} must be a text, a list of texts, a list of token ids, or a list of such lists, and not "
        "empty",
        parameter=info.field_name,
    )


def _ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(token) is int for token in given)


Prompt = str | list[int]

Prompts = Annotated[
    list[Prompt],
    PlainValidator(_listed_prompts),
    WithJsonSchema(TypeAdapter(_Prompts).json_schema()),
    Field(examples=["Once upon a time"]),
]
"""One or more, each a text or token ids."""

Texts = Annotated[
    _Texts, BeforeValidator(_listed, json_schema_input_type=str | _Texts), Field(examples=["a ship at sea"])
]

Stops = Annotated[
    list[str],
    BeforeValidator(
        _listed,
        json_schema_input_type=_StopString | Annotated[list[_StopString], Field(max_length=MAX_STOP)],
    ),
]

TokenIds = Annotated[
    list[Annotated[int, Field(json_schema_extra=limits(TOKEN_IDS))]],
    Field(json_schema_extra={"maxItems": MAX_STOP_TOKENS}),
]

LogitBias = Annotated[
    dict[str, float],
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,11}$"},
            "additionalProperties": {"type": "number"} | limits(BIASES),
            "maxProperties": MAX_LOGIT_BIAS,
        }
    ),
]
