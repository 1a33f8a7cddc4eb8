"""Writes docs/cli.md from the command tree:  python -m cli.reference > docs/cli.md

A test holds the page current.
"""

import sys
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from cli.help import section_of
from cli.tables import ENGINE

LEFT_OUT = ("help", "install_completion", "show_completion")
INTRODUCTION = """\
# The `llm` command

<!-- Written by `python -m cli.reference`; change the help texts in cli/, not this page. -->

`llm COMMAND --help` shows the same in a terminal. Results go to standard output, status and errors to
standard error. Exit codes: 0 done, 1 it could not be done, 2 the command line is wrong, 130 interrupted, 141
the reader of our output has gone. An error is one block without a traceback; `--debug` or `LLM_DEBUG=1` adds
it.

What decides how `generate` and `chat` sample, first to last: the option, the model's
`generation_config.json` (unless `--generation-config core`), and then temperature 0.8 with top_p 0.95. Each
run draws a new seed unless `--seed` is given; `--temperature 0` always takes the likeliest token.
"""


def reference() -> str:
    """The page, ending in one newline."""
    from cli.app import app

    root = get_command(app)
    parts = [INTRODUCTION, *_pages(root, typer.Context(root, info_name="llm"), "llm"), _engine_options()]  # type: ignore[arg-type]
    return "\n".join(parts).rstrip() + "\n"


def _pages(command: Any, context: Any, path: str) -> Iterator[str]:
    """This command's section and those below it."""
    yield f"## `{path}`\n\n{_paragraphs(command.help)}\n"
    yield from _options(command, context)
    for name, child in _children(command):
        yield from _pages(child, typer.Context(child, info_name=name, parent=context), f"{path} {name}")


def _children(command: Any) -> list[tuple[str, Any]]:
    return list(command.commands.items()) if isinstance(command, TyperGroup) else []


def _options(command: Any, context: Any) -> Iterator[str]:
    sections: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        if parameter.name not in LEFT_OUT:
            sections.setdefault(section_of(parameter), []).append(_row(parameter))
    for title, rows in sections.items():
        yield "And the [engine options](#engine-options).\n" if title == ENGINE.panel else _table(title, rows)


def _engine_options() -> str:
    """The options that most commands share, once."""
    shared = [f"| `{name}` | {_escaped(text)} |" for name, text in ENGINE.rows()]
    return (
        f"## Engine options\n\nShared by every command that loads a model.\n\n{_table(ENGINE.panel, shared)}"
    )


def _table(title: str, rows: list[str]) -> str:
    return f"| {_escaped(title)} | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    notes = [parameter.help or ""]
    if parameter.envvar and "LLM_<NAME>" not in section_of(parameter):
        notes.append(f"[env: {parameter.envvar}]")
    default = _default(parameter)
    if default is not None:
        notes.append(f"[default: {default}]")
    return f"| {', '.join(f'`{name}`' for name in names)} | {_escaped(' '.join(notes))} |"


def _default(parameter: Any) -> str | None:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if not parameter.show_default or parameter.default is None or parameter.default is False:
        return None
    return "yes" if parameter.default is True else str(parameter.default)


def _paragraphs(text: str | None) -> str:
    return "\n".join(line.strip() for line in (text or "").strip().splitlines())


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


if __name__ == "__main__":
    sys.stdout.write(reference())
