"""Names of a graph's free dimensions, as Optimum and transformers.js give them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ...bundle.slots import Dim


def name_dimensions(graph: ir.Model, inputs: Mapping[str, tuple[Dim, ...]] | None = None) -> None:
    """Call the free dimensions what Optimum and transformers.js call them; drop the exporter's ``s44``.

    ``inputs`` are the names by input; by default every matrix is tokens, ``[batch_size, sequence_length]``.
    """
    names: dict[str, str] = {}
    for value in graph.graph.inputs:
        if value.shape is None:
            continue
        default: tuple[Dim, ...] = ("batch_size", "sequence_length") if len(value.shape) == 2 else ()
        wanted = (inputs or {}).get(value.name or "", default)
        for dim, name in zip(value.shape, wanted, strict=False):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None and isinstance(name, str):
                names[dim.value] = name

    declare_shapes(graph, names)


def declare_shapes(graph: ir.Model, symbols: Mapping[str, str]) -> None:
    """Rename free dimensions by ``symbols`` everywhere, and declare every initializer as it is stored."""

    def rename(value: ir.Value) -> None:
        if value.shape is not None:
            dims = [symbols.get(d.value or "", d) if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
            value.shape = ir.Shape(dims)

    for value in (*graph.graph.inputs, *graph.graph.outputs):
        rename(value)
    for value in graph.graph.initializers.values():
        # The exporter's fusions leave a scale declared as a scalar that is stored as [1]; shape inference then fails.
        if value.const_value is not None:
            value.shape = ir.Shape(list(value.const_value.numpy().shape))
    for node in graph.graph:
        for output in node.outputs:
            rename(output)
