"""Quantized matrices in a graph's twin: which become ``BlockMatMul``, and what it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepeft.runtime.twin import Twin, make_twin

WIDTH, COLUMNS = 64, 6
NUMBERS = {"K": WIDTH, "N": COLUMNS, "bits": 4, "block_size": 32, "accuracy_level": 4}


def model(
    *,
    half: bool = True,
    zeros: bool = True,
    bias: bool = False,
    order: bool = False,
    fed: bool = False,
    shared: bool = False,
    **numbers: Any,
) -> bytes:
    """``y = x W'``, whose scales are float16 behind a Cast or float32; ``numbers`` replace attributes; None: left out.

    Args:
        half: The scales are float16 in the file.
        zeros: There are zero points.
        bias: There is a bias.
        order: There is a ``g_idx``.
        fed: The weights are an input of the graph's own.
        shared: Something else reads the scales too.
    """  # fmt: skip
    scales = np.ones((COLUMNS, 2), np.float16 if half else np.float32)
    weights = {"w": np.ones((COLUMNS, 2, 16), np.uint8), "s": scales}
    weights |= {"z": np.ones((COLUMNS, 1), np.uint8)} if zeros else {}
    weights |= {"b": np.ones(COLUMNS, np.float32)} if bias else {}
    weights |= {"g": np.zeros(WIDTH, np.int32)} if order else {}
    wide = "s/wide" if half else "s"
    nodes = [helper.make_node("Cast", ["s"], ["s/wide"], to=TensorProto.FLOAT)] if half else []
    inputs = ["x", "w", wide, "z" if zeros else "", "g" if order else "", "b" if bias else ""]
    found = {name: value for name, value in {**NUMBERS, **numbers}.items() if value is not None}
    nodes.append(helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **found))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if shared:
        nodes.append(helper.make_node("Identity", [wide], ["again"]))
        outputs.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, None))
    ins = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])]
    ins += [helper.make_tensor_value_info("w", TensorProto.UINT8, [COLUMNS, 2, 16])] if fed else []
    graph = helper.make_graph(
        nodes, "g", ins, outputs, [numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def twin(content: bytes, **options: Any) -> Twin:
    found = make_twin(content, [], blocks=True, **options)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("form", "inputs"),
    [
        ({}, ["x", "w", "s", "z"]),
        ({"half": False}, ["x", "w", "s", "z"]),
        ({"zeros": False}, ["x", "w", "s"]),
        ({"bias": True}, ["x", "w", "s", "z", "b"]),
        ({"zeros": False, "bias": True}, ["x", "w", "s", "", "b"]),
    ],
    ids=["float16 scales", "float32 scales", "no zero points", "bias", "bias alone"],
)
@pytest.mark.parametrize("adapter", [None, "piece"])
def test_a_matrix(form: dict[str, Any], inputs: list[str], adapter: str | None) -> None:
    found = twin(model(**form), adapter=adapter)
    assert (found.matrices, found.slots, found.adapter) == (1, (), "")
    graph = onnx.load_from_string(found.model)
    (node,) = graph.graph.node
    assert (node.op_type, node.domain, list(node.input), list(node.output)) == (
        "BlockMatMul",
        "edgepeft",
        inputs,
        ["y"],
    )
    assert {each.name: each.i for each in node.attribute} == {"K": WIDTH, "N": COLUMNS, "bits": 4}
    assert {each.domain: each.version for each in graph.opset_import}["edgepeft"] == 4
    assert [each.name for each in graph.graph.input] == ["x"], "nothing takes an adapter"
    assert graph.graph.initializer == onnx.load_from_string(model(**form)).graph.initializer


def test_bits_are_4_where_nothing_says_so_and_may_be_8() -> None:
    for said, bits in ((None, 4), (8, 8)):
        (_, bits_found) = [
            each.i
            for each in onnx.load_from_string(twin(model(bits=said)).model).graph.node[0].attribute
            if each.name in ("N", "bits")
        ]
        assert bits_found == bits


def test_scales_that_something_else_reads_are_still_widened() -> None:
    graph = onnx.load_from_string(twin(model(shared=True)).model).graph
    assert [node.op_type for node in graph.node] == ["Cast", "BlockMatMul", "Identity"]


@pytest.mark.parametrize(
    "other",
    [{"accuracy_level": 1}, {"accuracy_level": None}, {"block_size": 64}, {"bits": 2}, {"order": True}, {"fed": True}],
    ids=str,
)
def test_others_stay(other: dict[str, Any]) -> None:
    assert make_twin(model(**other), [], blocks=True) is None
    assert make_twin(model(), []) is None


def test_float16_activations_stay() -> None:
    content = onnx.load_from_string(model())
    del content.graph.node[0]
    content.graph.node[0].input[2] = "s"
    assert make_twin(content.SerializeToString(), [], blocks=True) is None
