"""Names of a graph's free dimensions, as Optimum and transformers.js give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ...bundle.slots import Dim
from .edit import EditPass, graphs_of


class NameDimensions(EditPass[ir.passes.PassResult]):
    """Calls the free dimensions what Optimum and transformers.js call them; the exporter's ``s44`` go.

    ``inputs`` are the names by input; by default every matrix is tokens, ``[batch_size, sequence_length]``.
    """

    def __init__(self, inputs: Mapping[str, tuple[Dim, ...]] | None = None) -> None:
        self.inputs = inputs or {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Name them."""
        names: dict[str, str] = {}
        for value in model.graph.inputs:
            if value.shape is None:
                continue
            default: tuple[Dim, ...] = ("batch_size", "sequence_length") if len(value.shape) == 2 else ()
            wanted = self.inputs.get(value.name or "", default)
            for dim, name in zip(value.shape, wanted, strict=False):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None and isinstance(name, str):
                    names[dim.value] = name
        return DeclareShapes(names)(model)


class DeclareShapes(EditPass[ir.passes.PassResult]):
    """Renames free dimensions by ``symbols`` everywhere, and declares every initializer as it is stored."""

    def __init__(self, symbols: Mapping[str, str]) -> None:
        self.symbols = symbols

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename and declare."""
        changed = False
        for scope in graphs_of(model):
            for value in (*scope.inputs, *scope.outputs, *(output for node in scope for output in node.outputs)):
                changed |= self._rename(value)
            for value in scope.initializers.values():
                # The exporter's fusions leave a scale declared as a scalar that is stored as [1]; shape inference then fails.
                if value.const_value is not None:
                    changed |= _declare(value, list(value.const_value.numpy().shape))
        return ir.passes.PassResult(model, changed)

    def _rename(self, value: ir.Value) -> bool:
        if value.shape is None:
            return False
        dims = [self.symbols.get(d.value or "", d) if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
        return _declare(value, dims)


def _declare(value: ir.Value, dims: Sequence[int | str | ir.SymbolicDim]) -> bool:
    before, value.shape = value.shape, ir.Shape(dims)
    return value.shape != before
