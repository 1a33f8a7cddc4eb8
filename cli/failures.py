"""How errors reach the user: one block on stderr, no traceback, and an exit code that scripts can rely on.

0    done
1    it could not be done
2    the command line is wrong: an unknown option, or a value that no model and no machine would accept
130  interrupted from the keyboard
141  whoever read our output has gone
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from core.errors import ConfigError, CoreError, RequestError

FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


class CommandError(CoreError):
    """A command cannot do what it was asked, for a reason outside the engine: a file, standard input."""


class UsageError(CommandError):
    """The command line itself is wrong."""


def run(command: Callable[[], None], *, debug: bool) -> None:
    """Call `command`; what goes wrong becomes a message and typer.Exit with the right code.

    Only what nobody meant to happen, or debugging, shows a traceback.
    """
    try:
        command()
        sys.stdout.flush()
    except CoreError as error:
        show(error, debug=debug)
        raise typer.Exit(USAGE if isinstance(error, UsageError) else FAILED) from None
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print(file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Python flushes stdout once more when it leaves; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(BROKEN_PIPE) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception:
        traceback.print_exc()
        print("error: this is a defect of llm; please report it with  llm collect-env", file=sys.stderr)
        raise typer.Exit(FAILED) from None


def show(error: CoreError, *, debug: bool = False) -> None:
    """Print an error on stderr, below its traceback when debugging."""
    if debug:
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr, flush=True)


@contextmanager
def refused_values() -> Iterator[None]:
    """Inside, a value that a configuration refuses becomes a UsageError that names the option."""
    try:
        yield
    except (ConfigError, RequestError) as error:
        name = error.setting if isinstance(error, ConfigError) else error.parameter
        where = f"--{name.replace('_', '-')}: " if name else ""
        raise UsageError(f"{where}{error}") from error


@contextmanager
def file_errors(doing: str) -> Iterator[None]:
    """Inside, an operating-system error becomes a CommandError: "cannot write x.json: no such directory"."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"cannot {doing}: {(error.strerror or str(error)).lower()}") from error
