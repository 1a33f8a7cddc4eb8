"""Entry point of the `llm` command."""

import sys

from cli.guard import shadowing


def main() -> int:
    """Run the command line of this process. Returns the exit code, unless typer has left with one already."""
    problem = shadowing()
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    try:
        if sys.argv[1:2] in (["serve"], ["run-batch"]) and not {"--help", "-h"} & {*sys.argv}:
            from core.engine.spawn import start_ahead

            start_ahead()  # while the command line is imported and read
        from cli.app import app

        app(prog_name="llm")
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
