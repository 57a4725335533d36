"""Weights in blocks of few bits without any run of the model: zero points, and the scales that lose least."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from .calibrated import nearest, write_rounded
from .packing import BLOCK, Form
from .weights import Matrix, matrices

#: Blocks of 8 bits may be larger: their scales would be a fourth of the file, and gain nothing.
BLOCKS_OF_8 = (128, 64, BLOCK)


def least_error(source: Path, target: Path, slots: SlotTable) -> None:
    """4 bits in blocks of 32, each on the grid with the smallest squared error; all else in fp32."""
    _write(source, target, slots, {matrix.name: Form() for matrix in _all(source, slots)})


def q8(source: Path, target: Path, slots: SlotTable) -> None:
    """8 bits in the largest blocks that divide a weight's columns, 128 at most; all else in fp32."""
    _write(source, target, slots, {matrix.name: Form(8, block_of_8(matrix)) for matrix in _all(source, slots)})


def block_of_8(matrix: Matrix) -> int:
    """Columns of a block of 8 bits: as many as divide the matrix's own, since the last block would be filled up."""
    columns = matrix.numbers.shape[1]
    return next((block for block in BLOCKS_OF_8 if columns % block == 0), BLOCK)


def round_to_grids(weight: np.ndarray) -> np.ndarray:
    """``weight`` ``[rows, columns]`` with the numbers that 8 bits in blocks leave, float32."""
    return nearest(weight, 8, next((b for b in BLOCKS_OF_8 if weight.shape[1] % b == 0), BLOCK)).numbers()


def _all(source: Path, slots: SlotTable) -> list[Matrix]:
    return list(matrices(ir.load(source).graph, slots, width=BLOCK))


def _write(source: Path, target: Path, slots: SlotTable, forms: dict[str, Form]) -> None:
    write_rounded(source, target, slots, {}, forms)
