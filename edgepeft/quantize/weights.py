"""What recipes share: a base's matrices with the nodes that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from ..errors import BundleError
from ..graph.deferred import Deferred, StoredRows, later
from ..graph.nodes import is_quantized_linear, linear_users, weight_is_transposed
from ..graph.passes.edit import home_of

#: Smaller tables than this stay as they are: they are positions and types, and save nothing.
SMALL = 4096

#: A matrix ``[out, in]`` that is read by slices of rows.
Numbers: TypeAlias = "np.ndarray | StoredRows | FiniteRows"
#: The type and the shape of an array.
Part: TypeAlias = tuple[np.dtype[Any] | type[Any], tuple[int, ...]]


@dataclass(frozen=True)
class Matrix:
    """A float32 initializer that linear nodes multiply by, that lookups read rows of, or both (a tied head).

    ``numbers`` is ``[out, in]``, or ``[rows, width]`` for a table; ``transposed`` says that it is stored so.
    """

    value: ir.Value
    linear: tuple[ir.Node, ...]
    tables: tuple[ir.Node, ...]
    transposed: bool

    @property
    def name(self) -> str:
        """The initializer's name."""
        return self.value.name or ""

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, columns)`` of ``numbers``."""
        assert self.value.const_value is not None
        first, second = self.value.const_value.shape.numpy()
        return (first, second) if self.transposed else (second, first)

    @property
    def numbers(self) -> np.ndarray:
        """The matrix, turned where it is stored as ``[in, out]``."""
        assert self.value.const_value is not None
        array = self.value.const_value.numpy()
        return array if self.transposed else np.ascontiguousarray(array.T)

    @property
    def deferred(self) -> StoredRows | None:
        """The same where its numbers are read from their files when they are used; it is sliced as an array is."""
        tensor = self.value.const_value
        held = isinstance(tensor, Deferred) and tensor.turned != self.transposed
        return tensor.rows if isinstance(tensor, Deferred) and held else None

    def rounded(
        self, make: Callable[[Numbers], Sequence[np.ndarray]], parts: Callable[[int, int], Sequence[Part]]
    ) -> list[np.ndarray] | list[ir.LazyTensor]:
        """What ``make`` makes of the numbers: at once, or when it is written where the numbers are deferred.

        ``parts`` says the type and shape of each array for a matrix of so many rows and columns. A number that is not finite is
        an error (:class:`BundleError`) when it is read.
        """
        rows = self.deferred
        if rows is None:
            return list(make(FiniteRows(self.numbers, self.name)))
        return later(lambda: make(FiniteRows(rows, self.name)), parts(rows.shape[0], rows.shape[1]))

    def finite(self) -> np.ndarray:
        """``numbers``; :class:`BundleError` where one is infinite or no number."""
        weight = self.numbers
        if not np.isfinite(weight).all():
            raise not_finite(self.name)
        return weight


class FiniteRows:
    """Rows of a matrix; those with a number that is not finite are an error when they are read."""

    def __init__(self, rows: np.ndarray | StoredRows, name: str) -> None:
        self._rows, self._name = rows, name
        self.shape: tuple[int, int] = (rows.shape[0], rows.shape[1])

    def __getitem__(self, part: slice) -> np.ndarray:
        found = self._rows[part]
        if not np.isfinite(found).all():
            raise not_finite(self._name)
        return found


def not_finite(name: str) -> BundleError:
    """What is raised for a weight that holds NaN or infinity."""
    return BundleError(
        f"weight {name} holds numbers that are not finite: nothing near them can be stored in few bits. Look at the checkpoint"
    )


def _is_table(node: ir.Node, index: int) -> bool:
    return node.op_type == "Gather" and index == 0 and node.attributes.get_int("axis", 0) == 0


def matrices(graph: ir.Graph, slots: SlotTable, *, width: int = 1) -> Iterator[Matrix]:
    """The base's matrices that every user of theirs reads in one of the ways above; slots are left out.

    A table counts where its rows are of a multiple of ``width`` numbers and it is not ``SMALL``.
    """
    tensors = slots.tensors()
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.name in tensors or len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
            continue
        linear = [node for node in linear_users(value) if not is_quantized_linear(node)]
        tables = [node for node, index in value.uses() if _is_table(node, index)]
        tables = tables if tensor.size >= SMALL and tensor.shape.numpy()[1] % width == 0 else []
        transposed = {weight_is_transposed(node) for node in linear} or {True}
        if not (linear or tables) or len(transposed) > 1 or (tables and transposed == {False}):
            continue
        yield Matrix(value, tuple(linear), tuple(tables), transposed.pop())


def drop_unused(graph: ir.Graph, matrix: Matrix) -> None:
    """Remove the float32 matrix, and views of it, where nothing reads them any more."""
    for node, _ in list(matrix.value.uses()):
        if node.op_type == "Transpose" and not node.outputs[0].uses():
            home_of(node).remove(node, safe=True)
    if not matrix.value.uses():
        del graph.initializers[matrix.name]
