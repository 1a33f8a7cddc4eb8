"""What answers look like, for the description of the API and for tests; answering builds plain dictionaries.

A field that is not in every answer has a default here, which no answer holds: it is left out.
"""

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """JSON with exactly these fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Error(Answer):
    """What went wrong. `param` names the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(Answer):
    """Every answer that is not 2xx, and the last event of a stream that fails."""

    error: Error


class OpenAPIDocument(Answer):
    """This description."""

    openapi: str
    info: dict[str, str]
    tags: list[dict[str, str]]
    paths: dict[str, dict[str, object]]
    components: dict[str, dict[str, object]]
