"""The elements of a JSON array, one at a time: a file of rows does not have to fit into memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TextIO

from .strict_json import MAX_BYTES

_OUTSIDE, _INSIDE = re.compile(r'["\[\]{},]'), re.compile(r'["\\]')
_SPACE = " \t\r\n"
_CHUNK = 1 << 16


class ArrayError(ValueError):
    """What is wrong between the elements, and the line it is on.

    Args:
        line: From 1.
        what: What is wrong.
    """

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


def array_elements(file: TextIO) -> Iterator[tuple[int, str]]:
    """The text of each element of the array that ``file`` holds, with the line that it starts on, from 1.

    Brackets and strings are followed to find where an element ends; whether it is JSON, its reader says.

    Raises:
        ArrayError: The array does not end, something stands behind it, or an element is larger than any is read.

    Example:
        >>> import io
        >>> list(array_elements(io.StringIO('[{"a": "],["},\\n 2]')))
        [(1, '{"a": "],["}'), (2, '2')]
    """
    held, place, line = "", 0, 1  # what is read and not given yet, how far it was looked at, the line it starts on
    depth, inside, count = 0, False, 0
    while True:
        match = (_INSIDE if inside else _OUTSIDE).search(held, place)
        if match is None:
            place = max(place, len(held))  # a backslash at the end takes the next character with it
            if place > MAX_BYTES:
                raise ArrayError(line, f"an element of more than {MAX_BYTES:,} characters, which is more than is read")
            more = file.read(_CHUNK)
            if not more:
                raise ArrayError(line + held.count("\n"), "the array is not closed")
            held += more
            continue
        place, sign = match.end(), match[0]
        if inside:
            place, inside = (place + 1, True) if sign == "\\" else (place, False)
            continue
        if sign == '"':
            inside = True
            continue
        depth += (sign in "[{") - (sign in "]}")
        begins, ends = depth == 1 and sign == "[" and not count, depth == 0 or (depth == 1 and sign == ",")
        if not begins and not ends:
            continue
        before, held, place = held[: place - 1], held[place:], 0
        if ends:
            text = before.strip(_SPACE)
            # Between two commas an element is missing, and before the end too, but in an empty array.
            if text or sign == "," or count > 1:
                yield line + _lines_before(before), text
        count += 1
        line += before.count("\n")
        if depth == 0:
            break
    if sign == "}":
        raise ArrayError(line, "the array is closed by }")
    while not held.strip(_SPACE):
        line += held.count("\n")
        held = file.read(_CHUNK)
        if not held:
            return
    raise ArrayError(line + _lines_before(held), "something stands behind the array's end")


def _lines_before(text: str) -> int:
    """Line ends before the first character that is no space."""
    return text[: len(text) - len(text.lstrip(_SPACE))].count("\n")
