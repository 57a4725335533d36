"""Four bits in blocks: weights for MatMulNBits and GatherBlockQuantized, embedding and tied head stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from ..graph.nodes import constant
from ..graph.passes.edit import home_of, replace_node
from .weights import Matrix, drop_unused, matrices

BLOCK = 32
#: Activations as int8 inside the kernels (ONNX Runtime's documentation of MatMulNBits).
ACCURACY_LEVEL = 4


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


class _Blocks:
    """One weight in blocks of 4 bits, made once for all nodes that use it."""

    def __init__(self, graph: ir.Graph, matrix: Matrix) -> None:
        numbers = matrix.numbers
        self.graph, self.name = graph, matrix.name
        self.rows, self.columns = numbers.shape
        packed, scales = quantize_blocks(numbers)
        self.packed = constant(graph, f"{self.name}_q4", packed)
        self.scales = constant(graph, f"{self.name}_scales", scales)

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
        replace_node(node, [ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=node.name)])

    def gather(self, node: ir.Node) -> None:
        """Replace a table's lookup; the table is the head's weight under another shape."""
        flat = constant(self.graph, "edgepeft.table_shape", np.array([0, -1], np.int64))
        view = ir.node("Reshape", [self.packed, flat], name=f"{self.name}/table")
        view.outputs[0].name = f"{self.name}/table_output"
        view.outputs[0].type = self.packed.type
        home_of(node).insert_before(node, view)
        inputs = [view.outputs[0], node.inputs[1], self.scales]
        attributes = {"bits": 4, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        new = ir.node("GatherBlockQuantized", inputs, attributes, domain="com.microsoft", name=node.name)
        replace_node(node, [new])


def q4(source: Path, target: Path, slots: SlotTable) -> None:
    """Weights of linear layers and embeddings in 4 bits, blocks of 32, by round-to-nearest; all else in fp32."""
    model = ir.load(source)
    graph = model.graph
    for matrix in matrices(graph, slots, width=BLOCK):
        made = _Blocks(graph, matrix)
        for node in matrix.linear:
            made.matmul(node)
        for node in matrix.tables:
            made.gather(node)
        drop_unused(graph, matrix)
    graph.opset_imports["com.microsoft"] = 1
    ir.save(model, target, external_data=f"{target.name}_data")
