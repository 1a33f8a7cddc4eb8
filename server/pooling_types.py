"""The bodies of the routes that answer with numbers for texts, field by field."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from core.pooling_params import PoolingParams
from server.openai_types import Body

Texts = Annotated[
    list[str],
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    Field(min_length=1),
]


class PooledBody(Body):
    """What all of these routes accept."""

    model: str | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    truncate_prompt_tokens: int | None = None


class InputBody(PooledBody):
    """`input` is checked by `listed_prompts`, with one message for all its shapes."""

    input: Any


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

    query: str
    documents: Annotated[
        list[
            Annotated[
                Document, BeforeValidator(lambda given: {"text": given} if isinstance(given, str) else given)
            ]
        ],
        Field(min_length=1),
    ]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True
