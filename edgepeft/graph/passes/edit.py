"""The form that all passes here have: onnx_ir's, with edgepeft's errors.

A pass is called with a model. ``requires`` looks whether it can be done and changes nothing; ``call`` does it, and its
:class:`~onnx_ir.passes.PassResult` says whether anything changed. A pass whose caller needs to know more has a result of
its own. Nodes are looked for in the main graph and in the bodies of control flow (:func:`nodes_of`), unless a pass says
that it is about the main graph alone. Functions there are none: they are inlined when a file is read.
"""

from __future__ import annotations

from typing import Generic, TypeVar, cast

import onnx_ir as ir

from ...errors import EdgepeftError

Result = TypeVar("Result", bound=ir.passes.PassResult)


class _Typed(ir.passes.PassBase, Generic[Result]):
    """What ``requires`` raises arrives as it is, where onnx_ir would wrap it."""

    def __call__(self, model_or_result: ir.Model | ir.passes.PassResult, /) -> Result:
        try:
            return cast(Result, super().__call__(model_or_result))
        except ir.passes.PreconditionError as error:
            if isinstance(error.__cause__, EdgepeftError):
                raise error.__cause__ from None
            raise


class EditPass(_Typed[Result], ir.passes.InPlacePass):
    """A pass that changes the model it is given."""


class CopyPass(_Typed[Result], ir.passes.FunctionalPass):
    """A pass that leaves the model as it is and returns another one."""


def graphs_of(model: ir.Model) -> list[ir.Graph]:
    """The main graph of ``model``, and the bodies of If, Loop and Scan in it, at any depth."""
    return [model.graph, *model.graph.subgraphs()]


def nodes_of(model: ir.Model) -> list[ir.Node]:
    """Every node of those graphs, in a list that stays while they are changed."""
    return list(model.graph.all_nodes())


def home_of(node: ir.Node) -> ir.Graph:
    """The graph that ``node`` stands in."""
    assert isinstance(node.graph, ir.Graph), "a node that was taken out of its graph"
    return node.graph


def insert_behind(value: ir.Value, nodes: list[ir.Node]) -> None:
    """Put ``nodes`` behind the node that makes ``value``, or first in the graph that has it as an input or a constant."""
    producer = value.producer()
    if producer is not None:
        home_of(producer).insert_after(producer, nodes)
        return
    assert value.graph is not None
    value.graph.insert_before(value.graph[0], nodes)


def replace_node(old: ir.Node, new: list[ir.Node]) -> None:
    """Put ``new`` in ``old``'s place; the last node's output takes over the name, shape, type and users of the first of old's."""
    before, after = old.outputs[0], new[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(home_of(old), old, [old], new, [before], [after])
