"""w8a16: weights in 8 bits per output channel, activations in 16 bits with ranges measured beforehand; for NPUs.

Written as QuantizeLinear and DequantizeLinear around each linear layer (QDQ), which is how providers with integer hardware are
told of scales. They want them as constants, so ranges are measured on texts (calibration). Slots, and all that is not a
linear layer or a table, stay in floats. ONNX Runtime's CPU has no kernels for 16 bits and computes the same in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from ..graph.nodes import FLOAT, constant
from ..graph.passes.edit import insert_behind, replace_node
from .weights import Matrix, drop_unused, matrices

#: Smallest and largest number of a value, by its name in the fp32 graph.
Ranges = Mapping[str, tuple[float, float]]

#: Steps of an activation's range, and of a weight's on either side of zero.
TOP, WEIGHT_TOP = 65_535, 127
#: Tables are uint8 around this zero point: ONNX Runtime's CPU then looks bytes up, where it unpacks a whole int8 table first.
TABLE_ZERO = 128
#: Ranges are taken this much wider than measured: other texts and adapters added later go beyond, and what it costs (0.6 of
#: 16 bits) is far below what 8 bits leave of the weights.
MARGIN = 1.5


def with_extremes(source: Path, target: Path, slots: SlotTable) -> tuple[str, ...]:
    """Write the fp32 graph with the smallest and largest number of every activation to be quantized as further outputs.

    Returns the activations' names; the outputs of one are its name with ``/min`` and ``/max``, scalars.
    """
    model = ir.load(source)
    graph = model.graph
    watched: dict[str, ir.Value] = {}
    for matrix in matrices(graph, slots):
        for node in matrix.linear:
            for value in (node.inputs[0], node.outputs[0]):
                assert value is not None
                watched[value.name or ""] = value
    for name, value in watched.items():
        for op, part in (("ReduceMin", "min"), ("ReduceMax", "max")):
            node = ir.node(op, [value], {"keepdims": 0}, name=f"{name}/{part}")
            output = node.outputs[0]
            output.name, output.type, output.shape = f"{name}/{part}", FLOAT, ir.Shape([])
            graph.append(node)
            graph.outputs.append(output)
    ir.save(model, target, external_data=f"{target.name}_data")
    return tuple(watched)


def quantize_symmetric(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round ``weight`` ``[out, in]`` to int8 in -127 … 127 with one scale for each output channel: ``q * scale``.

    Unlike :func:`~edgepeft.quantize.int8.quantize_channels` all of 8 bits are used: nothing here adds up in 16.
    """
    scales = np.maximum(np.abs(weight).max(1) / WEIGHT_TOP, np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(weight / scales[:, None]).astype(np.int8), scales


def round_symmetric(weight: np.ndarray) -> np.ndarray:
    """``weight`` ``[out, in]`` with the numbers that :func:`quantize_symmetric` leaves, float32."""
    quantized, scales = quantize_symmetric(weight)
    return quantized * scales[:, None]


class _Static:
    """The edits of one graph."""

    def __init__(self, graph: ir.Graph, ranges: Ranges) -> None:
        self.graph = graph
        self._ranges = ranges
        self._inputs: dict[ir.Value, ir.Value] = {}
        # ONNX has 16-bit numbers there since opset 21; below it ONNX Runtime's own operators of the same names do.
        self._domain = "" if graph.opset_imports.get("", 0) >= 21 else "com.microsoft"
        if self._domain:
            graph.opset_imports["com.microsoft"] = 1

    def quantize(self, matrix: Matrix) -> None:
        """Linear nodes between QDQ pairs over an int8 weight; lookups of int8 rows. A tied head's weight is stored twice."""
        weight, scale = quantize_symmetric(matrix.finite())
        if matrix.linear:
            self._linears(matrix, weight, scale)
        if matrix.tables:
            self._lookups(matrix, weight, scale)
        drop_unused(self.graph, matrix)

    def _linears(self, matrix: Matrix, weight: np.ndarray, scale: np.ndarray) -> None:
        name = matrix.name
        stored = constant(self.graph, f"{name}_int8", np.ascontiguousarray(weight.T))
        scales = constant(self.graph, f"{name}_scales", scale)
        zeros = constant(self.graph, f"{name}_zeros", np.zeros(len(scale), np.int8))
        for node in matrix.linear:
            self._linear(node, stored, scales, zeros)

    def _lookups(self, matrix: Matrix, rows: np.ndarray, scale: np.ndarray) -> None:
        """Rows as uint8 between QDQ pairs of scale 1, which providers look up as they are, times each row's own scale."""
        name = matrix.name
        stored = constant(self.graph, f"{name}_uint8", (rows.astype(np.int16) + TABLE_ZERO).astype(np.uint8))
        scales = constant(self.graph, f"{name}_row_scales", scale[:, None])
        one = constant(self.graph, "edgepeft.w8a16.one", np.array(1, np.float32))
        zero = constant(self.graph, "edgepeft.w8a16.table_zero", np.array(TABLE_ZERO, np.uint8))
        for node in matrix.tables:
            ids = node.inputs[1]
            assert ids is not None
            table = _node("DequantizeLinear", [stored, one, zero], f"{node.name}/table", FLOAT)
            found = _node("Gather", [table.outputs[0], ids], f"{node.name}/rows", FLOAT)
            found.outputs[0].shape = node.outputs[0].shape
            pair = _pair(found.outputs[0], one, zero, node.name or "")
            scaled = _node("Gather", [scales, ids], f"{node.name}/scale", FLOAT)
            product = _node("Mul", [pair[-1].outputs[0], scaled.outputs[0]], f"{node.name}/scaled", FLOAT)
            replace_node(node, [table, found, *pair, scaled, product])

    def _linear(self, node: ir.Node, stored: ir.Value, scales: ir.Value, zeros: ir.Value) -> None:
        x, y = node.inputs[0], node.outputs[0]
        assert x is not None
        weight = _node("DequantizeLinear", [stored, scales, zeros], f"{node.name}/weight", FLOAT, axis=1)
        inputs = [self._rounded(x), weight.outputs[0], *node.inputs[2:]]
        # The weight is stored as [in, out] now; alpha and beta are 1 in what counts as linear.
        product = ir.node(node.op_type, inputs, name=f"{node.name}/int8")
        product.outputs[0].name = f"{node.name}/int8_output"
        product.outputs[0].type, product.outputs[0].shape = y.type, y.shape
        pair = self._measured_pair(product.outputs[0], y.name or "", f"{node.name}/out")
        replace_node(node, [weight, product, *pair])

    def _rounded(self, x: ir.Value) -> ir.Value:
        """``x`` through a QDQ pair, made once however many matrices multiply it."""
        if x not in self._inputs:
            pair = self._measured_pair(x, x.name or "", f"{x.name}/in")
            insert_behind(x, pair)
            self._inputs[x] = pair[-1].outputs[0]
        return self._inputs[x]

    def _measured_pair(self, value: ir.Value, measured: str, prefix: str) -> list[ir.Node]:
        """The pair for a value of the range that was measured under a name."""
        scale, zero = scale_of(*self._ranges[measured])
        numbers = (constant(self.graph, f"{prefix}_scale", scale), constant(self.graph, f"{prefix}_zero", zero))
        return _pair(value, *numbers, prefix, self._domain)


def scale_of(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale (float32) and zero point (uint16), scalars, for numbers measured in ``low`` … ``high``; zero is exact."""
    low, high = min(low, 0.0) * MARGIN, max(high, 0.0) * MARGIN
    scale = max((high - low) / TOP, float(np.finfo(np.float32).tiny))
    return np.array(scale, np.float32), np.array(round(-low / scale), np.uint16)


def _pair(value: ir.Value, scale: ir.Value, zero: ir.Value, prefix: str, domain: str = "") -> list[ir.Node]:
    """``value`` rounded to the zero point's type, and as a float again."""
    assert zero.type is not None
    first = _node("QuantizeLinear", [value, scale, zero], f"{prefix}/quantized", zero.type, domain)
    second = _node("DequantizeLinear", [first.outputs[0], scale, zero], f"{prefix}/rounded", FLOAT, domain)
    for node in (first, second):
        node.outputs[0].shape = value.shape
    return [first, second]


def _node(
    op: str, inputs: list[ir.Value], name: str, dtype: ir.TypeProtocol, domain: str = "", **attributes: int
) -> ir.Node:
    node = ir.node(op, inputs, attributes, domain=domain, name=name)
    node.outputs[0].name, node.outputs[0].type = f"{name}_output", dtype
    return node


def w8a16(source: Path, target: Path, slots: SlotTable, *, ranges: Ranges) -> None:
    """Linear layers with weights in 8 and activations in 16 bits, tables in 8 bits; all else in fp32."""
    model = ir.load(source)
    edits = _Static(model.graph, ranges)
    for matrix in matrices(model.graph, slots):
        edits.quantize(matrix)
    ir.save(model, target, external_data=f"{target.name}_data")
