"""Options from dataclasses: how a table of help texts becomes options of a command.

A table holds one line per field of a dataclass: its help. Name, type and default come from the field. A
command that says `@takes(ENGINE)` gets an option per line, and receives what the user gave as one dictionary,
`engine`; what was not given is absent, so that defaults stay where they are defined. The tables are in
tables.py.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from cli import failures

Given = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Options for the fields of one dataclass.

    keyword   under which a command receives the values given
    panel     heading in the help
    help      field -> help, in the order shown; a field that is left out gets no option
    defaults  what the help shows as default where it is not the field's own
    environment  whether LLM_<NAME> is read when the option is absent
    """

    keyword: str
    panel: str
    source: type
    help: Mapping[str, str]
    defaults: Mapping[str, str]
    environment: bool = False

    def without(self, *names: str) -> "Table":
        """The same table with fewer options."""
        return replace(self, help={name: text for name, text in self.help.items() if name not in names})

    def showing(self, **defaults: str) -> "Table":
        """The same table with other defaults in its help, for a command that has its own."""
        return replace(self, defaults={**self.defaults, **defaults})

    def parameters(self) -> list[inspect.Parameter]:
        """One keyword parameter per option, annotated for typer; its default None means "not given"."""
        hints = get_type_hints(self.source)
        known = {field.name: field for field in fields(self.source)}
        return [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    _option_type(hints[name]) | None, self._option(known[name], hints[name])
                ],
            )
            for name in self.help
        ]

    def rows(self) -> list[tuple[str, str]]:
        """Names and help of each option, as --help shows them."""
        known = {field.name: field for field in fields(self.source)}
        return [
            (_flags(known[name]), f"{text}{self._default(known[name])}") for name, text in self.help.items()
        ]

    def take(self, values: Given) -> Given:
        """Remove this table's options from `values`; returns those that the user gave."""
        taken = {name: values.pop(name) for name in self.help}
        return {name: value for name, value in taken.items() if value is not None and value != []}

    def _option(self, field: "Field[Any]", hint: Any) -> Any:
        return typer.Option(
            _flags(field),
            help=f"{self.help[field.name]}{self._default(field)}",
            envvar=f"LLM_{field.name.upper()}" if self.environment else None,
            metavar=_metavar(hint),
            show_envvar=False,
            show_default=False,
            rich_help_panel=self.panel,
        )

    def _default(self, field: "Field[Any]") -> str:
        """The end of a help text, [default: 16]; nothing where there is none to speak of."""
        if field.name in self.defaults:
            return f" [default: {self.defaults[field.name]}]"
        if field.default is MISSING or field.default == ():
            return ""
        if isinstance(field.default, bool):
            return f" [default: {'yes' if field.default else 'no'}]"
        return f" [default: {'auto' if field.default is None else field.default}]"


def takes(*tables: Table) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator of a command: adds the tables' options and --debug, and turns errors into messages.

    The command receives each table's values as one dictionary under the table's keyword.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        keywords = {table.keyword for table in tables}
        own = inspect.signature(command, eval_str=True).parameters.values()
        shared = [parameter for table in tables for parameter in table.parameters()]
        kept = [parameter for parameter in own if parameter.name not in keywords]
        unique = {parameter.name: parameter for parameter in [*kept, *shared, _debug_parameter()]}

        @wraps(command)
        def call(*, debug: bool, **values: Any) -> None:
            given = {table.keyword: table.take(values) for table in tables}
            failures.run(lambda: command(**values, **given), debug=debug)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in unique.values()]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        return call

    return decorate


def _debug_parameter() -> inspect.Parameter:
    option = typer.Option(
        "--debug", help="Show the traceback of an error.", envvar="LLM_DEBUG", show_default=False
    )
    return inspect.Parameter(
        "debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )


def _flags(field: "Field[Any]") -> str:
    """--block-size, or --enable-x/--no-enable-x for something that is on or off."""
    name = field.name.replace("_", "-")
    return f"--{name}/--no-{name}" if isinstance(field.default, bool) else f"--{name}"


def element_type(hint: Any) -> Any:
    """What a field that holds several values holds; None for others."""
    for part in parts_of(hint):
        origin = get_origin(part)
        if origin is not None and issubclass(origin, Sequence):
            return get_args(part)[0]
    return None


def parts_of(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _option_type(hint: Any) -> Any:
    """A field's type as one that typer reads: without None; text for what has several spellings."""
    element = element_type(hint)
    if element is not None:
        return list[element]
    options = [part for part in parts_of(hint) if part is not type(None)]
    if any(get_origin(part) is not None and issubclass(get_origin(part), Mapping) for part in options):
        return list[str]
    return options[0] if len(options) == 1 else str


def _metavar(hint: Any) -> str | None:
    """What stands for the value in help, where typer's own word is clumsy."""
    option_type = _option_type(hint)
    return f"<{get_args(option_type)[0].__name__}>" if get_origin(option_type) is list else None
