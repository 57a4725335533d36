"""Operators that providers of accelerators lack, in ones that they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from ...errors import SiteError
from ..nodes import constant
from .edit import EditPass, graphs_of, nodes_of, replace_node


@dataclass
class Decomposed(ir.passes.PassResult):
    """How many of each operator were replaced."""

    replaced: Mapping[str, int]


class DecomposeFused(EditPass[Decomposed]):
    """Replaces ``SkipLayerNormalization`` and ``BiasGelu`` by what they compute.

    Raises :class:`SiteError` for one whose further outputs are used, which has no plain counterpart here.
    """

    def requires(self, model: ir.Model) -> None:
        """Only the first output of each is used."""
        for node in _fused(model):
            if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
                raise SiteError(f"{node.op_type} {node.name}: its second output is used, which cannot be written out")

    def call(self, model: ir.Model) -> Decomposed:
        """Replace them."""
        nodes = _fused(model)
        replaced = Counter(node.op_type for node in nodes)
        for node in nodes:
            replace_node(node, _WRITTEN_OUT[node.op_type](node))
        # onnx_ir numbers new values graph by graph; in ONNX those of a body must differ from all around it.
        if nodes and len(graphs_of(model)) > 1:
            NameFixPass()(model)
        return Decomposed(model, bool(replaced), replaced)


def _fused(model: ir.Model) -> list[ir.Node]:
    return [node for node in nodes_of(model) if node.domain == "com.microsoft" and node.op_type in _WRITTEN_OUT]


class ReshapeWholeGathers(EditPass[ir.passes.PassResult]):
    """Replaces each ``GatherND`` that takes all numbers of its input in their order by a ``Reshape``.

    Transformers looks padding masks up by row and column, for every row and column. With fixed shapes the indices are
    constants, and that they name every number once and in order can be seen.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace them."""
        replaced = [_reshape(model.graph, node) for node in nodes_of(model)]
        return ir.passes.PassResult(model, any(replaced))


def _reshape(graph: ir.Graph, node: ir.Node) -> bool:
    if node.op_type != "GatherND" or node.domain != "" or node.attributes.get_int("batch_dims", 0) != 0:
        return False
    data, indices = node.inputs
    assert data is not None
    assert indices is not None
    known = ir.convenience.get_const_tensor(indices)
    if known is None or data.shape is None or not data.shape.is_static():
        return False
    shape, places = data.shape.numpy(), known.numpy()
    if places.shape[-1] != len(shape) or places.size != len(shape) * int(np.prod(shape)):
        return False
    axes = places.reshape(-1, len(shape)).T
    inside = all(((axis >= 0) & (axis < size)).all() for axis, size in zip(axes, shape, strict=True))
    if not inside or not np.array_equal(np.ravel_multi_index(tuple(axes), shape), np.arange(len(axes[0]))):
        return False
    target = constant(graph, f"{node.outputs[0].name}/shape", np.array(places.shape[:-1], np.int64))
    replace_node(node, [ir.node("Reshape", [data, target], name=node.name)])
    return True


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
