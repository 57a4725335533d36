"""Norms in an operator that runtimes on devices have."""

from __future__ import annotations

import onnx_ir as ir

from ....graph.passes.edit import EditPass, nodes_of, replace_node


class PortableNorms(EditPass[ir.passes.PassResult]):
    """RMSNormalization (opset 23) as ONNX Runtime's own SimplifiedLayerNormalization, which old runtimes have too."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace them."""
        norms = [node for node in nodes_of(model) if node.op_type == "RMSNormalization" and node.domain == ""]
        for node in norms:
            attributes = {
                "axis": node.attributes.get_int("axis", -1),
                "epsilon": node.attributes.get_float("epsilon", 1e-5),
                "stash_type": node.attributes.get_int("stash_type", 1),
            }
            new = ir.node("SimplifiedLayerNormalization", list(node.inputs), attributes, name=node.name)
            replace_node(node, [new])
        return ir.passes.PassResult(model, bool(norms))
