"""The bodies of the routes that answer with numbers for texts, field by field."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from core.pooling_params import DIMENSIONS, PoolingParams
from core.sampling_params import Range
from server.fields import Body
from server.shapes import Prompts, Texts


class PooledBody(Body):
    """What all of these routes accept."""

    RANGES = {"truncate_prompt_tokens": Range(-1, 2**31), "dimensions": DIMENSIONS}  # noqa: RUF012

    model: str | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    truncate_prompt_tokens: int | None = None


class InputBody(PooledBody):
    """What the routes accept that read texts one by one."""

    input: Prompts


class EmbeddingBody(InputBody):
    """POST /v1/embeddings."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    normalize: bool | None = None

    def params(self) -> PoolingParams:
        """Raises RequestError naming the field at fault."""
        return PoolingParams(dimensions=self.dimensions, normalize=self.normalize)


class ClassifyBody(InputBody):
    """POST /classify."""

    use_activation: bool | None = None

    def params(self) -> PoolingParams:
        return PoolingParams(use_activation=self.use_activation)


class PoolingBody(EmbeddingBody):
    """POST /pooling: whatever the model makes of a text."""

    use_activation: bool | None = None

    def params(self) -> PoolingParams:
        """Raises RequestError naming the field at fault."""
        return PoolingParams(
            dimensions=self.dimensions, normalize=self.normalize, use_activation=self.use_activation
        )


class PairsBody(PooledBody):
    """What a score is asked with."""

    use_activation: bool | None = None

    def params(self) -> PoolingParams:
        return PoolingParams(use_activation=self.use_activation)


class ScoreBody(PairsBody):
    """POST /v1/score: a text with each of many, or each with its own."""

    text_1: Texts
    text_2: Texts


class Document(Body):
    """A text, given as an object."""

    text: str


class RerankBody(PairsBody):
    """POST /v1/rerank."""

    query: Annotated[str, Field(examples=["what floats?"])]
    documents: Annotated[
        list[
            Annotated[
                Document,
                BeforeValidator(
                    lambda given: {"text": given} if isinstance(given, str) else given,
                    json_schema_input_type=str | Document,
                ),
            ]
        ],
        Field(min_length=1, examples=[["a ship", "a stone"]]),
    ]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True
