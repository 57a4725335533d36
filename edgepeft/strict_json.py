"""JSON that comes from outside, read strictly: bounded in size and depth, without what JSON does not have."""

from __future__ import annotations

import json
import math
from pathlib import Path, PurePath
from typing import Any, NoReturn

from .errors import EdgepeftError, InputError

#: Most bytes of one JSON file. The largest that are met are tokenizer configurations of some megabytes.
MAX_BYTES = 16 * 2**20
#: Most levels of arrays and objects in each other. What people write has fewer than 20.
MAX_DEPTH = 64
#: Integers are those of 64 bits: what other readers of the same file can hold.
_MAX_INT = 2**64
_INT_DIGITS = len(str(_MAX_INT)) + 1


class _UnusableError(ValueError):
    """What is wrong with a JSON text, without its place."""


def _int(digits: str) -> int:
    # Python refuses to turn 4,300 digits and more into a number, and takes long over fewer.
    if len(digits) > _INT_DIGITS or not -_MAX_INT < (number := int(digits)) < _MAX_INT:
        raise _UnusableError(f"the number {digits[:12]}… has {len(digits)} digits, which no field takes")
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _UnusableError(f"the number {digits[:20]} is too large")
    return number


def _constant(word: str) -> NoReturn:
    raise _UnusableError(f"{word} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _UnusableError(f"the key {twice[:80]!r} stands twice in one object")
    return members


_STRICT = json.JSONDecoder(parse_int=_int, parse_float=_float, parse_constant=_constant, object_pairs_hook=_object)
#: For files that Python's own writer made, which may hold NaN and Infinity (some models' config.json).
_WITH_CONSTANTS = json.JSONDecoder(parse_int=_int, object_pairs_hook=_object)


def _encode_texts(value: Any) -> None:
    """``UnicodeEncodeError`` for a text with half of a surrogate pair, which no file or terminal takes."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, list):
        for item in value:
            _encode_texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode("utf-8")
            _encode_texts(item)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _UnusableError(f"arrays and objects lie more than {MAX_DEPTH} deep in each other")


def parse_json(
    text: str,
    where: str,
    *,
    error: type[EdgepeftError] = InputError,
    advice: str = "",
    max_bytes: int = MAX_BYTES,
    finite: bool = True,
) -> Any:
    """The JSON value in ``text``.

    Refuses what Python's own reader lets pass or fails on with an exception of its own: a text of more than
    ``max_bytes`` characters, more than :data:`MAX_DEPTH` levels, a key twice in one object, integers beyond 64 bits,
    numbers that overflow, ``NaN`` and ``Infinity`` (allowed with ``finite=False``), and half a surrogate pair, which no
    file or terminal can be given.

    Args:
        text: The text, already decoded.
        where: The file, as messages name it.
        error: The exception that is raised.
        advice: What the reader should do; the end of the message.
        max_bytes: Most characters of ``text``.
        finite: Whether every number must be finite.

    Raises:
        EdgepeftError: As ``error``; says what is wrong and, where that can be told, in which line.

    Example:
        >>> parse_json('{"a": [1, 2]}', "example.json")
        {'a': [1, 2]}
    """
    tail = f"; {advice}" if advice else ""
    if len(text) > max_bytes:
        raise error(f"cannot read {where}: it has {len(text):,} characters, at most {max_bytes:,} are read{tail}")
    try:
        value = (_STRICT if finite else _WITH_CONSTANTS).decode(text)
        if isinstance(value, dict | list):
            _check_depth(value)
        if "\\u" in text or not text.isascii():
            _encode_texts(value)
    except json.JSONDecodeError as wrong:
        raise error(
            f"cannot read {where}: {PurePath(where).name} is not JSON (line {wrong.lineno}: {wrong.msg}){tail}"
        ) from wrong
    except UnicodeEncodeError as wrong:
        raise error(
            f"cannot read {where}: it holds half of a surrogate pair ({wrong.object[wrong.start]!r}){tail}"
        ) from wrong
    except _UnusableError as wrong:
        raise error(f"cannot read {where}: {wrong}{tail}") from wrong
    except RecursionError:
        raise error(f"cannot read {where}: it is nested without end{tail}") from None
    return value


def read_json(
    path: Path,
    *,
    error: type[EdgepeftError] = InputError,
    what: str = "",
    advice: str = "",
    max_bytes: int = MAX_BYTES,
    finite: bool = True,
) -> Any:
    """The JSON value in a UTF-8 file, which messages call ``what``; see :func:`parse_json` for what is refused.

    Raises:
        EdgepeftError: As ``error``, also for a file that cannot be read, is no regular file or not UTF-8.
    """
    tail = f"; {advice}" if advice else ""
    where = f"{what} {path}".lstrip()
    if path.exists() and not path.is_file():
        raise error(f"cannot read {where}: it is no regular file{tail}")
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except (OSError, ValueError) as wrong:  # ValueError: a name with a NUL
        raise error(f"cannot read {where}: {getattr(wrong, 'strerror', None) or wrong}{tail}") from wrong
    if len(raw) > max_bytes:
        raise error(f"cannot read {where}: it has more than {max_bytes:,} bytes, which no such file needs{tail}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as wrong:
        raise error(f"cannot read {where}: byte {wrong.start} is not UTF-8{tail}") from wrong
    return parse_json(text, where, error=error, advice=advice, max_bytes=max_bytes, finite=finite)


def read_object(
    path: Path, *, error: type[EdgepeftError] = InputError, advice: str = "", finite: bool = True
) -> dict[str, Any]:
    """:func:`read_json` of a file that must hold an object."""
    value = read_json(path, error=error, advice=advice, finite=finite)
    if not isinstance(value, dict):
        raise error(f"{path} must hold a JSON object, found {kind(value)}" + (f"; {advice}" if advice else ""))
    return value


def kind(value: Any) -> str:
    """What JSON calls a value's type, for messages.

    Example:
        >>> kind([1])
        'an array'
    """
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
