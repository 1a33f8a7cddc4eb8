"""What the routes answer that give numbers for texts."""

from typing import Literal

from pydantic import Field

from server.answers import Answer


class PromptUsage(Answer):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class Listed(Answer):
    """What is around the numbers."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: PromptUsage


class Embedding(Answer):
    """A vector: numbers, or base64 of float32, little-endian."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class Embeddings(Listed):
    data: list[Embedding]


class Classification(Answer):
    """The likeliest label, and a number for each."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classifications(Listed):
    data: list[Classification]


class Pooled(Answer):
    """Whatever the model makes of a text, in the same two forms as an embedding."""

    index: int
    object: Literal["pooling"]
    data: list[float] | str


class PooledTexts(Listed):
    data: list[Pooled]


class Score(Answer):
    index: int
    object: Literal["score"]
    score: float


class Scores(Listed):
    data: list[Score]


class RankedDocument(Answer):
    text: str


class Ranked(Answer):
    """A document's place in `documents`, and how well it goes with the query."""

    index: int
    relevance_score: float
    document: RankedDocument = Field(default_factory=lambda: RankedDocument(text=""))


class Ranking(Listed):
    """The best first."""

    results: list[Ranked]
