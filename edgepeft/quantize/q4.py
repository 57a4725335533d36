"""Four bits in blocks by rounding to nearest; nothing is run for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from ..graph.bit_packing import unpack
from .nbits import Packed, Rounded, write
from .packing import BLOCK
from .weights import Numbers, Part, matrices


def quantize_blocks(weight: Numbers, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
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
    numbers = unpack(packed, 4, len(weight)).reshape(*scales.shape, block).astype(np.float32) - 8
    return (numbers * scales[:, :, None]).reshape(len(weight), -1)[:, : weight.shape[1]]


def q4(source: Path, target: Path, slots: SlotTable) -> None:
    """Weights of linear layers and embeddings in 4 bits, blocks of 32, by round-to-nearest; all else in fp32."""
    model = ir.load(source)
    q4_graph(model, slots)
    ir.save(model, target, external_data=f"{target.name}_data")


def q4_graph(model: ir.Model, slots: SlotTable) -> None:
    """Do so in a graph; numbers that are deferred are rounded when they are written."""
    for matrix in matrices(model.graph, slots, width=BLOCK):
        rows, columns = matrix.shape
        packed, scales = matrix.rounded(quantize_blocks, _parts)
        write(model.graph, matrix, Rounded(Packed(rows, columns, 4, BLOCK, packed, scales, None)))


def _parts(rows: int, columns: int) -> list[Part]:
    """What :func:`quantize_blocks` returns for a matrix of that size."""
    blocks = -(-columns // BLOCK)
    return [(np.uint8, (rows, blocks, BLOCK // 2)), (np.float32, (rows, blocks))]
