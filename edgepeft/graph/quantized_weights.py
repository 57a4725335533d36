"""Weights that a graph stores in blocks of few bits (MatMulNBits, GatherBlockQuantized): which there are, and their numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from .bit_packing import unpack


@dataclass(frozen=True)
class Blocks:
    """One weight ``[rows, columns]`` in blocks of ``block`` columns: the initializers that hold it.

    Numbers are ``(q - zero) * scale`` with ``q`` of ``bits`` bits, the first column in the lowest bits of a byte
    (ONNX Runtime's MatMulNBits and GatherBlockQuantized).
    """

    name: str
    rows: int
    columns: int
    bits: int
    block: int
    packed: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    #: Names of the nodes that use it.
    users: tuple[str, ...] = ()

    def read(self) -> np.ndarray:
        """The weight as float32 ``[rows, columns]``."""
        blocks = -(-self.columns // self.block)
        q = unpack(_array(self.packed), self.bits, self.rows)[:, : blocks * self.block]
        q = q.reshape(self.rows, blocks, self.block).astype(np.float32)
        scales, zeros = self._grid(blocks)
        q -= zeros
        q *= scales
        return q.reshape(self.rows, -1)[:, : self.columns]

    def nearest(self, weight: np.ndarray) -> np.ndarray:
        """The numbers nearest to ``weight`` ``[rows, columns]`` that the blocks can hold with their scales."""
        blocks = -(-self.columns // self.block)
        scales, zeros = self._grid(blocks)
        padded = np.pad(weight, ((0, 0), (0, blocks * self.block - self.columns)))
        steps = padded.reshape(self.rows, blocks, self.block) / np.where(scales == 0, 1, scales)
        q = np.clip(np.rint(steps + zeros), 0, (1 << self.bits) - 1)
        held: np.ndarray = ((q - zeros) * scales).reshape(self.rows, -1)[:, : self.columns]
        return held

    def _grid(self, blocks: int) -> tuple[np.ndarray, np.ndarray | float]:
        """Scales and zero points, ``[rows, blocks, 1]``."""
        scales = _array(self.scales).astype(np.float32).reshape(self.rows, blocks)
        zeros: np.ndarray | float = float(1 << (self.bits - 1))
        if self.zeros is not None:
            stored = _array(self.zeros)
            if stored.dtype == np.uint8:
                stored = unpack(stored, self.bits, self.rows)[:, :blocks]
            zeros = stored.astype(np.float32).reshape(self.rows, blocks)[:, :, None]
        return scales[:, :, None], zeros


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _constant(node: ir.Node, index: int) -> ir.Value | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or producer.op_type not in {"Reshape", "Cast"}:
            return None
        value = producer.inputs[
            0
        ]  # a table shares the head's numbers under another shape; scales are stored in float16
    return value if value is not None and value.const_value is not None else None


def _blocks_of(node: ir.Node) -> Blocks | None:
    """The weight of a MatMulNBits, or the table of a GatherBlockQuantized along its rows; ``None`` where it is neither."""
    if node.domain != "com.microsoft" or node.op_type not in {"MatMulNBits", "GatherBlockQuantized"}:
        return None
    matmul = node.op_type == "MatMulNBits"
    packed, scales = _constant(node, 1 if matmul else 0), _constant(node, 2)
    zeros = _constant(node, 3)
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 128)
    reordered = matmul and len(node.inputs) > 4 and node.inputs[4] is not None
    if packed is None or scales is None or _array(packed).dtype != np.uint8 or bits not in {4, 8} or reordered:
        return None
    if matmul:
        rows, columns = node.attributes.get_int("N"), node.attributes.get_int("K")
    else:
        axis = node.attributes.get_int("quantize_axis", 1), node.attributes.get_int("gather_axis", 0)
        if axis[0] not in {1, -1} or axis[1] != 0:
            return None
        rows = int(_array(packed).shape[0])
        columns = _array(packed).size // rows * 8 // bits
    return Blocks(packed.name or "", rows, columns, bits, block, packed, scales, zeros, (node.name or "",))


def quantized_weights(graph: ir.Model) -> dict[str, Blocks]:
    """Every weight in blocks, by the name of the initializer that holds its numbers."""
    weights: dict[str, Blocks] = {}
    for node in graph.graph.all_nodes():
        blocks = _blocks_of(node)
        if blocks is None:
            continue
        known = weights.get(blocks.name)
        if known is not None:
            # A table does not say where its last block ends; the head that shares it does.
            kept = known if known.columns <= blocks.columns else blocks
            blocks = replace(kept, users=(*known.users, *blocks.users))
        weights[blocks.name] = blocks
    return weights
