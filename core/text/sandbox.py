"""Where chat templates run: Jinja's immutable sandbox, and a budget of time and size.

A template comes with a model from anywhere. The sandbox keeps it from what is not its own; the budget ends loops
that do not end, and refuses texts and numbers that grow without bound before they are made.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sized
from collections.abc import Sequence as Items
from functools import wraps
from time import thread_time
from typing import Any, cast

from jinja2 import Template, TemplateRuntimeError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

RENDER_SECONDS = 2.0
"""Of a processor's time, for one conversation."""

MAX_CHARACTERS = 16_000_000
"""Of a text that one operation makes, and of a rendered conversation."""

MAX_GROWN = 8 * MAX_CHARACTERS
"""Of the guess of what a filter or a method makes, which is high."""

MAX_BITS = 4096
"""Of a whole number."""

_DEADLINE = "the deadline"  # no name in a template can have a space, so none can hide it
_GROWING = (
    *("batch", "center", "format", "indent", "join", "pprint", "replace", "slice", "string"),
    *("sum", "tojson", "truncate", "urlize", "wordwrap", "xmlattr"),
)
_WIDE = re.compile(r"[0-9]{5}|\*|\{[^{}]*\{")


class OverBudget(TemplateRuntimeError):
    """A template asks for more than it may have."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template. Thread-safe: what is spent is counted in each rendering's own context."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, filters: Mapping[str, Any], names: Mapping[str, Any]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
        given: Any = self
        given.filters.update(filters)
        given.filters.update({name: _bounded(name, given.filters[name]) for name in _GROWING})
        given.globals.update(names)
        del given.globals["lipsum"]

    def template(self, source: str) -> Template:
        """Raises jinja2.TemplateError when the source is not valid Jinja."""
        return self.from_string(_Ticks().visit(self.parse(source)))

    def names(self, source: str) -> frozenset[str]:
        """What a template reads and is not set here."""
        given: Any = self
        return frozenset(meta.find_undeclared_variables(self.parse(source)) - given.globals.keys())

    def budget(self) -> dict[str, float]:
        """Variables for one rendering, in the thread that does it."""
        return {_DEADLINE: thread_time() + RENDER_SECONDS}

    def tick(self) -> None:
        """Called in every turn of a loop, as templates call anything: see `call`."""

    def joined(self, *parts: Any) -> str:
        """What `~` makes."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: Context, called: Any, *given: Any, **named: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raises OverBudget when the time is up, or a text would grow too much."""
        if thread_time() > context.parent[_DEADLINE]:
            raise OverBudget(f"it took longer than {RENDER_SECONDS:g} s")
        method = inspect.unwrap(called)  # the sandbox wraps str.format
        if inspect.isbuiltin(method) and isinstance(method.__self__, str):
            given = tuple(map(_held, given))
            _check_growth(method.__name__, method.__self__, *given, *named.values())
        return super().call(context, called, *given, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            _check_bits(_bits(left) * (right if isinstance(right, int) else 1))
        elif operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(_bits(left) + _bits(right))
            else:
                _check_size(_size(left) * _size(right))
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_size(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _check_growth("format", left, right)
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """{% generation %}...{% endgeneration %} marks what to train on; for inference it is what is inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Ticks(NodeTransformer):
    """Has every loop call `tick` in every turn, and makes `~` a call of `joined`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        tick = nodes.ExprStmt(_call("tick", []), lineno=node.lineno)
        self.generic_visit(node)
        node.body.insert(0, tick)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node.nodes).set_lineno(node.lineno)


def _call(name: str, given: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), given, [], None, None)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, which refuses to make what is too large."""

    @wraps(function)
    def checked(*given: Any, **named: Any) -> Any:
        held = tuple(map(_held, given))
        _check_growth(name, *held, *named.values())
        return function(*held, **named)

    return checked


def _check_growth(name: str, *given: Any) -> None:
    """What is made of these is hardly longer than the two largest, multiplied. Raises OverBudget."""
    if name.startswith("format") and any(isinstance(text, str) and _WIDE.search(text) for text in given[:1]):
        raise OverBudget("a width in a format has more than four digits, or is not written in it")
    *_, second, first = sorted([1, 1, *map(_size, given)])
    _check_size(first * second, MAX_GROWN)


def _size(value: Any) -> int:
    """Characters that it is, or holds, or can ask for."""
    if isinstance(value, int):
        return abs(value)
    if isinstance(value, list | tuple):
        items = cast("Items[Any]", value)
        return sum(
            len(cast("Items[Any]", item)) if isinstance(item, str | list | tuple) else 1 for item in items
        )
    return len(value) if isinstance(value, Sized) else 1


def _held(value: Any) -> Any:
    """What is made one by one, as a list, whose size is known."""
    return list(cast("Iterator[Any]", value)) if isinstance(value, Iterator) else value


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 64


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise OverBudget(f"a number would have more than {MAX_BITS:,} bits")


def _check_size(size: int, most: int = MAX_CHARACTERS) -> None:
    if size > most:
        raise OverBudget(f"a text would have more than {most:,} characters")
