"""Results of normalizations that nothing reads."""

from __future__ import annotations

import onnx_ir as ir

from .edit import EditPass, nodes_of

#: Operators whose outputs but for the first may be missing.
_OPTIONAL = {
    ("", "LayerNormalization"),
    ("", "SimplifiedLayerNormalization"),
    ("com.microsoft", "SkipLayerNormalization"),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"),
}


class DropUnusedOutputs(EditPass[ir.passes.PassResult]):
    """Leaves out the means, deviations and sums of normalizations where nothing reads them.

    A token of SmolLM2-135M takes 3 % less time where its 60 norms name neither (``benchmarks/lm_nodes.py``).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Leave them out."""
        modified = False
        for node in nodes_of(model):
            if (node.domain, node.op_type) not in _OPTIONAL:
                continue
            used = [bool(output.uses()) or output.is_graph_output() for output in node.outputs]
            last = max((place for place, each in enumerate(used) if each), default=0)
            modified |= last + 1 < len(used)
            node.resize_outputs(last + 1)
            for output, each in list(zip(node.outputs, used, strict=False))[1:]:
                if not each and output.name != "":
                    output.name, modified = "", True
        return ir.passes.PassResult(model, modified)
