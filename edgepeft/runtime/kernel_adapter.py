"""An adapter's factors in one piece of memory, as the kernels read them (targets/kernels/src/adapter.hpp).

A twin takes an adapter as one input in place of two for each slot: ONNX Runtime looks at every input by name at each run. What is
not read is not there: of B's rows only the parts of a packed matrix in which they have numbers, and no ranks that have none.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

import numpy as np

from ..bundle.slots import LinearSlot
from ..errors import InputError

Factors = Literal["fp32", "fp16", "int8", "auto"]

#: The layout's version, its unit, and the most parts of a slot: ``kLayout``, ``kUnit`` and ``kMostParts`` of adapter.hpp.
LAYOUT, UNIT, MOST_PARTS = 1, 64, 64
_TYPES: dict[Factors, tuple[int, type[np.generic]]] = {
    "fp32": (0, np.float32),
    "fp16": (1, np.float16),
    "int8": (2, np.int8),
}
_SMALLEST_FIRST: tuple[Factors, ...] = ("int8", "fp16")
_HEADER = np.dtype(
    [("magic", "S8"), ("layout", np.uint32), ("type", np.uint32), ("slots", np.uint32), ("unused", np.uint32)]
)
_RECORD = np.dtype([(name, np.uint32) for name in ("begin", "ranks", "b", "order", "scale", "unused")])
_ENTRY = np.dtype(
    [
        *((name, np.uint32) for name in ("in", "out", "rank", "parts", "a", "more")),
        ("first", _RECORD),
        ("unused", np.uint32, 4),
    ]
)
#: Columns of A are a multiple of this: a vector's least width.
_RANKS = 4
#: Bytes of a large page of x86-64, and of 64-bit Arm with small pages of 4 KB. A token reads an adapter once from far away, each of
#: 4 KB through a page table that lies there too: in large pages 64 KB are read in 3.6 µs in place of 5.5.
_LARGE_PAGE = 2**21
#: The most that rounding to int8 may move a slot's change, as a share of it: some 1.1 % where factors are normally distributed.
INT8_LIMIT = 0.04


def pack_adapter(tensors: Mapping[str, np.ndarray], slots: Sequence[LinearSlot], factors: Factors) -> np.ndarray:
    """An adapter in one piece.

    Args:
        tensors: Slot tensors by name, each for one adapter (``adapter_batch`` 1); of a slot that the adapter does not edit none.
        slots: The twin's slots, in their order.
        factors: How A and B are stored. ``"auto"``: in int8 where that moves no slot's change by more than :data:`INT8_LIMIT`, else
            in float16 where that holds their numbers, else in float32.

    Returns:
        Bytes ``[1, size]``, uint8, at a multiple of 64 bytes.

    Raises:
        InputError: A factor holds what this type cannot (named).
    """
    return _pack({name: array[0] for name, array in tensors.items()}, slots, factors)


def pack_rows(
    tensors: Mapping[str, np.ndarray], slots: Sequence[LinearSlot], factors: Factors
) -> tuple[np.ndarray, np.ndarray]:
    """The same of tensors in which each row of a batch has its own: the pieces behind one another, and where each row's begins."""
    batch = max(tensors[slot.b].shape[0] for slot in slots if slot.b in tensors)
    each = [
        _pack({name: array[min(row, len(array) - 1)] for name, array in tensors.items()}, slots, factors)
        for row in range(batch)
    ]
    return join_adapters(each, range(batch))


def join_adapters(pieces: Sequence[np.ndarray], rows: Sequence[int | None]) -> tuple[np.ndarray, np.ndarray]:
    """Adapters in one piece, for a batch: their tables, and then slot by slot what each of them has for it.

    A token reads all of a slot's factors one after another, so they lie in that order: the processor foresees what comes next.

    Args:
        pieces: What :func:`pack_adapter` made of each, for the same slots.
        rows: The number of each row's piece; ``None``: it has none.

    Returns:
        Bytes ``[1, size]``, and int64 ``[rows]``: where each row's adapter begins, -1 for none.
    """
    slots = int(pieces[0].reshape(-1)[: _HEADER.itemsize].view(_HEADER)["slots"][0])
    table = 1 + slots
    blocks = [_blocks(piece.reshape(-1), table) for piece in pieces]
    whole = _aligned(sum(piece.size for piece in pieces))
    for number, piece in enumerate(pieces):
        whole[number * table * UNIT :][: table * UNIT] = piece[0, : table * UNIT]
    place = len(pieces) * table
    for slot in range(slots):
        for number, piece in enumerate(pieces):
            begin, end = blocks[number][slot : slot + 2].tolist()
            if begin < end:
                whole[place * UNIT :][: (end - begin) * UNIT] = piece[0, begin * UNIT : end * UNIT]
                _move(whole[number * table * UNIT :], slot, place - number * table - begin)
                place += end - begin
    starts = [number * table * UNIT for number in range(len(pieces))]
    return whole[None], np.array([-1 if row is None else starts[row] for row in rows], np.int64)


def _blocks(content: np.ndarray, table: int) -> np.ndarray:
    """Where what each slot points to begins, in units, and where the last one's ends; A is the first of a slot."""
    entries = content[UNIT : table * UNIT].view(_ENTRY)
    found = np.append(entries["a"].astype(np.int64), content.size // UNIT)
    for slot in reversed(range(len(entries))):
        if not entries["rank"][slot]:
            found[slot] = found[slot + 1]
    return found


def _move(content: np.ndarray, slot: int, by: int) -> None:
    """Change what a slot's line of the table and its records say, after what they point to was moved by so many units."""
    entry = content[(1 + slot) * UNIT :][:UNIT].view(_ENTRY)
    entry["a"] += np.uint32(by)
    if entry["more"][0]:
        entry["more"] += np.uint32(by)
    records = [entry["first"]]
    if entry["parts"][0] > 1:
        at, count = int(entry["more"][0]) * UNIT, int(entry["parts"][0]) - 1
        records.append(content[at : at + count * _RECORD.itemsize].view(_RECORD))
    for each in records:
        for name in ("b", "order", "scale"):
            each[name][each[name] > 0] += np.uint32(by)


def part_offsets(slot: LinearSlot) -> list[int]:
    """The first column of each part that is looked at by itself; one part where they do not cover the slot."""
    offsets = sorted({part.offset for part in slot.parts})
    return offsets if offsets[0] == 0 and len(offsets) <= MOST_PARTS else [0]


def _pack(tensors: Mapping[str, np.ndarray], slots: Sequence[LinearSlot], factors: Factors) -> np.ndarray:
    if factors == "auto":
        for smaller in _SMALLEST_FIRST:
            with suppress(InputError):  # the next one holds more
                return _pack(tensors, slots, smaller)
        return _pack(tensors, slots, "fp32")
    kind, _ = _TYPES[factors]
    entries = np.zeros(len(slots), _ENTRY)
    content = _Content(1 + len(slots))
    for place, slot in enumerate(slots):
        if slot.b in tensors:
            _pack_slot(entries[place : place + 1], content, tensors[slot.a], tensors[slot.b], slot, factors)
    header = np.zeros(1, _HEADER)
    header["magic"], header["layout"], header["type"], header["slots"] = b"EDGEPEFT", LAYOUT, kind, len(slots)
    return content.written(header, entries)[None]


class _Content:
    """Arrays behind a table of ``units``, each at a multiple of the unit."""

    def __init__(self, units: int) -> None:
        self._units = units
        self._arrays: list[tuple[int, np.ndarray]] = []

    def add(self, array: np.ndarray) -> int:
        """The place of an array, in units."""
        place = self._units
        self._arrays.append((place, np.ascontiguousarray(array)))
        self._units += -(-array.nbytes // UNIT)
        return place

    def written(self, header: np.ndarray, table: np.ndarray) -> np.ndarray:
        """All of it; padding is zero."""
        whole = _aligned(self._units * UNIT)
        whole[...] = 0
        for place, array in [(0, header), (1, table), *self._arrays]:
            content = array.reshape(-1).view(np.uint8)
            whole[place * UNIT : place * UNIT + content.size] = content
        return whole


def _aligned(size: int) -> np.ndarray:
    """Memory at a multiple of the unit; in large pages where it fills some and the system has them."""
    large = size // _LARGE_PAGE * _LARGE_PAGE
    if not large or not hasattr(mmap, "MADV_HUGEPAGE"):
        buffer = np.empty(size + UNIT, np.uint8)
        start = -buffer.ctypes.data % UNIT
        return buffer[start : start + size]
    # What is not touched takes no memory, so the whole pages lie where large ones can, and the rest in small ones.
    mapped = mmap.mmap(-1, size + _LARGE_PAGE)
    buffer = np.frombuffer(mapped, np.uint8)
    start = -buffer.ctypes.data % _LARGE_PAGE
    with suppress(OSError):  # a kernel without large pages has them small
        mapped.madvise(mmap.MADV_HUGEPAGE, start, large)
    return buffer[start : start + size]


def _pack_slot(
    entry: np.ndarray, content: _Content, a: np.ndarray, b: np.ndarray, slot: LinearSlot, factors: Factors
) -> None:
    """One slot's line of the table, and what it points to; ``a`` is ``[in, rank]``, ``b`` ``[rank, out]``."""
    begins = part_offsets(slot)
    ends = [*begins[1:], b.shape[1]]
    filled = np.stack([b[:, begin:end].any(axis=1) for begin, end in zip(begins, ends, strict=True)])
    kept = np.flatnonzero(filled.any(axis=0))
    if not len(kept):
        return
    a, b, filled = a[:, kept], b[kept], filled[:, kept]
    check = _Rounding(slot, a, b)
    stored_a, scale_a = _stored(a, 0, factors, slot.a)
    check.see_a(stored_a, scale_a)
    padded = np.zeros((a.shape[0], -(-len(kept) // _RANKS) * _RANKS), stored_a.dtype)
    padded[:, : len(kept)] = stored_a
    entry["in"], entry["out"], entry["rank"], entry["parts"] = a.shape[0], b.shape[1], padded.shape[1], len(begins)
    entry["a"] = content.add(padded)
    records = np.zeros(len(begins), _RECORD)
    for record, begin, end, ranks in zip(records, begins, ends, filled, strict=True):
        order = np.flatnonzero(ranks)
        record["begin"], record["ranks"] = begin, len(order)
        if not len(order):
            continue
        stored_b, scale_b = _stored(b[order, begin:end], 1, factors, slot.b)
        check.see_b(order, begin, stored_b, scale_b)
        record["b"] = content.add(stored_b)
        if len(order) < len(kept):
            record["order"] = content.add(order.astype(np.uint32))
        if factors == "int8":
            record["scale"] = content.add((scale_a[order] * scale_b).astype(np.float32))
    entry["first"] = records[0]
    if len(records) > 1:
        entry["more"] = content.add(records[1:])
    if factors == "int8":
        check.judge()


def _stored(factor: np.ndarray, axis: int, factors: Factors, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A factor in its type, and a scale for each rank, whose numbers lie along ``axis``.

    Raises:
        InputError: Numbers that the type cannot hold.
    """
    if factors == "fp32":
        return factor.astype(np.float32, copy=False), np.ones(0)
    if factors == "fp16":
        return as_half(factor, name), np.ones(0)
    if not np.isfinite(factor).all():
        raise InputError(
            f"{name} holds numbers that are not finite, which factors='int8' cannot; open with factors='fp32'"
        )
    scale = np.abs(factor).max(axis=axis, keepdims=True) / np.float32(127)
    whole = np.divide(factor, scale, out=np.zeros_like(factor), where=scale > 0)
    return np.rint(whole).astype(np.int8), scale.reshape(-1)


def as_half(array: np.ndarray, name: str) -> np.ndarray:
    """A factor in float16; :class:`InputError` where it holds numbers too large for it."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all() and np.isfinite(array).all():
        raise InputError(
            f"{name} holds {np.abs(array).max():.3g}, too large for factors='fp16'; open with factors='fp32'"
        )
    return half


class _Rounding:
    """How far rounding to int8 moves a slot's change ``A B``: the root of the mean square of its ranks' terms.

    A rank's term is the product of a column of A and a row of B, and moves by the sum of both factors' relative errors at most.
    """

    def __init__(self, slot: LinearSlot, a: np.ndarray, b: np.ndarray) -> None:
        self._name, self._a, self._b = slot.name, a, b
        self._size_a = np.square(a, dtype=np.float64).sum(axis=0)
        self._size_b = np.square(b, dtype=np.float64).sum(axis=1)
        self._error_a, self._error_b = np.zeros_like(self._size_a), np.zeros_like(self._size_b)

    def see_a(self, stored: np.ndarray, scale: np.ndarray) -> None:
        """What became of A."""
        if scale.size:
            self._error_a = np.square(stored * scale - self._a, dtype=np.float64).sum(axis=0)

    def see_b(self, ranks: np.ndarray, begin: int, stored: np.ndarray, scale: np.ndarray) -> None:
        """What became of some of B's rows in a part."""
        if scale.size:
            was = self._b[ranks, begin : begin + stored.shape[1]]
            self._error_b[ranks] += np.square(stored * scale[:, None] - was, dtype=np.float64).sum(axis=1)

    def judge(self) -> None:
        """Raise :class:`InputError` where it is more than :data:`INT8_LIMIT` of the change."""
        whole = float((self._size_a * self._size_b).sum())
        moved = float((self._error_a * self._size_b + self._size_a * self._error_b).sum())
        share = (moved / whole) ** 0.5 if whole else 0.0
        if share > INT8_LIMIT:
            raise InputError(
                f"factors='int8' would move the change of slot {self._name} by {share:.1%} (at most {INT8_LIMIT:.0%}): a few of "
                "its numbers are far larger than the others of their rank. Open with factors='fp16'."
            )
