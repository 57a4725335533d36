"""The free dimensions' names."""

from __future__ import annotations

import onnx_ir as ir

from ....graph.passes.edit import EditPass, graphs_of

_RENAMED = {
    "batch": "batch_size",
    "sequence_len": "sequence_length",
    "past_sequence_len": "past_sequence_length",
    "past_seq_len + seq_len": "total_sequence_length",
    "past_sequence_len + sequence_len": "total_sequence_length",
}


class RenameDimensions(EditPass[ir.passes.PassResult]):
    """Calls free dimensions as Optimum and transformers.js call them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename them everywhere."""
        modified = False
        for graph in graphs_of(model):
            for value in (*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)):
                if value.shape is not None:
                    dims = [d if isinstance(d, int) else _RENAMED.get(str(d.value), d) for d in value.shape]
                    before, value.shape = value.shape, ir.Shape(dims)
                    modified |= value.shape != before
        return ir.passes.PassResult(model, modified)
