"""Help texts: plain, under headings, with every option's name in full.

typer's rich panels cut long option names at 80 columns and cost more time than all the rest of `--help`.
"""

from typing import Any

import typer
from typer.core import TyperCommand


class SectionedCommand(TyperCommand):
    """A command whose help lists options under the headings (`rich_help_panel`) that they name.

    A value from the environment that is refused is called by its variable, not by an option that nobody gave.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            option: Any = error.param
            source = option and ctx.get_parameter_source(option.name)
            if source and source.name == "ENVIRONMENT":
                error.param_hint = option.envvar
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections in the order in which their first option was declared."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(section_of(parameter), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def section_of(parameter: Any) -> str:
    """The heading of an option or argument."""
    usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
    return parameter.rich_help_panel or usual


def command_tree(**settings: Any) -> typer.Typer:
    """A typer application with our kind of help, and Python's own tracebacks."""
    return typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
        **settings,
    )
