"""Nodes for weights in blocks of few bits: MatMulNBits, and GatherBlockQuantized over the same bytes for a tied embedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..errors import BundleError
from ..graph.bit_packing import unpack
from ..graph.nodes import FLOAT, constant
from ..graph.passes.edit import home_of, replace_node
from .packing import Blocks, Grid
from .weights import Matrix, drop_unused

#: Activations as int8 inside the kernels (ONNX Runtime's documentation of MatMulNBits).
ACCURACY_LEVEL = 4
#: How the initializer of a bias that rounding adds ends, and the nodes that widen the factors of a correction.
ADDED_BIAS, CORRECTION = "/added_bias", ("/first", "/second")
#: How the initializer of the offsets of blocks ends, and the node that widens it.
OFFSETS = "/offsets"
#: How a node ends that widens a constant to float32. ONNX Runtime computes it once, when the graph is opened.
WIDENED = "/widen"


@dataclass(frozen=True)
class Packed:
    """A rounded weight ``[rows, columns]`` as it lies in the file; half the memory of its numbers as bytes."""

    rows: int
    columns: int
    bits: int
    block: int
    #: uint8 ``[rows, blocks, block * bits / 8]``, float16 or float32 ``[rows, blocks]``, uint8 ``[rows, bytes]`` or ``None``.
    numbers: np.ndarray | ir.LazyTensor
    scales: np.ndarray | ir.LazyTensor
    zeros: np.ndarray | ir.LazyTensor | None

    @staticmethod
    def of(blocks: Blocks) -> Packed:
        """The bytes of ``blocks``."""
        rows, columns = blocks.q.shape
        grid = blocks.grid
        return Packed(rows, columns, grid.bits, grid.block, blocks.packed(), grid.scales, blocks.packed_zeros())

    @property
    def bytes(self) -> int:
        """Bytes in the file."""
        return self.numbers.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)

    def weight(self) -> np.ndarray:
        """The numbers that it stands for, float32 ``[rows, columns]``."""
        scales = np.asarray(self.scales)
        q = unpack(np.asarray(self.numbers), self.bits, self.rows)[:, : self.columns]
        zeros = None if self.zeros is None else unpack(np.asarray(self.zeros), self.bits, self.rows)
        return Grid(self.bits, self.block, scales, None if zeros is None else zeros[:, : scales.shape[1]]).numbers(q)


@dataclass(frozen=True)
class Correction:
    """A low-rank part of a weight that stays in floats: ``x @ first @ second`` is added to the layer's output.

    ``first`` is ``[in, rank]``, ``second`` ``[rank, out]``; they are stored in float16 and computed with in float32.
    """

    first: np.ndarray
    second: np.ndarray

    @property
    def bytes(self) -> int:
        """Bytes in the file."""
        return 2 * (self.first.size + self.second.size)


@dataclass(frozen=True)
class Rounded:
    """A rounded weight with what makes up for the rounding: a bias ``[out]`` that is free, and a low-rank correction.

    ``offsets`` ``[out, blocks]`` are added to all numbers of each block; they are stored in float16.
    """

    packed: Packed
    bias: np.ndarray | None = None
    correction: Correction | None = None
    offsets: np.ndarray | None = None

    def weight(self) -> np.ndarray:
        """The numbers that it stands for, offsets included and without the correction, float32 ``[out, in]``."""
        found = self.packed.weight()
        if self.offsets is not None:
            wide = self.offsets.astype(np.float16).astype(np.float32)
            found += np.repeat(wide, self.packed.block, axis=1)[:, : self.packed.columns]
        return found


def write(graph: ir.Graph, matrix: Matrix, rounded: Rounded) -> None:
    """Replace a matrix by its rounded form in all nodes that use it."""
    made = _Stored(graph, matrix.name, rounded)
    for node in matrix.linear:
        made.matmul(node)
    for node in matrix.tables:
        made.gather(node)
    drop_unused(graph, matrix)
    graph.opset_imports["com.microsoft"] = 1


def _wide(graph: ir.Graph, scales: ir.Value) -> ir.Value:
    """Scales as kernels read them, float32: first in the graph, since lookups of a tied head come before the head."""
    if scales.dtype != ir.DataType.FLOAT16:
        return scales
    cast = ir.node("Cast", [scales], {"to": ir.DataType.FLOAT.value}, name=f"{scales.name}{WIDENED}")
    wide = cast.outputs[0]
    wide.name, wide.type, wide.shape = f"{scales.name}/wide", FLOAT, scales.shape
    graph.insert_before(graph[0], cast)
    return wide


class _Stored:
    """The initializers of one weight, made once for all nodes that use it."""

    def __init__(self, graph: ir.Graph, name: str, rounded: Rounded) -> None:
        packed = rounded.packed
        self.graph, self.name, self.form, self.rounded = graph, name, packed, rounded
        self.numbers = constant(graph, f"{name}_q{packed.bits}", packed.numbers)
        self.scales = _wide(graph, constant(graph, f"{name}_scales", packed.scales))
        self.zeros = None if packed.zeros is None else constant(graph, f"{name}_zeros", packed.zeros)

    def matmul(self, node: ir.Node) -> None:
        """Replace a linear node, and add its correction."""
        form, bias = self.form, self._bias(node)
        inputs = [node.inputs[0], self.numbers, self.scales]
        if self.zeros is not None or bias is not None:
            inputs.append(self.zeros)
        if bias is not None:
            inputs += [None, bias]
        attributes = {
            "K": form.columns, "N": form.rows, "bits": form.bits, "block_size": form.block,
            "accuracy_level": ACCURACY_LEVEL,
        }  # fmt: skip
        new = [ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=node.name)]
        if self.rounded.offsets is not None:
            new += self._shifted(node, new[-1], self.rounded.offsets)
        if self.rounded.correction is not None:
            new += self._corrected(node, new[-1], self.rounded.correction)
        replace_node(node, new)

    def _bias(self, node: ir.Node) -> ir.Value | None:
        """The node's own bias with the rounded weight's, where there are any."""
        own, made = node.inputs[2] if len(node.inputs) > 2 else None, self.rounded.bias
        if made is None:
            return own
        if own is None:
            return constant(self.graph, f"{self.name}{ADDED_BIAS}", made)
        if own.is_initializer() and not own.is_graph_input() and own.const_value is not None:
            return constant(self.graph, f"{own.name}_rounded", own.const_value.numpy() + made)
        raise BundleError(f"{node.name} has a bias that is computed, where one was expected that is stored")

    def _corrected(self, node: ir.Node, product: ir.Node, correction: Correction) -> list[ir.Node]:
        factors, made = [], []
        for part, array in zip(CORRECTION, (correction.first, correction.second), strict=True):
            half = constant(self.graph, f"{self.name}{part}", array.astype(np.float16))
            wide = ir.node("Cast", [half], {"to": ir.DataType.FLOAT.value}, name=f"{node.name}{part}")
            wide.outputs[0].name, wide.outputs[0].type = f"{node.name}{part}_output", FLOAT
            factors.append(wide.outputs[0])
            made.append(wide)
        inner = ir.node("MatMul", [node.inputs[0], factors[0]], name=f"{node.name}/inner")
        outer = ir.node("MatMul", [inner.outputs[0], factors[1]], name=f"{node.name}/outer")
        total = ir.node("Add", [product.outputs[0], outer.outputs[0]], name=f"{node.name}/corrected")
        for each, part in ((product, "rounded"), (inner, "inner"), (outer, "outer")):
            each.outputs[0].name, each.outputs[0].type = f"{node.name}/{part}_output", FLOAT
        return [*made, inner, outer, total]

    def _shifted(self, node: ir.Node, product: ir.Node, offsets: np.ndarray) -> list[ir.Node]:
        """What adds the offset of each block times the sum of the inputs that meet it.

        Layers that read the same value get the same sums; ONNX Runtime computes equal nodes once.
        """
        half = constant(self.graph, f"{self.name}{OFFSETS}", np.ascontiguousarray(offsets.T).astype(np.float16))
        wide = ir.node("Cast", [half], {"to": ir.DataType.FLOAT.value}, name=f"{node.name}{OFFSETS}")
        sums = ir.node("MatMul", [node.inputs[0], self._blocks()], name=f"{node.name}/block_sums")
        moved = ir.node("MatMul", [sums.outputs[0], wide.outputs[0]], name=f"{node.name}/moved")
        total = ir.node("Add", [product.outputs[0], moved.outputs[0]], name=f"{node.name}/shifted")
        for each, part in ((product, "on_grid"), (wide, "offsets"), (sums, "sums"), (moved, "moved")):
            each.outputs[0].name, each.outputs[0].type = f"{node.name}/{part}_output", FLOAT
        return [wide, sums, moved, total]

    def _blocks(self) -> ir.Value:
        """Which block a column is in, as zeros and ones ``[in, blocks]``: one for all layers of a width.

        A product with it is twice as fast for one token as a ReduceSum over a view of blocks (ONNX Runtime 1.32).
        """
        columns, block = self.form.columns, self.form.block
        which = np.repeat(np.eye(columns // block, dtype=np.uint8), block, axis=0)
        stored = constant(self.graph, f"edgepeft.blocks_{columns}_{block}", which)
        known = next(iter(stored.uses()), None)
        if known is not None:
            return known.node.outputs[0]
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name=f"{stored.name}{WIDENED}")
        wide = cast.outputs[0]
        wide.name, wide.type, wide.shape = f"{stored.name}/wide", FLOAT, stored.shape
        self.graph.insert_before(self.graph[0], cast)
        return wide

    def gather(self, node: ir.Node) -> None:
        """Replace a table's lookup; the table is the head's weight under another shape."""
        flat = constant(self.graph, "edgepeft.table_shape", np.array([0, -1], np.int64))
        view = ir.node("Reshape", [self.numbers, flat], name=f"{self.name}/table")
        view.outputs[0].name = f"{self.name}/table_output"
        view.outputs[0].type = self.numbers.type
        home_of(node).insert_before(node, view)
        inputs = [view.outputs[0], node.inputs[1], self.scales]
        if self.zeros is not None:
            inputs.append(self.zeros)
        attributes = {"bits": self.form.bits, "block_size": self.form.block, "gather_axis": 0, "quantize_axis": 1}
        new = ir.node("GatherBlockQuantized", inputs, attributes, domain="com.microsoft", name=node.name)
        replace_node(node, [new])
