"""A graph's twin: what is one node in it and what stays, read back with ONNX; and what is known of a factor's zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepeft.bundle.protobuf import all_fields, block, number, varint, written
from edgepeft.bundle.slots import LinearSlot, SlotPart
from edgepeft.runtime.twin import make_twin


def slot(name: str = "s", parts: tuple[int, ...] = (6,)) -> LinearSlot:
    offsets = [sum(parts[:place]) for place in range(len(parts))]
    return LinearSlot(
        name=name, in_features=4, out_features=sum(parts), a=f"{name}.lora_A", b=f"{name}.lora_B", rank=f"{name}.rank",
        parts=tuple(SlotPart(site=f"{name}{i}", offset=o, size=s) for i, (o, s) in enumerate(zip(offsets, parts, strict=True))),
        weight="w",
    )  # fmt: skip


def model(
    *, swapped: bool = False, op: str = "Add", outputs: tuple[str, ...] = ("result",), twice: bool = False
) -> bytes:
    """``result = x W + (x A) B``, with a slot of two parts."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "base"),
        helper.make_node("MatMul", ["x", "s.lora_A"], ["h"], "s/lora_A"),
        helper.make_node("MatMul", ["h", "s.lora_B"], ["delta"], "s/lora_B"),
        helper.make_node(op, ["delta", "y"] if swapped else ["y", "delta"], ["result"], "s/Add"),
    ]
    if twice:
        nodes += [
            helper.make_node("MatMul", ["result", "w2"], ["x2"], "second"),
            helper.make_node("MatMul", ["x2", "s.lora_A"], ["h2"], "s.1/lora_A"),
            helper.make_node("MatMul", ["h2", "s.lora_B"], ["delta2"], "s.1/lora_B"),
            helper.make_node("Add", ["result", "delta2"], ["result2"], "s.1/Add"),
        ]
    F = TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("x", F, ["batch", "tokens", 4]),
        helper.make_tensor_value_info("s.lora_A", F, ["adapter_batch", 4, "s.rank"]),
        helper.make_tensor_value_info("s.lora_B", F, ["adapter_batch", "s.rank", "s.lora_B.width"]),
    ]
    weights = {
        "w": np.ones((4, 6)),
        "w2": np.ones((6, 4)),
        "s.lora_A": np.zeros((1, 4, 0)),
        "s.lora_B": np.zeros((1, 0, 1)),
    }
    held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info(name, F, None) for name in outputs], held
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("swapped", [False, True])
def test_three_nodes_become_one(swapped: bool) -> None:
    twin = make_twin(model(swapped=swapped), [slot(parts=(4, 2))])
    assert twin is not None
    assert [each.name for each in twin.slots] == ["s"]
    found = onnx.load_from_string(twin.model)
    base, fused = found.graph.node
    assert base.op_type == "MatMul"
    assert (fused.op_type, fused.domain) == ("LowRankAdd", "edgepeft")
    assert list(fused.input) == ["y", "x", "s.lora_A", "s.lora_B", "s.reach"]
    assert list(fused.output) == ["result"]
    assert {each.name: list(each.ints) for each in fused.attribute} == {"offsets": [0, 4]}
    assert {each.domain: each.version for each in found.opset_import} == {"": 20, "edgepeft": 1}
    reach = next(each for each in found.graph.initializer if each.name == "s.reach")
    assert (list(reach.dims), reach.data_type) == ([1, 0], TensorProto.INT32)
    assert [each.name for each in found.graph.input] == ["x", "s.lora_A", "s.lora_B", "s.reach"]
    original = onnx.load_from_string(model(swapped=swapped))
    assert found.graph.initializer[:4] == original.graph.initializer[:4]


def test_one_part_has_no_offsets() -> None:
    twin = make_twin(model(), [slot()])
    assert twin is not None
    assert not onnx.load_from_string(twin.model).graph.node[1].attribute


def test_a_slot_in_two_places() -> None:
    twin = make_twin(model(twice=True, outputs=("result2",)), [slot()])
    assert twin is not None
    nodes = onnx.load_from_string(twin.model).graph.node
    assert [node.op_type for node in nodes] == ["MatMul", "LowRankAdd", "MatMul", "LowRankAdd"]
    assert [list(node.input[:2]) for node in nodes if node.domain] == [["y", "x"], ["result", "x2"]]


def test_an_adapter_in_one_piece() -> None:
    """The factors' inputs and defaults are gone; the piece and its rows have defaults of no elements."""
    twin = make_twin(model(twice=True, outputs=("result2",)), [slot()], adapter="piece")
    assert twin is not None
    assert (twin.adapter, twin.rows) == ("piece", "piece.rows")
    graph = onnx.load_from_string(twin.model).graph
    assert [node.op_type for node in graph.node] == ["MatMul", "AdapterAdd", "MatMul", "AdapterAdd"]
    fused = [node for node in graph.node if node.domain]
    assert [list(node.input) for node in fused] == [
        ["y", "x", "piece", "piece.rows"],
        ["result", "x2", "piece", "piece.rows"],
    ]
    assert [{each.name: each.i for each in node.attribute} for node in fused] == [{"slot": 0}, {"slot": 0}]
    assert {each.name: each.type.tensor_type.elem_type for each in graph.input} == {"x": 1, "piece": 2, "piece.rows": 7}
    defaults = {each.name: (each.data_type, list(each.dims)) for each in graph.initializer}
    assert defaults == {"w": (1, [4, 6]), "w2": (1, [6, 4]), "piece": (2, [1, 0]), "piece.rows": (7, [0])}


@pytest.mark.parametrize(
    "other",
    [{"op": "Mul"}, {"outputs": ("result", "delta")}, {"outputs": ("result", "h")}],
    ids=["another operator", "the change is an output", "its inside is an output"],
)
def test_other_forms_stay(other: dict[str, Any]) -> None:
    assert make_twin(model(**other), [slot()]) is None
    assert make_twin(model(), [slot("another")]) is None
    assert make_twin(model(), []) is None


@pytest.mark.parametrize("content", [b"\x3a\xff", b"no graph", b"", model()[:-3]])
def test_no_graph(content: bytes) -> None:
    with pytest.raises(IndexError):
        make_twin(content, [slot()])


def test_the_wire_format_both_ways() -> None:
    for value in (0, 1, 127, 128, 300, 2**31, 2**63 - 1):
        assert varint(written(value), 0, 99) == (value, len(written(value)))
    message = number(1, 300) + block(2, "text") + block(3, [number(1, 5)])
    held = [(f.number, f.kind, message[f.first : f.end]) for f in all_fields(message, 0, len(message))]
    assert held == [(1, 0, written(300)), (2, 2, b"text"), (3, 2, number(1, 5))]
