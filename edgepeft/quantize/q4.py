"""Four bits in blocks by rounding to nearest; nothing is run for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from .nbits import Packed, Rounded, write
from .packing import BLOCK
from .pieces import in_pieces
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

    def work(start: int, stop: int) -> None:
        steps, scale = _steps(weight[start:stop], block)
        steps += 8
        pairs = steps.astype(np.uint8).view("<u2")  # two numbers of 4 bits, each in a byte
        packed[start:stop] = (pairs | (pairs >> 4)).astype(np.uint8)
        scales[start:stop] = scale

    in_pieces(rows, columns, work)
    return packed, scales


def _steps(part: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers -8 … 7 ``[rows, blocks, block]`` as float32, and the scale of each block ``[rows, blocks]``."""
    part = np.ascontiguousarray(part, np.float32)
    columns = part.shape[1]
    blocks = -(-columns // block)
    if blocks * block != columns:
        part = np.pad(part, ((0, 0), (0, blocks * block - columns)))
    part = part.reshape(len(part), blocks, block)
    high, low = part.max(axis=2), part.min(axis=2)
    largest = np.where(high >= -low, high, low)
    if (doubtful := high == -low).any():  # of two as large the first counts
        tied = part[doubtful]
        largest[doubtful] = np.take_along_axis(tied, np.abs(tied).argmax(axis=1)[:, None], axis=1)[:, 0]
    scale = largest / -8
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = part / scale[:, :, None]
    if (empty := scale == 0).any():
        steps[empty] = 0
    np.rint(steps, out=steps)
    return np.clip(steps, -8, 7, out=steps), scale


def round_to_blocks(weight: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """``weight`` ``[rows, columns]`` with the numbers that :func:`quantize_blocks` leaves, float32."""
    rounded = np.empty(weight.shape, np.float32)

    def work(start: int, stop: int) -> None:
        steps, scale = _steps(weight[start:stop], block)
        steps *= scale[:, :, None]
        rounded[start:stop] = steps.reshape(stop - start, -1)[:, : weight.shape[1]]

    in_pieces(len(weight), weight.shape[1], work)
    return rounded


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
