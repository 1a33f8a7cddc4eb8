"""POST /v1/responses, and what can be done with a response that is kept."""

from starlette.requests import Request
from starlette.responses import Response

from core.engine.request import Request as GenerationRequest
from core.sampling_params import SamplingParams
from server.answering import collected
from server.body import read_body
from server.errors import JSON
from server.fields import called
from server.openai.responses.answers import DeletedResponse, InputItems, ResponseObject
from server.openai.responses.bodies import ResponseBody, for_template
from server.openai.responses.events import events
from server.openai.responses.kept import Kept
from server.openai.responses.queries import ItemsQuery, ResponseQuery, read_query
from server.openai.responses.sqlite import SqliteStore
from server.openai.responses.store import MemoryStore
from server.openai.responses.writing import Writing
from server.routes import Routes
from server.sse import EventStream
from server.state import Served, State
from server.waiting import Deadline

ONE = "/v1/responses/{response_id}"


def response_routes(state: State) -> Routes:
    routes = Routes()
    path = state.settings.response_store
    kept = Kept(MemoryStore() if path is None else SqliteStore(path))

    @routes.post("/v1/responses", body=ResponseBody, answer=ResponseObject, events=True)
    async def create_response(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await _create(state, kept, request)

    @routes.get(ONE, query=ResponseQuery, answer=ResponseObject)
    async def get_response(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        read_query(request, ResponseQuery)
        return JSON((await kept.find(request.path_params["response_id"])).response)

    @routes.delete(ONE, answer=DeletedResponse)
    async def delete_response(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        response_id = request.path_params["response_id"]
        await kept.delete(response_id)
        return JSON({"id": response_id, "object": "response", "deleted": True})

    @routes.post(f"{ONE}/cancel", answer=ResponseObject)
    async def cancel_response(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSON((await kept.cancel(request.path_params["response_id"])).response)

    @routes.get(f"{ONE}/input_items", query=ItemsQuery, answer=InputItems)
    async def list_input_items(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        query = read_query(request, ItemsQuery)
        return JSON(query.page((await kept.find(request.path_params["response_id"])).items))

    return routes


async def _create(state: State, kept: Kept, request: Request) -> Response:
    body = await read_body(request, ResponseBody)
    served = state.take(body.model)
    previous = body.previous_response_id
    items = [] if previous is None else await kept.conversation(previous)
    items += [item.kept() for item in body.input]
    params = _sampling_params(served, body)
    writing = Writing(served, body, params, items)
    answers = served.submit(request, [await _generation_request(served, writing, params)])
    if body.background:
        if (deadline := Deadline.of(request, state.settings.request_timeout)) is not None:
            answers.end_at(deadline.when, deadline.error)
        state.detach(kept.write(writing, answers))
        return JSON(writing.response())
    if body.stream:
        return EventStream(answers, events(writing, answers, kept.keep))
    (finished,) = await collected(answers)
    writing.take(finished)
    await kept.keep(writing)
    return JSON(writing.response())


async def _generation_request(served: Served, writing: Writing, params: SamplingParams) -> GenerationRequest:
    with called(prompt="input", messages="input"):
        return await served.engine.chat_request(
            for_template(writing.items, writing.body.instructions),
            params,
            request_id=writing.id,
            priority=writing.body.priority,
            cache_salt=writing.body.cache_salt,
        )


def _sampling_params(served: Served, body: ResponseBody) -> SamplingParams:
    """What the client asked for, over the model's defaults. Without a limit the context is one."""
    given = body.given_sampling() | {"max_tokens": body.max_output_tokens, "logprobs": body.num_logprobs}
    with called(max_tokens="max_output_tokens", logprobs="top_logprobs"):
        return served.engine.intake.default_params(**given)
