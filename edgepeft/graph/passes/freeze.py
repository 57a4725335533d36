"""Static graphs for providers that take fixed shapes only: slots as constants, or as inputs of a fixed rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from ...bundle.slots import SlotTable
from .compose import compose
from .decompose_fused import reshape_whole_gathers, write_out_fused


def freeze(
    slotted: ir.Model, table: SlotTable, tensors: Mapping[str, np.ndarray], *, batch: int, sequence: int
) -> ir.Model:
    """A copy of ``slotted`` with every slot constant and inputs of the fixed shape ``[batch, sequence]``.

    For providers that want constant weights: one graph is one adapter. Slots that the adapter does not fill are removed,
    fused operators are written out and shape arithmetic is folded. The result computes what the base computes with the
    adapter.
    """
    model = compose(slotted, table, tensors)
    _drop_empty(model, table)
    return _fix(model, batch, sequence)


def slot_defaults(slotted: ir.Model, table: SlotTable) -> dict[str, np.ndarray]:
    """What each slot holds without an adapter: nothing (rank 0), or the base's numbers."""
    found = {}
    for name in table.tensors():
        tensor = slotted.graph.initializers[name].const_value
        if tensor is not None:
            found[name] = tensor.numpy()
    return found


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
    model = compose(slotted, table, {})
    kept = {slot.b for slot in table.linear if slot.b in shapes}
    _drop_empty(model, SlotTable(linear=tuple(slot for slot in table.linear if slot.b not in kept)))
    for name, shape in shapes.items():
        value = model.graph.initializers.pop(name)
        value.const_value = None
        value.shape = ir.Shape(list(shape))
        value.dtype = ir.DataType.FLOAT
        model.graph.inputs.append(value)
    return _fix(model, batch, sequence)


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


def _fix(model: ir.Model, batch: int, sequence: int) -> ir.Model:
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from onnxscript.optimizer import fold_constants

    write_out_fused(model)
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape) == 2:
            value.shape = ir.Shape([batch, sequence])
    # What was inferred with symbolic dimensions is inferred again with the fixed ones.
    for output in model.graph.outputs:
        output.shape = None
    for node in model.graph:
        for output in node.outputs:
            output.shape = None
    fold_constants(model, onnx_shape_inference=True)
    reshape_whole_gathers(model)
    RemoveUnusedNodesPass()(model)
    return model


def _drop_empty(model: ir.Model, table: SlotTable) -> None:
    """Remove ``+ (x A) B`` where A and B have rank 0."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for slot in table.linear:
        b = model.graph.initializers.get(slot.b)
        if b is None or b.const_value is None or b.const_value.size:
            continue
        for second, _ in list(b.uses()):
            delta = second.outputs[0]
            for user, _ in list(delta.uses()):
                if user.op_type == "Squeeze":  # where the base's activation has no axis for the sequence
                    delta = user.outputs[0]
            for add, position in list(delta.uses()):
                kept = add.inputs[1 - position]
                if add.op_type == "Add" and kept is not None and not add.outputs[0].is_graph_output():
                    ir.convenience.replace_all_uses_with(add.outputs[0], kept)
    RemoveUnusedNodesPass()(model)
