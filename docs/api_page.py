"""``docs/api.md``, written from the signatures and docstrings of the public names.

``python docs/api_page.py > docs/api.md``
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import edgepeft.errors
import edgepeft.pipeline
import edgepeft.runtime

_INTRODUCTION = """\
# The Python API

Written by `python docs/api_page.py > docs/api.md` from the signatures and docstrings; a test checks that it is current.

`edgepeft.pipeline` makes bundles and needs the extra of the stage; `edgepeft.runtime` opens them and needs the base install
alone. Both raise only what `edgepeft.errors` lists. Names that are not on this page may change in any release.
"""

#: Docstring sections, in the words of their headings.
_SECTION = re.compile(r"^(Args|Returns|Raises|Example):{1,2}$")
#: One entry of Args or Raises: its name, and the text up to the next entry.
_ENTRY = re.compile(r"^(\w+): (.*(?:\n[ ]+.*)*)", re.MULTILINE)
#: Roles of Sphinx, of which the name is kept: ``:func:`~edgepeft.pipeline.export``` gives ``export``.
_ROLE = re.compile(r":\w+:`(~?)([\w.]+)`")


def api_page() -> str:
    """``docs/api.md``."""
    pipeline, runtime = edgepeft.pipeline, edgepeft.runtime
    stages = [name for name in pipeline.__all__ if inspect.isfunction(getattr(pipeline, name))]
    results = [name for name in pipeline.__all__ if name not in stages]
    parts = [_INTRODUCTION, "## edgepeft.pipeline: stages\n"]
    parts += [part for name in stages for part in _function(name, getattr(pipeline, name))]
    parts += ["## edgepeft.pipeline: what stages return\n"]
    parts += [part for name in results for part in _class(name, getattr(pipeline, name))]
    functions = [name for name in runtime.__all__ if inspect.isfunction(getattr(runtime, name))]
    parts += ["## edgepeft.runtime\n"]
    parts += [part for name in functions for part in _function(name, getattr(runtime, name))]
    others = [name for name in runtime.__all__ if name not in functions and name not in results]
    parts += [part for name in others for part in _class(name, getattr(runtime, name))]
    parts += ["## edgepeft.errors\n", _prose(inspect.getdoc(edgepeft.errors) or "")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _class(name: str, kind: type) -> Iterator[str]:
    """A class with the fields, properties and methods that it defines itself."""
    yield f"### {name}\n"
    inherited = [base.__name__ for base in kind.__mro__[1:] if base.__name__ in edgepeft.runtime.__all__]
    if inherited:
        yield f"Has all that {', '.join(f'[{base}](#{base.lower()})' for base in inherited)} has.\n"
    yield _doc(kind)
    fields = _fields(kind)
    if fields:
        yield "\n".join([*(f"- `{name}: {annotation}`" for name, annotation in fields), ""])
    for member, value in _members(kind).items():
        if member.startswith("_") or member in dict(fields):
            continue
        if isinstance(value, (property, cached_property)):
            getter = value.fget if isinstance(value, property) else value.func
            yield f"#### {name}.{member}\n\n```python\n{member}: {_returned(getter)}\n```\n"
            yield _doc(value)
        elif inspect.isfunction(value):
            yield from _function(f"{name}.{member}", value, level="####")


def _members(kind: type) -> dict[str, Any]:
    """What a class defines, and before it what edgepeft's bases that no page of their own shows give it."""
    package = kind.__module__.rpartition(".")[0]
    bases = [base for base in kind.__mro__[1:] if base.__module__.rpartition(".")[0] == package]
    shown = {each for base in bases if hasattr(sys.modules[package], base.__name__) for each in base.__mro__}
    hidden = [base for base in bases if base not in shown]
    return {name: value for each in [*reversed(hidden), kind] for name, value in vars(each).items()}


def _fields(kind: type) -> list[tuple[str, str]]:
    """The public fields of a dataclass, a pydantic model or a TypedDict, with their annotations as they are written."""
    own = dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields") or hasattr(kind, "__total__")
    annotations = vars(kind).get("__annotations__", {}) if own else {}
    return [(name, _annotation(text)) for name, text in annotations.items() if not name.startswith("_")]


def _function(name: str, function: Any, level: str = "###") -> Iterator[str]:
    yield f"{level} {name}\n"
    yield f"```python\n{_signature(name.rpartition('.')[2], function)}\n```\n"
    yield _doc(function)


def _signature(name: str, function: Any) -> str:
    """A signature as it is written in the code; one parameter a line where it is long."""
    parameters, star = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parameters.append("*")
        star |= parameter.kind in {parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL}
        parameters.append(_parameter(parameter))
    end = f") -> {_returned(function)}"
    line = f"{name}({', '.join(parameters)}{end}"
    if len(line) <= 110:
        return line
    return "\n".join([f"{name}(", *(f"    {each}," for each in parameters), end])


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}: {_annotation(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    # A function or an object as a default prints its address, or more than its reader wants.
    plain = isinstance(parameter.default, (str, int, float, bool, tuple, type(None)))
    return f"{text} = {repr(parameter.default) if plain else '...'}"


def _returned(function: Any) -> str:
    return _annotation(inspect.signature(function).return_annotation)


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _doc(value: Any) -> str:
    """A docstring as Markdown; classes that say nothing themselves inherit nothing here."""
    own = value.__doc__
    if own is None:
        return ""
    parts: list[str] = []
    for heading, body in _sections(inspect.cleandoc(own)):
        if heading in {"Args", "Raises"}:
            entries = [(name, " ".join(text.split())) for name, text in _ENTRY.findall(body)]
            parts.append(
                "\n".join([f"**{heading}**\n", *(f"- `{name}`: {_inline(text)}" for name, text in entries), ""])
            )
        elif heading == "Example":
            parts.append(f"**{heading}**\n\n```python\n{body.strip()}\n```\n")
        elif heading == "Returns":
            parts.append(f"**{heading}**\n\n{_prose(body)}")
        else:
            parts.append(_prose(body))
    return "\n".join(parts)


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """``("", text)`` and then each section with its body, not indented."""
    heading, lines = "", list[str]()
    for line in text.splitlines():
        found = _SECTION.match(line)
        if found:
            yield heading, textwrap.dedent("\n".join(lines))
            heading, lines = found[1], []
        else:
            lines.append(line)
    yield heading, textwrap.dedent("\n".join(lines))


def _prose(text: str) -> str:
    """Text with Sphinx's marks as Markdown's; a literal block (``::``) becomes a fence."""
    parts = []
    for part in re.split(r"\n\n", text.strip()):
        block = part if part.startswith("    ") else ""
        parts.append(f"```\n{textwrap.dedent(block)}\n```" if block else _inline(part))
    return re.sub(r"(^|\n)::\n", r"\1", "\n\n".join(parts)).rstrip() + "\n"


def _inline(text: str) -> str:
    named = _ROLE.sub(lambda found: f"`{found[2].rpartition('.')[2] if found[1] else found[2].lstrip('.')}`", text)
    return named.replace("``", "`")


if __name__ == "__main__":
    sys.stdout.write(api_page())
