"""What nothing uses."""

from __future__ import annotations

import onnx_ir as ir

from ....graph.passes.edit import EditPass


class RemoveUnused(EditPass[ir.passes.PassResult]):
    """Drops function bodies of operators ONNX Runtime has itself, and initializers that nothing uses."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop them."""
        functions = [key for key in model.functions if key[0] == "com.microsoft"]
        for key in functions:
            del model.functions[key]
        initializers = model.graph.initializers
        unused = [name for name, value in initializers.items() if not value.uses() and not value.is_graph_input()]
        for name in unused:
            del initializers[name]
        return ir.passes.PassResult(model, bool(functions or unused))
