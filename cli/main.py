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
        from cli.app import app

        app(prog_name="llm")
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
