"""The HTTP server: OpenAI's API in front of an `AsyncEngine`.

    run.py          serve(): bind, start the engine, print the address, exit code
    front.py        uvicorn: 503 while the model loads, and the drain at the end
    app.py          create_app(): routes, middleware, error answers
    settings.py     ServerSettings
    state.py        what the routes share: the engine, the model's name, whether the server is stopping
    security.py     the API key; the body limit
    errors.py       every error as OpenAI's error object
    body.py         bytes of a request into a checked model
    openai_types.py the bodies that are accepted, field by field
    completions.py  /v1/completions
    chat.py         /v1/chat/completions
    pooling.py      /v1/embeddings, /classify, /pooling
    scoring.py      /v1/score, /v1/rerank
    pooling_types.py  the bodies that those accept
    choices.py      what is new in an answer since the last look, and usage
    logprobs.py     log-probabilities in both of OpenAI's shapes
    answering.py    submitted requests into a response, streamed or whole
    sse.py          an answer as an event stream; what ends when the client hangs up
    models.py       /v1/models
    health.py       /health, /health/ready, /version

It knows no tensor, no scheduler and no platform.
"""
