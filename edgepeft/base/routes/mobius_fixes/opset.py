"""The oldest opset that serves."""

from __future__ import annotations

import onnx_ir as ir

from ....graph.passes.edit import EditPass, nodes_of

#: Every operator used is the same from here up; runtimes on devices are often older than the newest opset.
OPSET = 20
_NEWER = {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter", "Swish"}


class LowerOpset(EditPass[ir.passes.PassResult]):
    """Declares the oldest opset that has every operator used."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Declare it."""
        operators = {node.op_type for node in nodes_of(model) if node.domain == ""}
        lower = not operators & _NEWER and model.graph.opset_imports.get("", 0) > OPSET
        if lower:
            model.graph.opset_imports[""] = OPSET
        return ir.passes.PassResult(model, lower)
