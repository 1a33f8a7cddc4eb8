"""The HTTP server: OpenAI's and Anthropic's API in front of `AsyncEngine`s.

    run.py        serve(): bind, start the engines, print the address, exit code
    front.py      uvicorn: 503 while the models load, and the drain at the end
    app.py        create_app(): routes, middleware, error answers
    routes.py     what a route declares: who may call it, what it reads and answers
    settings.py   ServerSettings
    state.py      what the routes share: the models and their engines, whether the server is stopping
    errors.py     every error as the object that its API's clients expect
    body.py       bytes of a request into a checked model
    fields.py     what a body may hold: honoured, neutral, or refused by name
    sampling.py   what a body says of sampling, whichever API it is
    answering.py  finished answers of submitted requests
    sse.py        an answer as an event stream; what ends when the client hangs up
    guard/        what stands in front of every route: keys, hosts, sizes, times, request ids, the log
    openai/       completions, chat, models, responses, tokenize
    pooling/      embeddings, classification, pooling, score, rerank
    anthropic/    messages, count_tokens
    operations/   health, metrics, load, SageMaker
    ui/           the web page

It knows no tensor, no scheduler and no platform.
"""
