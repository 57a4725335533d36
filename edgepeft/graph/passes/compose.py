"""Composing a slotted base with an adapter subgraph into one static graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...adapters.fill import check_shape
from ...bundle.slots import SlotTable
from ...errors import AdapterMismatchError
from .edit import CopyPass


class Compose(CopyPass[ir.passes.PassResult]):
    """A copy of a slotted base in which every slot is a constant: the adapter's tensor, or the slot's default.

    The result has no slot inputs and computes what the base with that adapter computes, unmerged. Raises
    :class:`AdapterMismatchError` for a tensor without a slot or of another shape.
    """

    def __init__(self, table: SlotTable, tensors: Mapping[str, np.ndarray]) -> None:
        self.shapes = table.tensors()
        self.tensors = tensors

    def requires(self, model: ir.Model) -> None:
        """Every tensor fits a slot."""
        unknown = sorted(set(self.tensors) - set(self.shapes))
        if unknown:
            raise AdapterMismatchError(f"the base has no slot {unknown[0]}; the adapter was exported for other slots")
        for name, array in self.tensors.items():
            check_shape(array.shape, self.shapes[name], f"slot {name}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Copy, and fill the slots."""
        model = model.clone()
        for name in self.shapes:
            value = model.graph.initializers[name]
            if name in self.tensors:
                value.const_value = ir.tensor(np.ascontiguousarray(self.tensors[name]), name=name)
            assert value.const_value is not None
            value.shape = ir.Shape(list(value.const_value.numpy().shape))
        kept = [value for value in model.graph.inputs if value.name not in self.shapes]
        model.graph.inputs.clear()
        model.graph.inputs.extend(kept)
        return ir.passes.PassResult(model, bool(self.shapes))
