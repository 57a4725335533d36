"""Weights in blocks of few bits, fitted to what the layers see: GPTQ, a bias for what is left on average, low-rank corrections."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..bundle import SlotTable
from .gptq import Hessian, bias_of, gptq
from .grids import fit_grid, half_scales
from .low_rank import correction
from .moments import BUDGET, Feeds, Moments, linear_inputs, measure_moments
from .nbits import Packed, Rounded, write
from .packing import BLOCK, Blocks, Form, Grid
from .stored_grid import stored_grid
from .weights import Matrix, matrices

#: From so many bits on the nearest number is as good as one that makes up for others.
NEAREST_BITS = 8
#: Rows whose error is held at a time.
_ROWS = 4096


@dataclass(frozen=True)
class Fitted:
    """A weight that was fitted, and the mean ``[in]`` of what its layer reads."""

    rounded: Rounded
    mean: np.ndarray


def calibrated(
    source: Path,
    target: Path,
    slots: SlotTable,
    *,
    batches: Sequence[Feeds],
    open_session: Callable[[Path], Any],
    bits: int = 4,
    head_bits: int | None = None,
    layer_bits: int | None = None,
    heal: int = 0,
    budget: int = BUDGET,
    counted: Sequence[int] | None = None,
) -> None:
    """Write ``target``: the linear layers and embeddings of ``source`` in few bits, all else in fp32.

    Layers that the calibration reaches are rounded by GPTQ with integer zero points, and get a bias for what rounding leaves
    on average. Weights that lie on such a grid already stay as they are; where only zero is off it, and ``heal`` allows for
    corrections, offsets of their blocks make that so too. A head that is also the embedding is fitted as a head. Other
    embeddings, and layers that no text reaches, are rounded to the grid with the smallest error.

    Args:
        source: The fp32 graph, its weights beside it.
        target: The file to write; its weights go to ``<target>_data``.
        slots: The bundle's slots, which are not touched.
        batches: What the graph runs to be measured: its inputs, and slot tensors where an adapter is on.
        open_session: Opens a graph with ONNX Runtime.
        bits: 2, 4 or 8.
        head_bits: The same for the head of a language model; ``bits`` by default.
        layer_bits: The same for the other linear layers, so not for tables of embeddings; ``bits`` by default.
        heal: Rank of the correction of each linear layer; 0 for none.
        budget: Bytes of covariances that are held at a time.
        counted: How many rows of each run count, as :func:`~edgepeft.quantize.moments.measure_moments` takes it.

    Raises:
        BundleError: A weight or an activation is not finite; the message names it.
    """
    forms = {
        matrix.name: form_of(matrix, bits, head_bits=head_bits, layer_bits=layer_bits)
        for matrix in matrices(ir.load(source).graph, slots, width=BLOCK)
    }
    fitted = fit(
        source, slots, forms, batches=batches, open_session=open_session, heal=heal, budget=budget, counted=counted
    )
    write_rounded(source, target, slots, {name: each.rounded for name, each in fitted.items()}, forms)


def is_head(matrix: Matrix) -> bool:
    """Whether a matrix writes an output of the graph, as a language model's head does."""
    return any(node.outputs[0].is_graph_output() for node in matrix.linear)


def form_of(matrix: Matrix, bits: int, *, head_bits: int | None, layer_bits: int | None) -> Form:
    """How a matrix is stored: a head, another linear layer, or a table of embeddings."""
    if is_head(matrix):
        return Form(head_bits or bits)
    return Form((layer_bits if matrix.linear else None) or bits)


def fit(
    source: Path,
    slots: SlotTable,
    forms: Mapping[str, Form],
    *,
    batches: Sequence[Feeds],
    open_session: Callable[[Path], Any],
    heal: int = 0,
    budget: int = BUDGET,
    only: Collection[str] | None = None,
    counted: Sequence[int] | None = None,
) -> dict[str, Fitted]:
    """Round the matrices of linear layers that texts reach.

    Args:
        source: The fp32 graph, its weights beside it.
        slots: The bundle's slots.
        forms: How each matrix is stored, by its name.
        batches: What the graph runs to be measured.
        open_session: Opens a graph with ONNX Runtime.
        heal: Rank of the correction of each linear layer that is no table too; 0 for none.
        budget: Bytes of covariances that are held at a time.
        only: The matrices to fit; all of ``forms`` by default.
        counted: How many rows of each run count, as :func:`~edgepeft.quantize.moments.measure_moments` takes it.

    Returns:
        What each became, by name. Matrices that no text reaches are left out.

    Raises:
        BundleError: A weight or an activation is not finite; the message names it.
    """
    graph = ir.load(source).graph
    wanted = forms.keys() if only is None else set(only)
    waiting = {m.name: m for m in matrices(graph, slots, width=BLOCK) if m.name in wanted}
    reads: dict[str, list[str]] = {}
    for weight, value in linear_inputs(graph, slots).items():
        if weight in waiting:
            reads.setdefault(value, []).append(weight)
    done: dict[str, Fitted] = {}
    for found in measure_moments(
        source, slots, batches, open_session, budget=budget, only=waiting.keys(), counted=counted
    ):
        for value, moments in found.items():
            layer = _Layer(moments)
            for name in reads.get(value, ()):
                matrix = waiting[name]
                done[name] = layer.fit(matrix, forms[name], 0 if matrix.tables else heal)
    return done


def write_rounded(
    source: Path, target: Path, slots: SlotTable, rounded: Mapping[str, Rounded], forms: Mapping[str, Form]
) -> None:
    """Write ``target`` with the weights of ``rounded``, all others rounded to the nearest number of their form."""
    model = ir.load(source)
    for matrix in list(matrices(model.graph, slots, width=BLOCK)):
        known = rounded.get(matrix.name)
        form = forms[matrix.name]
        write(model.graph, matrix, known or Rounded(Packed.of(nearest_in(matrix.finite(), form))))
    ir.save(model, target, external_data=f"{target.name}_data")


class _Layer:
    """What weights that meet the same inputs are fitted to."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments

    @cached_property
    def hessian(self) -> Hessian:
        """Made for the first weight that needs it."""
        return Hessian.of(self.moments.covariance)

    def fit(self, matrix: Matrix, form: Form, heal: int) -> Fitted:
        """Round a weight, with a bias and a correction of rank ``heal`` for what that leaves."""
        weight, mean = matrix.finite(), self.moments.mean
        if form.bits >= NEAREST_BITS:
            return Fitted(nearest_with_bias(weight, mean, form), mean)
        if (stored := on_stored_grid(matrix, form, offsets=form.offsets or heal > 0)) is not None:
            return Fitted(stored, mean)
        blocks = gptq(weight, self.hessian, bits=form.bits, block=form.block)
        if not heal:
            return Fitted(Rounded(Packed.of(blocks), _bias_by_rows(weight, blocks, mean)), mean)
        error = weight - blocks.numbers()
        added = correction(error, self.moments.covariance, heal)
        error -= (added.first @ added.second).T
        return Fitted(Rounded(Packed.of(blocks), bias_of(error, mean), added), mean)


def _bias_by_rows(weight: np.ndarray, blocks: Blocks, mean: np.ndarray) -> np.ndarray:
    """The bias for what rounding leaves on average, float32 ``[out]``, without a copy of a whole head in floats."""
    found = [
        bias_of(weight[start : start + _ROWS] - blocks.rows(start, start + _ROWS).numbers(), mean)
        for start in range(0, len(weight), _ROWS)
    ]
    return np.concatenate(found)


def on_stored_grid(matrix: Matrix, form: Form, *, offsets: bool) -> Rounded | None:
    """A matrix as it is, where it lies on a grid of that form; one with offsets only where these may be had."""
    found = stored_grid(matrix.finite(), form)
    if found is None or (found.offsets is not None and (matrix.tables or not offsets)):
        return None
    return Rounded(Packed.of(found.blocks), offsets=found.offsets)


def nearest_with_bias(weight: np.ndarray, mean: np.ndarray, form: Form) -> Rounded:
    """``weight`` ``[out, in]`` rounded to the nearest, and a bias for what that moves at the ``mean`` of its inputs."""
    blocks = nearest_in(weight, form)
    return Rounded(Packed.of(blocks), _bias_by_rows(weight, blocks, mean))


def nearest_in(weight: np.ndarray, form: Form) -> Blocks:
    """:func:`nearest` in a form, with scales in float16 where they can be; on the grid that the numbers lie on, if any."""
    stored = stored_grid(weight, form)
    if stored is not None and stored.offsets is None:
        return stored.blocks
    return nearest(weight, form.bits, form.block, half=half_scales(weight, form.bits, form.block))


def nearest(weight: np.ndarray, bits: int, block: int = BLOCK, *, half: bool = False) -> Blocks:
    """``weight`` ``[rows, columns]`` rounded to the nearest number of the grids with the smallest squared error.

    With ``half`` scales are float16.
    """
    rows, columns = weight.shape
    blocks = -(-columns // block)
    scales = np.empty((rows, blocks), np.float16 if half else np.float32)
    zeros = np.empty((rows, blocks), np.uint8)
    for b in range(blocks):
        part = np.ascontiguousarray(weight[:, b * block : (b + 1) * block], np.float32)
        scales[:, b], zeros[:, b] = fit_grid(part, bits, half=half)
    grid = Grid(bits, block, scales, zeros)
    return Blocks(grid, grid.nearest(weight))
