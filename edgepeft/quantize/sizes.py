"""How many bytes a recipe will write, told from the shapes of a graph's initializers; no weight is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from ..bundle import SlotTable
from .calibrated import form_of
from .mixed import forms_of
from .packing import BLOCK, Form
from .searched import block_of_8
from .weights import Matrix, matrices

#: Smaller tensors lie in the graph's own file (``onnx_ir.save``).
IN_GRAPH = 256


def planned_bytes(
    model: ir.Model,
    slots: SlotTable,
    variant: str,
    *,
    method: str | None = None,
    heal: int = 0,
    head_bits: int | None = None,
    layer_bits: int | None = None,
) -> int:
    """Bytes of the weights file of a variant.

    Scales are taken to be in float16 where a recipe may store them so: nearly all weights allow it
    (:func:`~edgepeft.quantize.grids.half_scales`).

    Args:
        model: The fp32 graph.
        slots: The bundle's slots.
        variant: ``"int8"``, ``"w8a16"``, ``"q8"``, ``"q4"``, or ``"q4f16"`` of one that is still to be made.
        method: How ``q4`` rounds.
        heal: Rank of corrections.
        head_bits: Bits of a language model's head; 4 by default.
        layer_bits: Bits of the other linear layers; 4 by default.
    """
    blocked = variant in {"q4", "q4f16", "q8"}
    found = list(matrices(model.graph, slots, width=BLOCK if blocked else 1))
    rounded = {matrix.name for matrix in found}
    sizes = [
        value.const_value.nbytes // (2 if variant == "q4f16" and _floats(value) and name not in slots.tensors() else 1)
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and name not in rounded
    ]
    for matrix in found:
        if blocked:
            if variant == "q8":
                form = Form(8, block_of_8(matrix.shape[1]))
            else:
                form = form_of(matrix, 4, head_bits=head_bits, layer_bits=layer_bits)
            sizes += _in_blocks(matrix, variant, method, heal, form)
        else:
            sizes += _in_channels(matrix, variant)
    return sum(size for size in sizes if size > IN_GRAPH)


@dataclass(frozen=True)
class Least:
    """The smallest that matrices with bits of their own can become, told from shapes: at least so many bytes in all, and bits a
    weight of the matrices, scales included."""

    bytes: int
    bits: float


def least_of(models: Iterable[ir.Model], slots: SlotTable) -> Least:
    """The smallest weights files of the graphs of a model. Weights that lie on a grid already may allow for no less than more."""
    held = matrix_bytes = numbers = 0
    for model in models:
        found = list(matrices(model.graph, slots, width=BLOCK))
        held += sum(_others(model, {matrix.name for matrix in found}))
        for matrix in found:
            rows, columns = matrix.shape
            form = min(forms_of(matrix), key=lambda each: each.bytes(rows, columns))
            held += sum(_in_blocks(matrix, "q4", "gptq", 0, form))
            matrix_bytes += form.bytes(rows, columns)
            numbers += rows * columns
    return Least(held, 8 * matrix_bytes / max(1, numbers))


def _others(model: ir.Model, rounded: Collection[str]) -> Iterator[int]:
    """Bytes of the initializers that are no matrices."""
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and name not in rounded and value.const_value.nbytes > IN_GRAPH:
            yield value.const_value.nbytes


def rounded_bytes(variant: str, rows: int, columns: int) -> int:
    """Bytes of a matrix in a variant that needs no data: ``q4`` rounded to nearest, ``q8``, ``int8``."""
    if variant not in {"q4", "q8"}:
        return rows * (columns + 4)
    form = Form(8, block_of_8(columns)) if variant == "q8" else Form()
    blocks = -(-columns // form.block)
    zeros = blocks if variant == "q8" else 0
    return rows * (blocks * form.block * form.bits // 8 + 4 * blocks + zeros)


def _floats(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT


def _in_blocks(matrix: Matrix, variant: str, method: str | None, heal: int, form: Form) -> Iterator[int]:
    """Tensors of a matrix in blocks: numbers, scales, zero points; a bias and a correction where it is fitted."""
    rows, columns = matrix.shape
    fitted = method == "gptq"
    blocks = -(-columns // form.block)
    half = fitted or method == "mse"
    yield rows * blocks * form.block * form.bits // 8
    yield rows * blocks * (2 if half or variant == "q4f16" else 4)
    if half or variant == "q8":
        yield rows * -(-blocks * form.bits // 8)
    if fitted and any(len(node.inputs) < 3 or node.inputs[2] is None for node in matrix.linear):
        yield rows * (2 if variant == "q4f16" else 4)
    if fitted and heal and matrix.linear and not matrix.tables:
        rank = min(heal, rows, columns)
        yield 2 * rank * rows
        yield 2 * rank * columns


def _in_channels(matrix: Matrix, variant: str) -> Iterator[int]:
    """Tensors of a matrix with a scale for each output channel."""
    rows, columns = matrix.shape
    whole = variant == "w8a16"
    for users in (matrix.linear, matrix.tables):
        if users:
            yield 4 * rows
            yield rows * columns if whole or users is (matrix.linear or matrix.tables) else 0
    if whole and matrix.linear:
        yield rows  # zero points
