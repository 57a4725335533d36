"""Static graphs for providers that take fixed shapes only: slots as constants, or as inputs of a fixed rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from ...bundle.slots import SlotTable
from .compose import Compose
from .decompose_fused import DecomposeFused, ReshapeWholeGathers
from .edit import EditPass, nodes_of


def freeze(
    slotted: ir.Model, table: SlotTable, tensors: Mapping[str, np.ndarray], *, batch: int, sequence: int
) -> ir.Model:
    """A copy of ``slotted`` with every slot constant and inputs of the fixed shape ``[batch, sequence]``.

    For providers that want constant weights: one graph is one adapter. Slots that the adapter does not fill are removed,
    fused operators are written out and shape arithmetic is folded. The result computes what the base computes with the
    adapter.
    """
    model = Compose(table, tensors)(slotted).model
    DropEmptySlots(table)(model)
    return FixShapes(batch, sequence)(model).model


def slot_defaults(slotted: ir.Model, table: SlotTable) -> dict[str, np.ndarray]:
    """What each slot holds without an adapter: nothing (rank 0), or the base's numbers."""
    defaults = {}
    for name in table.tensors():
        tensor = slotted.graph.initializers[name].const_value
        if tensor is not None:
            defaults[name] = tensor.numpy()
    return defaults


def freeze_inputs(
    slotted: ir.Model,
    table: SlotTable,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    batch: int,
    sequence: int,
) -> ir.Model:
    """A copy of ``slotted`` with inputs ``[batch, sequence]``, and the slots in ``shapes`` as inputs of those fixed shapes.

    Every adapter that fits into the shapes can be fed, padded with zeros, which changes nothing (see :func:`pad_to`). Slots
    that are not named are removed, or keep the base's numbers.
    """
    model = Compose(table, {})(slotted).model
    kept = {slot.b for slot in table.linear if slot.b in shapes}
    DropEmptySlots(SlotTable(linear=tuple(slot for slot in table.linear if slot.b not in kept)))(model)
    for name, shape in shapes.items():
        value = model.graph.initializers.pop(name)
        value.const_value = None
        value.shape = ir.Shape(list(shape))
        value.dtype = ir.DataType.FLOAT
        model.graph.inputs.append(value)
    return FixShapes(batch, sequence)(model).model


def slot_shapes(adapters: Iterable[Mapping[str, np.ndarray]]) -> dict[str, tuple[int, ...]]:
    """The smallest fixed shape of each slot that any of ``adapters`` fills, into which all of them fit."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tensors in adapters:
        for name, array in tensors.items():
            old = shapes.get(name, array.shape)
            shapes[name] = tuple(max(pair) for pair in zip(old, array.shape, strict=True))
    return shapes


def pad_to(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], defaults: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Feeds for :func:`freeze_inputs`: an adapter's tensors, and ``defaults`` (the base's numbers) where it has none.

    Both are padded with zeros to ``shapes``: more rank adds nothing, and logits beyond an adapter's labels are left out.
    """
    padded = {}
    for name, shape in shapes.items():
        array = np.zeros(shape, np.float32)
        given = tensors.get(name, defaults.get(name))
        if given is not None:
            array[tuple(slice(size) for size in given.shape)] = given
        padded[name] = array
    return padded


class FixShapes(EditPass[ir.passes.PassResult]):
    """Gives inputs of two dimensions the shape ``[batch, sequence]``, writes fused operators out and folds shape arithmetic."""

    def __init__(self, batch: int, sequence: int) -> None:
        self.batch = batch
        self.sequence = sequence

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fix, infer anew and fold."""
        from onnx_ir.passes.common import RemoveUnusedNodesPass
        from onnxscript.optimizer import fold_constants

        DecomposeFused()(model)
        for value in model.graph.inputs:
            if value.shape is not None and len(value.shape) == 2:
                value.shape = ir.Shape([self.batch, self.sequence])
        # What was inferred with symbolic dimensions is inferred again with the fixed ones.
        for output in (*model.graph.outputs, *(output for node in nodes_of(model) for output in node.outputs)):
            output.shape = None
        fold_constants(model, onnx_shape_inference=True)
        ReshapeWholeGathers()(model)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)


class DropEmptySlots(EditPass[ir.passes.PassResult]):
    """Removes ``+ (x A) B`` where A and B of a slot in ``table`` are constants of rank 0."""

    def __init__(self, table: SlotTable) -> None:
        self.table = table

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Let what follows read the base's own output."""
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        for slot in self.table.linear:
            b = model.graph.initializers.get(slot.b)
            if b is None or b.const_value is None or b.const_value.size:
                continue
            for second, _ in list(b.uses()):
                _bypass(second)
        return RemoveUnusedNodesPass()(model)


def _bypass(second: ir.Node) -> None:
    """Let what reads the sum of the base's output and ``second``'s read the base's output alone."""
    delta = second.outputs[0]
    for user, _ in list(delta.uses()):
        if user.op_type == "Squeeze":  # where the base's activation has no axis for the sequence
            delta = user.outputs[0]
    for add, position in list(delta.uses()):
        kept = add.inputs[1 - position]
        if add.op_type == "Add" and kept is not None and not add.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(add.outputs[0], kept)
