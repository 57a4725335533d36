"""Where chat templates run: jinja2's immutable sandbox, with an end.

The sandbox keeps a template from reaching anything but the messages; it does not keep it from running for ever or from
filling the memory. Here every round of a loop, every call, every filter and every piece of output is charged to a budget of
steps and characters, and looks at the clock. What can grow by more than it is given (``*``, ``**``, ``~``, ``replace``,
``join``, widths) is charged before it is computed.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

#: Most characters of a template, and most steps and characters of one rendering beside those of the messages.
MAX_SOURCE, MAX_STEPS = 2**20, 4_000_000
#: How many times each character of the messages may be taken up.
_TIMES = 16
#: Most seconds of one rendering.
MAX_SECONDS = 2.0
#: A width in a format, or an indent, that no text has.
_WIDE = re.compile(r"\d{5}|\{[^{}]*\{")
_MAX_INDENT = 64
#: Most bytes of a whole number.
_MAX_NUMBER = 64
#: Methods of texts whose result may be any number of times as long as what they are given.
_REFUSED = frozenset({"format_map", "maketrans", "translate"})


class _Budget:
    def __init__(self, steps: int) -> None:
        self.left = steps
        self.until = time.monotonic() + MAX_SECONDS

    def charge(self, steps: int) -> None:
        self.left -= 1 + steps
        if self.left < 0:
            raise SecurityError("it does not end, or its text has no bound")
        if time.monotonic() > self.until:
            raise SecurityError(f"it takes longer than {MAX_SECONDS:g} s")


_BUDGET: ContextVar[_Budget] = ContextVar("_BUDGET")


def _charge(steps: int = 0) -> None:
    # Without a rendering jinja2 is compiling and tries what it can compute beforehand: the error makes it leave that.
    _BUDGET.get().charge(steps)


@contextmanager
def bounded(characters: int) -> Iterator[None]:
    """Whatever is rendered in the block has one budget, for messages of so many ``characters``."""
    token = _BUDGET.set(_Budget(MAX_STEPS + _TIMES * characters))
    try:
        yield
    finally:
        _BUDGET.reset(token)


def _size(value: Any) -> int:
    if isinstance(value, bool):
        return 0
    if isinstance(value, int):
        return value.bit_length() // 8
    return len(value) if isinstance(value, Sized) else 0


class _Rounds:
    """An iterable whose rounds are charged."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            _charge()
            yield value

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type] # a TypeError tells jinja2 that it has no length


def _shown(value: Any) -> str:
    text = str(value)
    _charge(len(text))
    return text


def _concatenated(values: list[Any]) -> str:
    return "".join(map(_shown, values))


@jinja2.pass_environment
def _join(environment: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    parts = []
    for part in value:
        _charge(len(str(d)))
        parts.append(_shown(part))
    return str(d).join(parts)


def _cost(name: str, value: Any, given: tuple[Any, ...]) -> int:
    """What a filter or method called ``name`` may make of ``value``, in characters."""
    numbers = sum(abs(each) for each in given if isinstance(each, int))
    cost = _size(value) + numbers + sum(map(_size, given))
    if name == "replace" and len(given) > 1 and isinstance(value, str) and isinstance(given[0], str):
        cost += value.count(given[0]) * _size(given[1])
    if name in {"indent", "expandtabs"} and isinstance(value, str):
        cost += (value.count("\n") + value.count("\t")) * (8 + numbers + sum(map(_size, given)))
    if name == "sum" and any(isinstance(each, Sized) for each in (*given, *(value if isinstance(value, list) else ()))):
        raise SecurityError("sum is for numbers")
    if name == "format" and isinstance(value, str):
        _check_format(value)
    return cost


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise SecurityError(f"the format {text[:40]!r} has a width that is too large, or one in another")


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is charged; what jinja2 passes first (its context, say) stays first."""
    first = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

    @functools.wraps(function)
    def charged(*given: Any, **named: Any) -> Any:
        _charge(_cost(name, given[first], (*given[first + 1 :], *named.values())) if len(given) > first else 0)
        return function(*given, **named)

    return charged


class _Charging(NodeTransformer):
    """Rounds of loops, what is put out, and texts put together become filters, which are charged."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2 calls it so
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_rounds")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filtered(child, "_shown") for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concatenated")


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant says, for training; here its content is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox as Hugging Face's templates expect it, with trimmed blocks and loop controls; render in :func:`bounded`."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, filters: Mapping[str, Callable[..., Any]], functions: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.filters |= filters
        del self.filters["urlize"], self.globals["lipsum"]
        charged = {name: _charged(name, function) for name, function in self.filters.items()}
        self.filters = {
            **charged, "join": _join, "_rounds": _Rounds, "_shown": _shown, "_concatenated": _concatenated,
        }  # fmt: skip
        self.globals |= functions

    def _generate(self, source: nodes.Template, *given: Any, **named: Any) -> Any:
        return super()._generate(_Charging().visit(source), *given, **named)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template."""
        name, value = getattr(obj, "__name__", ""), getattr(obj, "__self__", None)
        _charge(_cost(name, value, (*args, *kwargs.values())))
        if name == "join" and isinstance(value, str) and len(args) == 1:
            return _join(self, args[0], value)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Operators whose result may be any number of times as large as what they are given."""
        if operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                if _size(left) + _size(right) > _MAX_NUMBER:
                    raise SecurityError("it computes with numbers of too many digits")
            else:
                times = [each for each in (left, right) if isinstance(each, int)]
                _charge(max(0, *times, 0) * max(_size(left), _size(right)) if times else 0)
        elif operator == "**":
            if not (isinstance(right, int | float) and abs(right) <= 64 and _size(left) <= _MAX_NUMBER):
                raise SecurityError(f"{left!r:.20} ** {right!r:.20} is too large")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            _charge(
                _size(left) + sum(abs(v) for v in (right if isinstance(right, tuple) else ()) if isinstance(v, int))
            )
        else:
            _charge(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What a template may reach of an object."""
        return not (isinstance(obj, str | bytes) and attr in _REFUSED) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format``, with its widths looked at."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(str(value.__self__))
        return wrapped


def check_indent(indent: Any) -> int | None:
    """``indent`` of ``tojson``, if it is one that a text has."""
    if indent is None or (isinstance(indent, int) and 0 <= indent <= _MAX_INDENT):
        return indent
    raise SecurityError(f"tojson(indent={indent!r:.20}): at most {_MAX_INDENT}")
