"""Finding and reading target files, with errors that name the file, the line and the key."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import TargetError
from ..spelling import did_you_mean
from ..strict_json import parse_json
from .schema import Target

#: Most bytes of a target file.
_MAX_BYTES = 2**20

#: Belong to one file: a target that extends another still says what it is.
_OWN = ("name", "summary", "extends")

_Key = tuple[str | int, ...]


@dataclass(frozen=True)
class _File:
    """One target file as read, before it is checked."""

    path: Path
    text: str
    raw: dict[str, Any]

    def where(self, key: _Key) -> str:
        line = line_of(self.text, key)
        return f"{self.path}, line {line}" if line else str(self.path)

    def holds(self, key: _Key) -> bool:
        node: Any = self.raw
        for part in key:
            if not isinstance(node, dict) or part not in node:
                return isinstance(node, list)
            node = node[part]
        return True


def shipped_folder() -> Path:
    """The folder of the target files that come with edgepeft: in the wheel, or at the top of a source checkout."""
    installed = Path(__file__).parent / "shipped"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "targets"


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted(shipped_folder().glob("*.toml"))}


def list_targets() -> list[Target]:
    """Every shipped target, by name. Raises :class:`TargetError` for the first that is invalid."""
    return [load_target(path) for path in _shipped().values()]


def load_target(name_or_path: str | Path) -> Target:
    """A shipped target by name, or a user's target file by path (anything with a separator or ending in ``.toml``).

    Raises :class:`TargetError` that names the file, the line, the key and what was expected.
    """
    chain = _read_chain(_resolve(name_or_path, Path.cwd(), ""))
    merged: dict[str, Any] = {}
    for file in reversed(chain):
        inherited = {key: value for key, value in merged.items() if key not in _OWN}
        merged = _merge(inherited, file.raw)
    merged.pop("extends", None)
    try:
        return Target.model_validate(merged)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(detail, chain)}" for detail in error.errors())
        raise TargetError(f"target file {chain[0].path} is invalid:\n{problems}") from error


def _resolve(name_or_path: str | Path, folder: Path, why: str) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
        path = folder / text
        if not path.is_file():
            raise TargetError(f"target file {path}{why} does not exist")
        return path
    shipped = _shipped()
    if text not in shipped:
        raise TargetError(
            f"unknown target {text!r}{why}{did_you_mean(text, shipped)} (shipped: {', '.join(shipped) or 'none'}; "
            "or give the path of a .toml file)"
        )
    return shipped[text]


def _read_chain(path: Path) -> list[_File]:
    """The file and everything it extends, nearest first."""
    chain: list[_File] = []
    while True:
        if any(file.path.resolve() == path.resolve() for file in chain):
            circle = " → ".join(str(file.path) for file in chain)
            raise TargetError(f"{chain[-1].where(('extends',))}: extends goes in a circle: {circle} → {path}")
        chain.append(_read(path))
        extends = chain[-1].raw.get("extends")
        if extends is None:
            return chain
        where = chain[-1].where(("extends",))
        if not isinstance(extends, str):
            raise TargetError(f"{where}: extends must be the name or path of one target, found {extends!r}")
        path = _resolve(extends, path.parent, f" (extended by {where})")


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise TargetError(f"target file {path} has more than {_MAX_BYTES:,} bytes")
        text = raw.decode("utf-8")
        value = tomllib.loads(text)
        # As JSON it has our bounds: TOML's own are the memory, and Python fails on numbers of thousands of digits.
        parse_json(json.dumps(value, default=str), f"target file {path}", error=TargetError, finite=False)
        return _File(path, text, value)
    except OSError as error:
        raise TargetError(f"cannot read target file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TargetError(f"target file {path} is not UTF-8 (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"target file {path} is not valid TOML: {error}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; tables without end
        raise TargetError(f"target file {path} cannot be read: {str(error)[:200]}") from error


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid on top: tables are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _explain(detail: ErrorDetails, chain: list[_File]) -> str:
    """One problem as ``file, line: key: what is wrong, what was expected``."""
    # pydantic marks a wrong dictionary key with a last part "[key]", which is in no file.
    key: _Key = tuple(part for part in detail["loc"] if part != "[key]")
    dotted = ".".join(map(str, key))
    if detail["type"] == "missing":
        return f"{chain[0].path}: {dotted}: missing; every target needs it"
    where = next((file for file in chain if file.holds(key)), chain[0]).where(key)
    if detail["type"] == "extra_forbidden":
        known = list(_fields_at(key[:-1]))
        return f"{where}: {dotted}: unknown key{did_you_mean(str(key[-1]), known)} (known here: {', '.join(known)})"
    message = detail["msg"].removeprefix("Value error, ")
    ending = "" if isinstance(detail["input"], dict) else f", found {detail['input']!r}"
    if detail["type"] == "literal_error":
        ending += did_you_mean(str(detail["input"]), re.findall(r"'([^']+)'", detail["msg"]))
    return f"{where}: {dotted or '(top)'}: {message}{ending}"


def _fields_at(table: _Key) -> Iterable[str]:
    model: type[BaseModel] = Target
    for part in table:
        annotation = model.model_fields[str(part)].annotation
        nested = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = next(kind for kind in nested if issubclass(kind, BaseModel))
    return (*model.model_fields, "extends") if model is Target else model.model_fields


def line_of(text: str, key: _Key) -> int | None:
    """The 1-based line of ``text`` on which a TOML key stands, or the nearest key or table around it.

    ``tomllib`` keeps no positions, so this reads headers and keys again; it is used for messages only.
    """
    best: tuple[int, int] | None = None
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+([^\]]+)\]", line)
        entry = re.match(
            r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+))*)\s*=""", line
        )
        if header:
            here = table = _split_key(header[1])
        elif entry:
            here = (*table, *_split_key(entry[1]))
        else:
            continue
        if here == tuple(map(str, key[: len(here)])) and (best is None or len(here) > best[0]):
            best = (len(here), number)
    return None if best is None else best[1]


def _split_key(text: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in re.findall(r""""[^"]*"|'[^']*'|[^.\s]+""", text))
