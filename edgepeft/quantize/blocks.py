"""Four bits in blocks: weights for MatMulNBits and GatherBlockQuantized, embedding and tied head stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from ..graph.surgery import linear_users, weight_is_transposed

BLOCK = 32
#: Activations as int8 inside the kernels (ONNX Runtime's documentation of MatMulNBits).
ACCURACY_LEVEL = 4
#: Smaller tables than this stay as they are: they are positions and types, and save nothing.
_SMALL = 4096


def quantize_blocks(weight: np.ndarray, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Round ``weight`` ``[rows, columns]`` to 4 bits with one scale for each ``block`` columns of a row.

    Symmetric: a number is ``(q - 8) * scale`` with ``q`` in 0 … 15, and the number of largest magnitude is met exactly
    (ONNX Runtime's ``quantize_matmul_4bits``). Returns uint8 ``[rows, blocks, block / 2]``, the even column in the low
    half of a byte, and float32 scales ``[rows, blocks]``.
    """
    rows, columns = weight.shape
    blocks = -(-columns // block)
    packed = np.empty((rows, blocks, block // 2), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    step = max(1, (1 << 22) // max(1, columns))  # a few MB at a time: a whole head would take three times its size
    for start in range(0, rows, step):
        part = weight[start : start + step].astype(np.float32, copy=False)
        if blocks * block != columns:
            part = np.pad(part, ((0, 0), (0, blocks * block - columns)))
        part = part.reshape(len(part), blocks, block)
        largest = np.take_along_axis(part, np.abs(part).argmax(axis=2)[:, :, None], axis=2)
        scale = largest / -8
        with np.errstate(divide="ignore", invalid="ignore"):
            quantized = np.where(scale == 0, 0, np.rint(part / scale))
        nibbles = (np.clip(quantized, -8, 7) + 8).astype(np.uint8)
        packed[start : start + step] = nibbles[:, :, ::2] | (nibbles[:, :, 1::2] << 4)
        scales[start : start + step] = scale[:, :, 0]
    return packed, scales


def round_to_blocks(weight: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """``weight`` ``[rows, columns]`` with the numbers that :func:`quantize_blocks` leaves, float32."""
    packed, scales = quantize_blocks(weight, block)
    numbers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scales.shape, block).astype(np.float32) - 8
    return (numbers * scales[:, :, None]).reshape(len(weight), -1)[:, : weight.shape[1]]


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value


def _is_table(node: ir.Node, value: ir.Value) -> bool:
    return node.op_type == "Gather" and node.inputs[0] is value and node.attributes.get("axis", None) in (None,)


class _Blocks:
    """One weight in blocks of 4 bits, made once for all nodes that use it."""

    def __init__(self, graph: ir.Graph, value: ir.Value, transposed: bool) -> None:
        assert value.const_value is not None
        array = value.const_value.numpy()
        oriented = array if transposed else np.ascontiguousarray(array.T)
        self.graph, self.name = graph, value.name or ""
        self.rows, self.columns = oriented.shape
        packed, scales = quantize_blocks(oriented)
        self.packed = _initializer(graph, f"{self.name}_q4", packed)
        self.scales = _initializer(graph, f"{self.name}_scales", scales)

    def matmul(self, node: ir.Node) -> None:
        """Replace a linear node."""
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        inputs = [node.inputs[0], self.packed, self.scales]
        if bias is not None:
            inputs += [None, None, bias]
        attributes = {
            "K": self.columns,
            "N": self.rows,
            "bits": 4,
            "block_size": BLOCK,
            "accuracy_level": ACCURACY_LEVEL,
        }
        _replace(self.graph, node, ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=node.name))

    def gather(self, node: ir.Node) -> None:
        """Replace a table's lookup; the table is the head's weight under another shape."""
        flat = self.graph.initializers.get("edgepeft.table_shape")
        if flat is None:
            flat = _initializer(self.graph, "edgepeft.table_shape", np.array([0, -1], np.int64))
        view = ir.node("Reshape", [self.packed, flat], name=f"{self.name}/table")
        view.outputs[0].name = f"{self.name}/table_output"
        view.outputs[0].type = self.packed.type
        self.graph.insert_before(node, view)
        inputs = [view.outputs[0], node.inputs[1], self.scales]
        attributes = {"bits": 4, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        new = ir.node("GatherBlockQuantized", inputs, attributes, domain="com.microsoft", name=node.name)
        _replace(self.graph, node, new)


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    before, after = old.outputs[0], new.outputs[0]
    after.shape, after.type, name = before.shape, before.type, before.name
    before.name = f"{name}/fp32"
    after.name = name
    graph.insert_before(old, new)
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)


def q4(source: Path, target: Path, slots: SlotTable) -> None:
    """Weights of linear layers and embeddings in 4 bits, blocks of 32, by round-to-nearest; all else in fp32."""
    model = ir.load(source)
    graph = model.graph
    tensors = slots.tensors()
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.name in tensors or len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
            continue
        linear = linear_users(value)
        tables = [node for node, _ in value.uses() if _is_table(node, value)]
        wide = tensor.size >= _SMALL and tensor.numpy().shape[1] % BLOCK == 0
        tables = tables if wide else []
        if not linear and not tables:
            continue
        transposed = {weight_is_transposed(node) for node in linear} or {True}
        if len(transposed) > 1 or (tables and transposed == {False}):
            continue
        made = _Blocks(graph, value, transposed.pop())
        for node in linear:
            made.matmul(node)
        for node in tables:
            made.gather(node)
        for node, _ in list(value.uses()):
            if node.op_type == "Transpose" and not node.outputs[0].uses():
                graph.remove(node, safe=True)
        if not value.uses():
            del graph.initializers[value.name or ""]
    graph.opset_imports["com.microsoft"] = 1
    ir.save(model, target, external_data=f"{target.name}_data")
