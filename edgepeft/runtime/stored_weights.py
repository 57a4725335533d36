"""Initializers of a graph as its bytes tell them: where their numbers lie, and the same numbers under another name or shape.

Field numbers are those of ``onnx.proto`` (ONNX 1.23).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..bundle.protobuf import Buffer, Field, all_fields, block, number, varint
from .twin_nodes import text

_DIMS, _TYPE, _INT64S, _NAME, _RAW, _ELSEWHERE, _WHERE = 1, 2, 7, 8, 9, 13, 14  # of TensorProto
_EXTERNAL = 1  # of TensorProto.DataLocation
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_INT64 = 7  # of TensorProto.DataType


@dataclass(frozen=True)
class StoredWeight:
    """An initializer.

    ``raw`` are its numbers' bytes where the graph holds them as they are in memory; ``place`` is their offset and length in the
    file ``location``, where they lie there. One that has neither is stored in another way, and can only be taken whole.
    """

    content: bytes
    name: str
    dims: tuple[int, ...]
    dtype: int
    raw: bytes | None
    location: str
    place: tuple[int, int] | None

    @property
    def nbytes(self) -> int:
        """What its numbers take, or about that."""
        if self.place is not None:
            return self.place[1]
        return len(self.content if self.raw is None else self.raw)

    def whole_numbers(self) -> list[int] | None:
        """Its numbers, where they are int64 in the graph; ``None`` for any other."""
        if self.dtype != _INT64 or self.place is not None:
            return None
        if self.raw is not None:
            return [int.from_bytes(self.raw[at : at + 8], "little", signed=True) for at in range(0, len(self.raw), 8)]
        found = [value for field in _fields(self.content, _INT64S) for value in _numbers(self.content, field)]
        return [value - (1 << 64) if value >> 63 else value for value in found]

    def rows_of(self, count: int) -> bool:
        """Whether its numbers are ``count`` rows behind each other, of as many bytes each."""
        known = self.raw is not None or self.place is not None
        return known and bool(self.nbytes) and self.nbytes % count == 0 and math.prod(self.dims) % count == 0

    def rows(self, start: int, stop: int, count: int, name: str) -> StoredWeight:
        """Rows ``start`` to ``stop`` of ``count``, under another name."""
        size, width = self.nbytes // count, math.prod(self.dims) // count
        dims = (stop - start, *self.dims[1:]) if self.dims[0] == count else ((stop - start) * width,)
        if self.place is not None:
            return self._as(name, dims, None, (self.place[0] + start * size, (stop - start) * size))
        assert self.raw is not None
        return self._as(name, dims, self.raw[start * size : stop * size], None)

    def view(self, name: str, dims: Sequence[int]) -> StoredWeight:
        """The same numbers under another name and shape."""
        return self._as(name, tuple(dims), self.raw, self.place)

    def _as(self, name: str, dims: tuple[int, ...], raw: bytes | None, place: tuple[int, int] | None) -> StoredWeight:
        fields = [*(number(_DIMS, dim) for dim in dims), number(_TYPE, self.dtype), block(_NAME, name)]
        if place is not None:
            told = (("location", self.location), ("offset", str(place[0])), ("length", str(place[1])))
            fields += [block(_ELSEWHERE, [block(_KEY, key), block(_VALUE, value)]) for key, value in told]
            fields.append(number(_WHERE, _EXTERNAL))
        else:
            fields.append(block(_RAW, raw or b""))
        return StoredWeight(b"".join(fields), name, dims, self.dtype, raw, self.location, place)


def read_weight(model: Buffer, field: Field) -> StoredWeight:
    """The initializer that a field of the graph holds.

    Raises :class:`IndexError` where the bytes are none.
    """
    content = bytes(model[field.first : field.end])
    dims: list[int] = []
    name, dtype, raw, told = "", 0, None, dict[str, str]()
    for inner in all_fields(content, 0, len(content)):
        if inner.number == _DIMS:
            dims += _numbers(content, inner)
        elif inner.number == _TYPE:
            (dtype,) = _numbers(content, inner)
        elif inner.number == _NAME:
            name = text(content, inner)
        elif inner.number == _RAW:
            raw = content[inner.first : inner.end]
        elif inner.number == _ELSEWHERE:
            pair = {each.number: text(content, each) for each in all_fields(content, inner.first, inner.end)}
            told[pair.get(_KEY, "")] = pair.get(_VALUE, "")
    place = None
    if told:
        raw = None
        place = (int(told.get("offset") or 0), int(told["length"])) if told.get("length") else None
    return StoredWeight(content, name, tuple(dims), dtype, raw, told.get("location", ""), place)


def _fields(content: bytes, at: int) -> list[Field]:
    return [field for field in all_fields(content, 0, len(content)) if field.number == at]


def _numbers(content: bytes, field: Field) -> list[int]:
    """The numbers of a field that holds one, or several packed."""
    found, place = [], field.first
    while place < field.end:
        value, place = varint(content, place, field.end)
        found.append(value)
    return found
