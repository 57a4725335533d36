"""Static graphs for providers that take fixed shapes and constant weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..bundle.manifest import SlotTable
from .compose import compose


def freeze(
    slotted: ir.Model, table: SlotTable, tensors: Mapping[str, np.ndarray], *, batch: int, sequence: int
) -> ir.Model:
    """A copy of ``slotted`` with every slot constant and inputs of the fixed shape ``[batch, sequence]``.

    Slots that the adapter does not fill are emptied of their two MatMuls and Add where they have rank 0: a provider that
    counts nodes would refuse tensors without elements. The result computes what the base computes with the adapter.
    """
    model = compose(slotted, table, tensors)
    _drop_empty(model, table)
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) == 2:
            value.shape = ir.Shape([batch, sequence])
    for value in model.graph.outputs:
        if value.shape is not None:
            dims = [d if isinstance(d, int) else batch for d in value.shape][:1]
            rest = [d if isinstance(d, int) else sequence for d in list(value.shape)[1:]]
            value.shape = ir.Shape([*dims, *rest])
    for node in model.graph:
        for output in node.outputs:
            # What was inferred with symbolic dimensions is inferred again with the fixed ones.
            if not output.is_graph_output():
                output.shape = None
    _constant_shapes(model)
    return model


def _drop_empty(model: ir.Model, table: SlotTable) -> None:
    """Remove ``+ (x A) B`` where A and B have rank 0."""
    for slot in table.linear:
        b = model.graph.initializers.get(slot.b)
        if b is None or b.const_value is None or b.const_value.size:
            continue
        for second, _ in list(b.uses()):
            for add, position in list(second.outputs[0].uses()):
                kept = add.inputs[1 - position]
                if add.op_type == "Add" and kept is not None and not add.outputs[0].is_graph_output():
                    ir.convenience.replace_all_uses_with(add.outputs[0], kept)
    _remove_dead(model)


def _remove_dead(model: ir.Model) -> None:
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def _constant_shapes(model: ir.Model) -> None:
    """Shape arithmetic of the now fixed shapes becomes constants."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants

    fold_constants(model, onnx_shape_inference=True)
    RemoveUnusedNodesPass()(model)
