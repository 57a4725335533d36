"""Protobuf's wire format, read and written without its library, which devices do not have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

#: Bytes, or a map of a file: what can be indexed and sliced.
Buffer = Any

VARINT, LENGTH_DELIMITED = 0, 2


class Field(NamedTuple):
    """One field of a message: its number and kind, where its tag begins, and where what it holds begins and ends."""

    number: int
    kind: int
    start: int
    first: int
    end: int


def all_fields(content: Buffer, start: int, end: int) -> Iterator[Field]:
    """Every field of the message between two places.

    Raises:
        IndexError: The bytes are no protobuf message.
    """
    place = start
    while place < end:
        begin = place
        tag, place = varint(content, place, end)
        kind, first = tag & 7, place
        if kind == LENGTH_DELIMITED:
            length, first = varint(content, place, end)
            if length > end - first:
                raise IndexError("a field is longer than what holds it")
            place = first + length
        elif kind == VARINT:
            _, place = varint(content, place, end)
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise IndexError(f"a field is of kind {kind}, which ONNX does not use")
        yield Field(tag >> 3, kind, begin, first, place)
    if place != end:
        raise IndexError("a field is longer than what holds it")


def fields(content: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, first byte and end of each length-delimited field between two places."""
    for field in all_fields(content, start, end):
        if field.kind == LENGTH_DELIMITED:
            yield field.number, field.first, field.end


def varint(content: Buffer, place: int, end: int) -> tuple[int, int]:
    """A number and the place behind it; :class:`IndexError` where it does not end."""
    value = shift = 0
    while place < end and shift < 70:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise IndexError("a number does not end")


def written(value: int) -> bytes:
    """A number of at least 0 as a varint."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def number(field: int, value: int) -> bytes:
    """A field that holds a number of at least 0."""
    return written(field << 3 | VARINT) + written(value)


def block(field: int, content: bytes | str | Iterable[bytes]) -> bytes:
    """A field that holds bytes, a text or a message of these fields."""
    held = (
        content.encode() if isinstance(content, str) else content if isinstance(content, bytes) else b"".join(content)
    )
    return written(field << 3 | LENGTH_DELIMITED) + written(len(held)) + held
