"""Initializers whose numbers are made when they are written: a graph of any size takes no memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

#: Numbers that are turned or written at once: 16 MB in float32.
PIECE = 1 << 22


class Matrix(Protocol):
    """A float32 matrix that is read by rows, as an array is: ``matrix[start:end]``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, columns)``."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Some rows, float32."""


@dataclass(frozen=True)
class Run:
    """``count`` rows of a stored parameter from ``start`` in steps of ``step``; a vector is a matrix of one column."""

    array: np.ndarray
    start: int
    count: int
    step: int = 1


class StoredRows:
    """Rows of stored parameters behind each other, as one float32 matrix ``[rows, columns]`` that is read in pieces."""

    def __init__(self, runs: Sequence[Run], widen: Callable[[np.ndarray], np.ndarray]) -> None:
        self.runs = tuple(runs)
        self._widen = widen
        first = self.runs[0].array
        self.shape: tuple[int, ...] = (sum(run.count for run in self.runs), *first.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise IndexError("rows are read in steps of 1")
        parts, at = [], 0
        for run in self.runs:
            first, last = max(start - at, 0), min(stop - at, run.count)
            if first < last:
                begin = run.start + first * run.step
                parts.append(self._widen(run.array[begin : begin + (last - first - 1) * run.step + 1 : run.step]))
            at += run.count
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, *self.shape[1:]), np.float32)


class Deferred(ir.LazyTensor):
    """An initializer that holds :class:`StoredRows`, as they are or turned (``[columns, rows]``).

    It is written in pieces, and never held as a whole unless somebody asks for its numbers.
    """

    def __init__(self, rows: StoredRows, *, turned: bool, name: str) -> None:
        self.rows, self.turned = rows, turned
        shape = rows.shape[::-1] if turned else rows.shape
        super().__init__(self._whole, ir.DataType.FLOAT, ir.Shape(shape), name=name)

    def _whole(self) -> ir.TensorProtocol:
        rows = self.rows[:]
        return ir.tensor(np.ascontiguousarray(rows.T) if self.turned else rows, name=self.name)

    def tofile(self, file: Any) -> None:
        """Write the numbers at the file's position."""
        count, columns = self.rows.shape[0], math.prod(self.rows.shape[1:])
        step = max(1, PIECE // max(1, columns))
        if not self.turned:
            for start in range(0, count, step):
                file.write(np.ascontiguousarray(self.rows[start : start + step]).data)
            return
        begin = file.tell()
        for start in range(0, count, step):  # a piece of rows is a block of columns here: line by line at its place
            block = np.ascontiguousarray(self.rows[start : start + step].T)
            if step >= count:
                file.write(block.data)
                return
            for line, numbers in enumerate(block):
                file.seek(begin + 4 * (line * count + start))
                file.write(numbers.data)
        file.seek(begin + 4 * count * columns)


class _Made:
    """Arrays that come of one computation, kept until each was taken once."""

    def __init__(self, make: Callable[[], Sequence[np.ndarray]]) -> None:
        self._make = make
        self._left: dict[int, np.ndarray] = {}

    def take(self, part: int) -> np.ndarray:
        if part not in self._left:
            self._left = dict(enumerate(self._make()))
        return self._left.pop(part)


def later(
    make: Callable[[], Sequence[np.ndarray]], parts: Sequence[tuple[np.dtype[Any] | type[Any], tuple[int, ...]]]
) -> list[ir.LazyTensor]:
    """Tensors of what ``make`` returns, which is called when the first of them is written.

    Args:
        make: Gives the arrays, in the order of ``parts``.
        parts: The type and the shape of each.

    Returns:
        One tensor each. Written one behind the other, they cost one call.
    """
    made = _Made(make)

    def tensor(number: int) -> Callable[[], ir.TensorProtocol]:
        return lambda: ir.tensor(made.take(number))

    return [
        ir.LazyTensor(tensor(number), ir.DataType.from_numpy(np.dtype(dtype)), ir.Shape(shape))
        for number, (dtype, shape) in enumerate(parts)
    ]
