"""Products by a transposed weight, in operators that slots can find."""

from __future__ import annotations

import onnx_ir as ir

from .edit import EditPass, nodes_of, replace_node

#: A FusedMatMul that is a MatMul by a transposed weight.
_PLAIN = {"alpha": 1.0, "transA": 0, "transB": 1, "transBatchA": 0, "transBatchB": 0}


class SplitFusedMatMul(EditPass[ir.passes.PassResult]):
    """Writes the FusedMatMul by a transposed weight, as the exporter's fusions leave a tied head, as Transpose and MatMul.

    ONNX Runtime fuses them again when it opens the model; here a head must be a linear map that slots can find.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split them."""
        split = [_split(node) for node in nodes_of(model)]
        return ir.passes.PassResult(model, any(split))


def _split(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type == "FusedMatMul" else None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if weight is None or not weight.is_initializer() or {**_PLAIN, "transB": 0, **attributes} != _PLAIN:
        return False
    turned = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{node.name}/tied")
    view = turned.outputs[0]
    view.name, view.type = f"{node.name}/tied_output", weight.type
    if weight.shape is not None:
        view.shape = ir.Shape(list(weight.shape)[::-1])
    replace_node(node, [turned, ir.node("MatMul", [node.inputs[0], view], name=node.name)])
    return True
