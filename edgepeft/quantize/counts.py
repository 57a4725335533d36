"""How much of a base a recipe quantized."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from ..bundle import SlotTable
from .nbits import ADDED_BIAS, CORRECTION, OFFSETS, WIDENED


@dataclass(frozen=True)
class Quantized:
    """What a recipe did. ``share`` is the part of the base's weight numbers now stored in fewer than 32 bits, 0 … 1."""

    share: float
    quantized: int
    total: int


def total(parts: Iterable[Quantized]) -> Quantized:
    """The counts of several graphs of one variant as one."""
    found = list(parts)
    quantized, whole = sum(part.quantized for part in found), sum(part.total for part in found)
    return Quantized(share=quantized / max(1, whole), quantized=quantized, total=whole)


def count_quantized(graph: ir.Model, slots: SlotTable, *, halves: bool = False) -> Quantized:
    """How many of the base's weight numbers a graph stores in 8 bits or fewer, with ``halves`` in 16 or fewer.

    Slots and index constants do not count.
    """
    tensors = slots.tensors()
    narrow = wide = 0
    for name, value in graph.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or name in tensors or tensor.size <= 1 or _belongs_to_rounding(value):
            continue
        if tensor.dtype in {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}:
            narrow += tensor.size * _numbers_in_a_byte(value)
        elif halves and tensor.dtype == ir.DataType.FLOAT16:
            narrow += tensor.size
        elif tensor.dtype in {ir.DataType.FLOAT, ir.DataType.FLOAT16}:
            wide += tensor.size
    return Quantized(share=narrow / max(1, narrow + wide), quantized=narrow, total=narrow + wide)


def _numbers_in_a_byte(value: ir.Value) -> int:
    """How many a uint8 tensor holds in one byte where kernels read it as blocks of few bits, else one."""
    users = [node for node, index in value.uses() if node.op_type == "MatMulNBits" and index == 1]
    users += [node for node, index in value.uses() if node.op_type == "GatherBlockQuantized" and index == 0]
    views = [node for node, _ in value.uses() if node.op_type == "Reshape"]
    users += [user for view in views for user, _ in view.outputs[0].uses() if user.op_type == "GatherBlockQuantized"]
    return 8 // users[0].attributes.get_int("bits", 4) if users else 1


def _belongs_to_rounding(value: ir.Value) -> bool:
    """Whether a tensor is a scale, a zero point, a bias, a correction or offsets that rounding added: no weight of the base."""
    uses = list(value.uses())
    blocks = {"MatMulNBits", "GatherBlockQuantized"}
    if any(node.op_type in blocks and index in {2, 3} for node, index in uses):
        return True
    if (value.name or "").endswith(ADDED_BIAS):
        return True
    return any((node.name or "").endswith((*CORRECTION, OFFSETS, WIDENED)) for node, _ in uses)
