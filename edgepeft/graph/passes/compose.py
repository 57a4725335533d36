"""Composing a slotted base with an adapter subgraph into one static graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...adapters.fill import check_shape
from ...bundle.slots import SlotTable
from ...errors import AdapterMismatchError


def compose(slotted: ir.Model, table: SlotTable, tensors: Mapping[str, np.ndarray]) -> ir.Model:
    """A copy of ``slotted`` in which every slot is a constant: the adapter's tensor, or the slot's default.

    The result has no slot inputs and computes what the base with that adapter computes, unmerged. Raises
    :class:`AdapterMismatchError` for a tensor without a slot or of another shape.
    """
    shapes = table.tensors()
    unknown = sorted(set(tensors) - set(shapes))
    if unknown:
        raise AdapterMismatchError(f"the base has no slot {unknown[0]}; the adapter was exported for other slots")
    model = slotted.clone()
    for name in shapes:
        value = model.graph.initializers[name]
        if name in tensors:
            array = np.ascontiguousarray(tensors[name])
            check_shape(array.shape, shapes[name], f"slot {name}")
            value.const_value = ir.tensor(array, name=name)
        assert value.const_value is not None
        value.shape = ir.Shape(list(value.const_value.numpy().shape))
    kept = [value for value in model.graph.inputs if value.name not in shapes]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    return model
