"""int8: weights in 8 bits per output channel, activations in 8 bits per token, quantized at run time.

One scale for a whole batch, as ``DynamicQuantizeLinear`` has, lets the largest activation of any row round all others; with
one for each token a row's result also does not depend on what else is in its batch. On MiniLM that halves the error.
Only operators of the ONNX standard are used, so that every CPU, browsers included, runs the same integers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from ..graph.nodes import constant
from ..graph.passes.edit import insert_behind, replace_node
from .pieces import in_pieces
from .weights import Matrix, Numbers, drop_unused, matrices

#: Activations are uint8 around this zero point, -127 … 127 from it.
ZERO, TOP = 128, 127
#: Largest sum of two neighbouring weights of one sign. Kernels for x86 without VNNI add two products of uint8 and int8 in
#: 16 bits that saturate (``vpmaddubsw``; ONNX Runtime's documentation of ``reduce_range``): 255 * 128 stays below 32,767.
PAIR = 128


def quantize_channels(weight: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Round ``weight`` ``[out, in]`` to int8 with one scale for each output channel, so that no kernel saturates.

    Returns int8 ``[out, in]`` and float32 scales ``[out]``: a number is ``q * scale``. The range is -127 … 127, less where
    two neighbours along ``in`` of one sign would add up to more than ``PAIR``. For normally distributed weights that
    leaves 7.6 bits, where the usual remedy (``reduce_range``) leaves 7.
    """
    rows, columns = weight.shape
    quantized = np.empty((rows, columns), np.int8)
    scales = np.empty(rows, np.float32)

    def work(start: int, stop: int) -> None:
        part = np.ascontiguousarray(weight[start:stop], np.float32)
        even, odd = part[:, ::2], part[:, 1::2]
        if columns % 2:
            odd = np.pad(odd, ((0, 0), (0, 1)))
        # Rounding adds half a unit to each of the two at most, so the numbers themselves may add up to one less.
        above = np.maximum(even, 0) + np.maximum(odd, 0)
        below = np.maximum(-even, 0) + np.maximum(-odd, 0)
        together = np.maximum(above, below, out=above).max(1) / (PAIR - 1)
        scale = np.maximum(together, np.abs(part).max(1) / TOP)
        scales[start:stop] = scale
        quantized[start:stop] = np.rint(part / np.where(scale == 0, 1, scale)[:, None])

    in_pieces(rows, columns, work)
    return quantized, scales


def round_channels(weight: np.ndarray) -> np.ndarray:
    """``weight`` ``[out, in]`` with the numbers that :func:`quantize_channels` leaves, float32."""
    quantized, scales = quantize_channels(weight)
    return quantized * scales[:, None]


class _Activations:
    """Activations in 8 bits, once for each value however many matrices multiply it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._made: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def quantized(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """``x`` ``[..., in]`` as uint8, and the scale of each token ``[..., 1]``."""
        if x not in self._made:
            self._made[x] = self._quantize(x)
        return self._made[x]

    def _quantize(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        nodes: list[ir.Node] = []

        def add(op: str, part: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
            nodes.append(ir.node(op, inputs, attributes, name=f"{x.name}/int8/{part}"))
            output = nodes[-1].outputs[0]
            output.name = f"{x.name}/int8/{part}_output"
            output.type = ir.TensorType(ir.DataType.UINT8 if op == "QuantizeLinear" else ir.DataType.FLOAT)
            return output

        size = add("Abs", "size", x)
        if self.graph.opset_imports.get("", 0) >= 18:
            largest = add("ReduceMax", "largest", size, self._constant("last_axis", np.array([-1])), keepdims=1)
        else:
            largest = add("ReduceMax", "largest", size, axes=[-1], keepdims=1)
        unit = add("Mul", "unit", largest, self._constant("unit", np.float32(1 / TOP)))
        scale = add("Max", "scale", unit, self._constant("least", np.float32(1e-30)))  # a token of zeros stays zeros
        scaled = add("Div", "scaled", x, scale)
        one, zero = self._constant("one", np.float32(1)), self.zero
        quantized = add("QuantizeLinear", "quantized", scaled, one, zero)
        insert_behind(x, nodes)
        return quantized, scale

    @property
    def zero(self) -> ir.Value:
        """The zero point, a scalar."""
        return self._constant("zero", np.uint8(ZERO))

    def _constant(self, name: str, number: np.generic | np.ndarray) -> ir.Value:
        return constant(self.graph, f"edgepeft.int8.{name}", np.asarray(number))


def _multiply(graph: ir.Graph, node: ir.Node, weight: ir.Value, scales: ir.Value, activations: _Activations) -> None:
    """Replace a linear node by integers: ``y = (xq - zero) W * weight scale * token scale (+ bias)``."""
    x = node.inputs[0]
    assert x is not None
    quantized, scale = activations.quantized(x)
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    nodes: list[ir.Node] = []

    def add(op: str, part: str, inputs: list[ir.Value], dtype: ir.DataType, **attributes: int) -> ir.Value:
        nodes.append(ir.node(op, inputs, attributes, name=f"{node.name}/{part}" if part else node.name))
        output = nodes[-1].outputs[0]
        output.name, output.type = f"{node.name}/{part}_output", ir.TensorType(dtype)
        output.shape = node.outputs[0].shape
        return output

    floats = ir.DataType.FLOAT
    found = add("MatMulInteger", "int8", [quantized, weight, activations.zero], ir.DataType.INT32)
    found = add("Cast", "float", [found], floats, to=int(floats))
    found = add("Mul", "channels", [found, scales], floats)
    found = add("Mul", "tokens" if bias is not None else "", [found, scale], floats)
    if bias is not None:
        add("Add", "", [found, bias], floats)
    replace_node(node, nodes)


def _look_up(graph: ir.Graph, node: ir.Node, table: ir.Value, name: str, scales: np.ndarray | ir.LazyTensor) -> None:
    """Replace a lookup of float rows by one of int8 rows and their scales ``[rows, 1]``, the constant ``name``."""
    ids = node.inputs[1]
    rows = ir.node("Gather", [table, ids], name=f"{node.name}/rows")
    cast = ir.node("Cast", [rows.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{node.name}/float")
    column = constant(graph, name, scales)
    scale = ir.node("Gather", [column, ids], name=f"{node.name}/scale")
    product = ir.node("Mul", [cast.outputs[0], scale.outputs[0]], name=node.name)
    for each, dtype in ((rows, ir.DataType.INT8), (cast, ir.DataType.FLOAT), (scale, ir.DataType.FLOAT)):
        each.outputs[0].name, each.outputs[0].type = f"{each.name}_output", ir.TensorType(dtype)
    replace_node(node, [rows, cast, scale, product])


def _rounded(numbers: Numbers, *, turned: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales ``[out]``, int8 ``[out, in]`` (``turned``: ``[in, out]``), and the scales once more ``[out, 1]``."""
    weight, scale = quantize_channels(numbers)
    return scale, np.ascontiguousarray(weight.T) if turned else weight, scale.reshape(-1, 1)


def _quantize(graph: ir.Graph, matrix: Matrix, activations: _Activations) -> None:
    scale, weight, column = matrix.rounded(
        lambda numbers: _rounded(numbers, turned=not matrix.tables),
        lambda rows, columns: [
            (np.float32, (rows,)),
            (np.int8, (rows, columns) if matrix.tables else (columns, rows)),
            (np.float32, (rows, 1)),
        ],
    )
    scales = constant(graph, f"{matrix.name}_scales", scale)
    if matrix.tables:
        stored = constant(graph, f"{matrix.name}_int8", weight)
        for node in matrix.tables:
            _look_up(graph, node, stored, f"{scales.name}_column", column)
        if matrix.linear:  # a tied head: stored once, turned when the graph is opened
            turned = ir.node("Transpose", [stored], {"perm": [1, 0]}, name=f"{matrix.name}_int8/head")
            turned.outputs[0].name, turned.outputs[0].type = f"{matrix.name}_int8/head_output", stored.type
            insert_behind(stored, [turned])
            stored = turned.outputs[0]
    else:
        stored = constant(graph, f"{matrix.name}_int8", weight)
    for node in matrix.linear:
        _multiply(graph, node, stored, scales, activations)
    if not scales.uses():
        del graph.initializers[scales.name or ""]
    drop_unused(graph, matrix)


def int8(source: Path, target: Path, slots: SlotTable) -> None:
    """Linear layers and embeddings in 8 bits, activations in 8 bits per token at run time; all else in fp32."""
    model = ir.load(source)
    int8_graph(model, slots)
    ir.save(model, target, external_data=f"{target.name}_data")


def int8_graph(model: ir.Model, slots: SlotTable) -> None:
    """Do so in a graph; numbers that are deferred are rounded when they are written."""
    activations = _Activations(model.graph)
    for matrix in matrices(model.graph, slots):
        _quantize(model.graph, matrix, activations)
