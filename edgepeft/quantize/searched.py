"""Weights in blocks of few bits without any run of the model: zero points, and the scales that lose least."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from .calibrated import nearest, write_rounded
from .nbits import Packed, Rounded, write
from .packing import BLOCK, Form
from .pieces import in_pieces
from .weights import Numbers, Part, matrices

#: Blocks of 8 bits may be larger: their scales would be a fourth of the file, and gain nothing.
BLOCKS_OF_8 = (128, 64, BLOCK)


def least_error(source: Path, target: Path, slots: SlotTable) -> None:
    """4 bits in blocks of 32, each on the grid with the smallest squared error; all else in fp32."""
    names = [matrix.name for matrix in matrices(ir.load(source).graph, slots, width=BLOCK)]
    write_rounded(source, target, slots, {}, dict.fromkeys(names, Form()))


def q8(source: Path, target: Path, slots: SlotTable) -> None:
    """8 bits in the largest blocks that divide a weight's columns, 128 at most; all else in fp32."""
    model = ir.load(source)
    q8_graph(model, slots)
    ir.save(model, target, external_data=f"{target.name}_data")


def q8_graph(model: ir.Model, slots: SlotTable) -> None:
    """Do so in a graph; numbers that are deferred are rounded when they are written."""
    for matrix in matrices(model.graph, slots, width=BLOCK):
        rows, columns = matrix.shape
        packed, scales, zeros = matrix.rounded(_grids_of_8, _parts)
        write(model.graph, matrix, Rounded(Packed(rows, columns, 8, block_of_8(columns), packed, scales, zeros)))


def block_of_8(columns: int) -> int:
    """Columns of a block of 8 bits: as many as divide the matrix's own, since the last block would be filled up."""
    return next((block for block in BLOCKS_OF_8 if columns % block == 0), BLOCK)


def round_to_grids(weight: np.ndarray) -> np.ndarray:
    """``weight`` ``[rows, columns]`` with the numbers that 8 bits in blocks leave, float32."""
    return nearest(weight, 8, block_of_8(weight.shape[1])).numbers()


def _grids_of_8(weight: Numbers) -> list[np.ndarray]:
    """Numbers, scales and zero points of a matrix, piece by piece of its rows."""
    rows, columns = weight.shape
    found = [np.empty(shape, dtype) for dtype, shape in _parts(rows, columns)]

    def work(start: int, stop: int) -> None:
        blocks = nearest(weight[start:stop], 8, block_of_8(columns))
        zeros = blocks.packed_zeros()
        assert zeros is not None
        for array, part in zip(found, (blocks.packed(), blocks.grid.scales, zeros), strict=True):
            array[start:stop] = part

    in_pieces(rows, columns, work)
    return found


def _parts(rows: int, columns: int) -> list[Part]:
    """What :func:`_grids_of_8` returns for a matrix of that size."""
    block = block_of_8(columns)
    blocks = -(-columns // block)
    return [(np.uint8, (rows, blocks, block)), (np.float32, (rows, blocks)), (np.uint8, (rows, blocks))]
