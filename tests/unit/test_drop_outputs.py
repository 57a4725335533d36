"""Results of norms that nothing reads are left out; what is read, in a body too, stays, and so do the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepeft.graph.passes.drop_outputs import DropUnusedOutputs

F = TensorProto.FLOAT
NORM = "SkipSimplifiedLayerNormalization"


def model(outputs: list[str], results: list[str], nodes: tuple[onnx.NodeProto, ...] = ()) -> ir.Model:
    norm = helper.make_node(NORM, ["x", "y", "gamma"], outputs, "norm", domain="com.microsoft", epsilon=1e-5)
    gamma = numpy_helper.from_array(np.linspace(0.5, 2, 8, dtype=np.float32), "gamma")
    inputs = [helper.make_tensor_value_info(name, F, [1, 3, 8]) for name in ("x", "y")]
    ends = [helper.make_tensor_value_info(name, F, None) for name in results]
    graph = helper.make_graph([norm, *nodes], "g", inputs, ends, [gamma])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def run(made: ir.Model) -> list[Any]:
    session = ort.InferenceSession(ir.to_proto(made).SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    return session.run(None, {name: rng.standard_normal((1, 3, 8), np.float32) for name in ("x", "y")})


@pytest.mark.parametrize(
    ("outputs", "results", "kept"),
    [
        (["n", "mean", "deviation", "sum"], ["n", "sum"], ["n", "", "", "sum"]),
        (["n", "mean", "deviation", "sum"], ["n"], ["n"]),
        (["n", "", "", "sum"], ["n", "sum"], ["n", "", "", "sum"]),
        (["n"], ["n"], ["n"]),
    ],
)
def test_what_nothing_reads(outputs: list[str], results: list[str], kept: list[str]) -> None:
    made = model(outputs, results)
    before = run(made)
    assert DropUnusedOutputs()(made).modified == (outputs != kept)
    node = next(node for node in ir.to_proto(made).graph.node if node.op_type == NORM)
    assert list(node.output) == kept
    for one, two in zip(before, run(made), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not DropUnusedOutputs()(made).modified


def test_what_a_body_reads_stays() -> None:
    body = helper.make_graph(
        [helper.make_node("Neg", ["sum"], ["inner"])], "b", [], [helper.make_tensor_value_info("inner", F, None)]
    )
    true = helper.make_node("Constant", [], ["true"], value=numpy_helper.from_array(np.array(True), "true"))
    branch = helper.make_node("If", ["true"], ["out"], then_branch=body, else_branch=body)
    made = model(["n", "mean", "deviation", "sum"], ["n", "out"], (true, branch))
    before = run(made)
    assert DropUnusedOutputs()(made).modified
    assert list(ir.to_proto(made).graph.node[0].output) == ["n", "", "", "sum"]
    for one, two in zip(before, run(made), strict=True):
        np.testing.assert_array_equal(one, two)
