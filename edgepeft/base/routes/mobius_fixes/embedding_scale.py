"""The scale of embeddings as PyTorch has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from ....graph.nodes import constant
from ....graph.passes.edit import EditPass, nodes_of


class RestoreEmbeddingScale(EditPass[ir.passes.PassResult]):
    """Gemma multiplies embeddings by sqrt(hidden) in float32; mobius 0.1 rounds that number to float16 first.

    ``module`` is the PyTorch model (transformers' modules have no types), which says its scale as ``embed_scale``.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Multiply by PyTorch's number."""
        scale = getattr(self.module.get_input_embeddings(), "embed_scale", None)
        if scale is None:
            return ir.passes.PassResult(model, modified=False)
        modified = False
        for node in nodes_of(model):
            if node.op_type != "Gather" or node.inputs[1] is None or node.inputs[1].name != "input_ids":
                continue
            for user, index in list(node.outputs[0].uses()):
                other = user.inputs[1 - index] if user.op_type == "Mul" else None
                if other is not None and other.const_value is not None and other.const_value.size == 1:
                    value = constant(model.graph, "edgepeft.embed_scale", np.array(float(scale), np.float32))
                    user.replace_input_with(1 - index, value)
                    modified = True
        return ir.passes.PassResult(model, modified)
