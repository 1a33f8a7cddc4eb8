"""The `llm` command: a thin face of the core and the server.

    main.py         entry point: guard, then the command tree
    guard.py        refuses to run when somebody else's modules shadow ours
    app.py          the command tree
    options.py      how a table of help texts becomes options of a command
    tables.py       engine, sampling and server options, each declared once
    engine.py       from options to a loaded engine and sampling parameters
    help.py         the look of --help
    failures.py     how errors reach the user: one block on stderr, and an exit code
    terminal.py     what goes to stdout, what to stderr, and in which shape
    generate.py chat.py serve.py run_batch.py bench.py bench_serve.py platforms.py kernels.py models.py doctor.py
    environment.py conformance.py plugin.py       a command each
    config_file.py  options of `llm serve` from a YAML file
    workload.py measure.py report.py    what `llm bench` sends, what it measures, and how it shows it
    traffic/        what `llm bench serve` does to a server
    batch/          what `llm run-batch` does with a file
    reference.py    writes docs/cli.md from the command tree

No module here imports torch, transformers or fastapi until a command needs them.
"""
