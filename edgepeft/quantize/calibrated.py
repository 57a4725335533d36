"""Weights in blocks of few bits, fitted to what the layers see: GPTQ, a bias for what is left on average, low-rank corrections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from ..errors import BundleError
from .gptq import bias_of, gptq
from .grids import fit_grid
from .low_rank import correction
from .moments import BUDGET, Feeds, Moments, linear_inputs, measure_moments
from .nbits import Packed, Rounded, write
from .packing import BLOCK, Blocks, Grid
from .weights import Matrix, matrices


def calibrated(
    source: Path,
    target: Path,
    slots: SlotTable,
    *,
    batches: Sequence[Feeds],
    open_session: Callable[[Path], Any],
    bits: int = 4,
    head_bits: int | None = None,
    heal: int = 0,
    budget: int = BUDGET,
) -> None:
    """Write ``target``: the linear layers and embeddings of ``source`` in few bits, all else in fp32.

    Layers that the calibration reaches are rounded by GPTQ with integer zero points, and get a bias for what rounding leaves
    on average. A head that is also the embedding is fitted as a head. Other embeddings, and layers that no text reaches, are
    rounded to the grid with the smallest error.

    Args:
        source: The fp32 graph, its weights beside it.
        target: The file to write; its weights go to ``<target>_data``.
        slots: The bundle's slots, which are not touched.
        batches: What the graph runs to be measured: its inputs, and slot tensors where an adapter is on.
        open_session: Opens a graph with ONNX Runtime.
        bits: 2, 4 or 8.
        head_bits: The same for the head of a language model; ``bits`` by default.
        heal: Rank of the correction of each linear layer; 0 for none.
        budget: Bytes of covariances that are held at a time.

    Raises:
        BundleError: A weight or an activation is not finite; the message names it.
    """
    model = ir.load(source)
    graph = model.graph
    waiting = {matrix.name: matrix for matrix in matrices(graph, slots, width=BLOCK)}
    reads: dict[str, list[str]] = {}
    for weight, value in linear_inputs(graph, slots).items():
        if weight in waiting:
            reads.setdefault(value, []).append(weight)
    done: dict[str, Rounded] = {}
    for found in measure_moments(source, slots, batches, open_session, budget=budget):
        for value, moments in found.items():
            for name in reads.get(value, ()):
                matrix = waiting[name]
                head = any(node.outputs[0].is_graph_output() for node in matrix.linear)
                done[name] = _fitted(matrix, moments, head_bits or bits if head else bits, 0 if matrix.tables else heal)
    for name, matrix in waiting.items():
        write(graph, matrix, done[name] if name in done else Rounded(Packed.of(nearest(_finite(matrix), bits))))
    ir.save(model, target, external_data=f"{target.name}_data")


def _fitted(matrix: Matrix, moments: Moments, bits: int, heal: int) -> Rounded:
    weight = _finite(matrix)
    blocks = gptq(weight, moments.covariance, bits=bits, block=BLOCK)
    error = weight - blocks.numbers()
    added = None
    if heal:
        added = correction(error, moments.covariance, heal)
        error -= (added.first @ added.second).T
    return Rounded(Packed.of(blocks), bias_of(error, moments.mean), added)


def _finite(matrix: Matrix) -> np.ndarray:
    weight = matrix.numbers
    if not np.isfinite(weight).all():
        raise BundleError(
            f"weight {matrix.name} holds numbers that are not finite: nothing near them can be stored in few bits. Look at the "
            "checkpoint"
        )
    return weight


def nearest(weight: np.ndarray, bits: int, block: int = BLOCK) -> Blocks:
    """``weight`` ``[rows, columns]`` rounded to the nearest number of the grids with the smallest squared error."""
    rows, columns = weight.shape
    blocks = -(-columns // block)
    scales, zeros = np.empty((rows, blocks), np.float32), np.empty((rows, blocks), np.uint8)
    for b in range(blocks):
        part = np.ascontiguousarray(weight[:, b * block : (b + 1) * block], np.float32)
        scales[:, b], zeros[:, b] = fit_grid(part, bits)
    grid = Grid(bits, block, scales, zeros)
    return Blocks(grid, grid.nearest(weight))
