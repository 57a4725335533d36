"""Operators that providers of accelerators lack, in ones that they have."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...errors import SiteError


def write_out_fused(model: ir.Model) -> dict[str, int]:
    """Replace ``SkipLayerNormalization`` and ``BiasGelu`` in ``model`` by what they compute; how many of each.

    Raises :class:`SiteError` for one whose further outputs are used, which has no plain counterpart here.
    """
    done: dict[str, int] = {}
    for node in list(model.graph):
        if node.domain != "com.microsoft" or node.op_type not in _WRITTEN_OUT:
            continue
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            raise SiteError(f"{node.op_type} {node.name}: its second output is used, which cannot be written out")
        replacement = _WRITTEN_OUT[node.op_type](node)
        final = replacement[-1].outputs[0]
        final.name = node.outputs[0].name
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], replacement, [node.outputs[0]], [final])
        done[node.op_type] = done.get(node.op_type, 0) + 1
    return done


def reshape_whole_gathers(model: ir.Model) -> int:
    """Replace each ``GatherND`` that takes all numbers of its input in their order by a ``Reshape``; how many there were.

    Transformers looks padding masks up by row and column, for every row and column. With fixed shapes the indices are
    constants, and that they name every number once and in order can be seen.
    """
    done = 0
    for node in list(model.graph):
        if node.op_type != "GatherND" or node.domain != "" or node.attributes.get_int("batch_dims", 0) != 0:
            continue
        data, indices = node.inputs
        assert data is not None
        assert indices is not None
        known = ir.convenience.get_const_tensor(indices)
        if known is None or data.shape is None or not data.shape.is_static():
            continue
        shape, places = data.shape.numpy(), known.numpy()
        if places.shape[-1] != len(shape) or places.size != len(shape) * int(np.prod(shape)):
            continue
        axes = places.reshape(-1, len(shape)).T
        inside = all(((axis >= 0) & (axis < size)).all() for axis, size in zip(axes, shape, strict=True))
        if not inside or not np.array_equal(np.ravel_multi_index(tuple(axes), shape), np.arange(len(axes[0]))):
            continue
        output = node.outputs[0]
        target = ir.Value(
            name=f"{output.name}/shape",
            const_value=ir.tensor(np.array(places.shape[:-1], np.int64), name=f"{output.name}/shape"),
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([places.ndim - 1]),
        )
        model.graph.register_initializer(target)
        plain = ir.node("Reshape", [data, target], name=node.name)
        plain.outputs[0].name = output.name
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [plain], [output], [plain.outputs[0]])
        done += 1
    return done


def _add(first: ir.Value | None, second: ir.Value | None, name: str) -> ir.Node:
    return ir.node("Add", [first, second], name=name)


def _skip_layer_norm(node: ir.Node) -> list[ir.Node]:
    x, skip, gamma, beta, bias = (*node.inputs, None, None)[:5]
    nodes = [_add(x, skip, f"{node.name}/skip")]
    if bias is not None:
        nodes.append(_add(nodes[-1].outputs[0], bias, f"{node.name}/bias"))
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-12
    inputs = [nodes[-1].outputs[0], gamma] if beta is None else [nodes[-1].outputs[0], gamma, beta]
    return [*nodes, ir.node("LayerNormalization", inputs, {"axis": -1, "epsilon": epsilon}, name=f"{node.name}/norm")]


def _bias_gelu(node: ir.Node) -> list[ir.Node]:
    add = _add(node.inputs[0], node.inputs[1], f"{node.name}/bias")
    return [add, ir.node("Gelu", [add.outputs[0]], name=f"{node.name}/gelu")]


_WRITTEN_OUT = {"SkipLayerNormalization": _skip_layer_norm, "BiasGelu": _bias_gelu}
