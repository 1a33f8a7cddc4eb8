"""POST /v1/score and /v1/rerank, as vLLM, Jina and Cohere have them; also without their version."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from core.engine.pooling_checks import pooling_of
from core.outputs import RequestOutput, floats
from core.scoring import cosines, paired, reads_pairs
from server.body import read_body
from server.pooling.answers import Ranking, Scores
from server.pooling.bodies import PairsBody, RerankBody, ScoreBody
from server.pooling.embeddings import Sent, answer, pooled, taken
from server.routes import Routes
from server.state import Served, State

Named = tuple[str, str]
"""The field that a text came in, and the text."""

Written = Callable[[list[float], list[RequestOutput]], Response]
"""The answer with the score of each pair, and the outputs that they were made of."""


def scoring_routes(state: State) -> Routes:
    routes = Routes()

    @routes.post("/v1/score", "/score", body=ScoreBody, answer=Scores)
    async def score(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, ScoreBody)
        served = taken(state, body, None)
        first, second = _named("text_1", body.text_1), _named("text_2", body.text_2)

        def written(scores: list[float], outputs: list[RequestOutput]) -> Response:
            data = [{"index": i, "object": "score", "score": given} for i, given in enumerate(scores)]
            return answer(served, "score", outputs, data=data)

        return await _scored(request, served, body, first, second, ("text_1", "text_2"), written)

    @routes.post("/v1/rerank", "/v2/rerank", "/rerank", body=RerankBody, answer=Ranking)
    async def rerank(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = await read_body(request, RerankBody)
        served = taken(state, body, None)
        documents = _named("documents", [document.text for document in body.documents])
        query = [("query", body.query)]

        def written(scores: list[float], outputs: list[RequestOutput]) -> Response:
            best = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n]
            return answer(served, "rerank", outputs, results=[_result(body, i, scores[i]) for i in best])

        return await _scored(request, served, body, query, documents, ("query", "documents"), written)

    return routes


def _named(field: str, texts: Sequence[str]) -> list[Named]:
    return [(field if len(texts) == 1 else f"{field}[{i}]", text) for i, text in enumerate(texts)]


def _result(body: RerankBody, index: int, score: float) -> dict[str, Any]:
    result: dict[str, Any] = {"index": index, "relevance_score": score}
    return result | {"document": {"text": body.documents[index].text}} if body.return_documents else result


async def _scored(
    request: Request,
    served: Served,
    body: PairsBody,
    first: list[Named],
    second: list[Named],
    names: tuple[str, str],
    written: Written,
) -> Response:
    """The answer that `written` makes, off the event loop."""
    pairs = paired(first, second, names)
    together = reads_pairs(pooling_of(served.engine.info))
    prompts = [Sent(*a, *b) for a, b in pairs] if together else [Sent(*text) for text in [*first, *second]]
    outputs = await pooled(request, served, body, body.params(), prompts, names[1])

    def made() -> Response:
        vectors = [output.pooled for output in outputs]
        if together:
            return written([floats(vector)[0] for vector in vectors], outputs)
        return written(cosines(paired(vectors[: len(first)], vectors[len(first) :], names)), outputs)

    return await asyncio.to_thread(made)
