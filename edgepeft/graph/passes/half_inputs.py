"""Slots that are plain inputs in float16, where that is what the graph makes of them anyway."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from .edit import EditPass, home_of


class HalfInputs(EditPass[ir.passes.PassResult]):
    """Takes a float32 input in float16 where nothing reads it but a Cast to that, which is then left out.

    A slot costs as many nodes as in a float32 graph, and whoever feeds it casts the adapter's tensor once and not in every run.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Retype the inputs."""
        changed = False
        for value in model.graph.inputs:
            readers = [node for node, _ in value.uses()]
            if value.name not in self.names or not readers or not all(map(_halves, readers)):
                continue
            for node in readers:
                node.outputs[0].replace_all_uses_with(value)
                home_of(node).remove(node, safe=True)
            value.type = ir.TensorType(ir.DataType.FLOAT16)
            changed = True
        return ir.passes.PassResult(model, changed)


def _halves(node: ir.Node) -> bool:
    if node.op_type != "Cast" or node.domain not in {"", "ai.onnx"} or node.outputs[0].is_graph_output():
        return False
    return node.attributes.get_int("to", 0) == int(ir.DataType.FLOAT16)
