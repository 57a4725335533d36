"""Which slots become one node with others or with a norm, and that each node stands behind those that make its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepeft.bundle.slots import LinearSlot, SlotPart
from edgepeft.runtime.twin import Twin, make_twin
from edgepeft.runtime.twin_joins import NORMS, QUICK_GELU, SIGMOID
from edgepeft.runtime.twin_nodes import in_order

F = TensorProto.FLOAT


def slot(name: str, wide: int = 4, out: int = 4) -> LinearSlot:
    return LinearSlot(
        name=name, in_features=wide, out_features=out, a=f"{name}.A", b=f"{name}.B", rank=f"{name}.rank", weight="w",
        parts=(SlotPart(site=name, offset=0, size=out),),
    )  # fmt: skip


class Graph:
    """Nodes over ``x``, with slots added to what they make."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.slots: list[LinearSlot] = []

    def node(self, op: str, inputs: list[str], outputs: list[str], **more: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, outputs, outputs[0], **more))
        return outputs[0]

    def slotted(self, name: str, x: str, y: str | None = None) -> str:
        """``x w + (x A) B``, or ``y + (x A) B``."""
        self.slots.append(slot(name))
        y = y or self.node("MatMul", [x, "w"], [f"{name}.y"])
        self.node("MatMul", [x, f"{name}.A"], [f"{name}.h"])
        self.node("MatMul", [f"{name}.h", f"{name}.B"], [f"{name}.d"])
        return self.node("Add", [y, f"{name}.d"], [f"{name}.r"])

    def norm(self, skip: str, added: str, name: str = "norm", **more: Any) -> str:
        outputs = more.pop("outputs", [name, "", "", f"{name}.sum"])
        inputs = [skip, added, "gamma", *more.pop("further", [])]
        op = more.pop("op", "SkipSimplifiedLayerNormalization")
        return self.node(op, inputs, outputs, domain="com.microsoft", **{"epsilon": 1e-5, **more})

    def twin(self, *outputs: str, **options: Any) -> tuple[list[onnx.NodeProto], Twin]:
        weights = {"w": np.ones((4, 4)), "gamma": np.ones(4)}
        for each in self.slots:
            weights |= {each.a: np.zeros((1, 4, 0)), each.b: np.zeros((1, 0, 4))}
        held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
        values = [helper.make_tensor_value_info("x", F, ["batch", "tokens", 4])]
        results = [helper.make_tensor_value_info(name, F, None) for name in outputs]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        made = helper.make_model(
            helper.make_graph(self.nodes, "g", values, results, held), opset_imports=opsets, ir_version=10
        )
        twin = make_twin(made.SerializeToString(), self.slots, **{"adapter": "piece", "norms": NORMS, **options})
        assert twin is not None
        found = onnx.load_from_string(twin.model)
        known = {"", *(value.name for value in (*found.graph.input, *found.graph.initializer))}
        for node in found.graph.node:
            assert set(node.input) <= known, node.name
            known |= set(node.output)
        assert set(outputs) <= known
        return list(found.graph.node), twin


def kinds(nodes: list[onnx.NodeProto]) -> list[str]:
    return [node.op_type for node in nodes]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def test_slots_over_the_same_activations() -> None:
    """What the second one's base makes moves before the node; what reads the first one's result stays behind it."""
    graph = Graph()
    gate = graph.node("Sigmoid", [graph.slotted("gate", "x")], ["s"])
    graph.node("Mul", [gate, graph.slotted("up", "x")], ["m"])
    nodes, twin = graph.twin("m")
    assert kinds(nodes) == ["MatMul", "MatMul", "AdapterAddEach", "Sigmoid", "Mul"]
    joined = nodes[2]
    assert list(joined.input) == ["x", "piece", "piece.rows", "gate.y", "up.y"]
    assert list(joined.output) == ["gate.r", "up.r"]
    assert attributes(joined) == {"slots": [0, 1]}
    assert joined.name == "gate+up/AdapterAddEach"
    assert [each.name for each in twin.slots] == ["gate", "up"]
    assert kinds(graph.twin("m", join=False)[0]) == ["MatMul", "AdapterAdd", "Sigmoid", "MatMul", "AdapterAdd", "Mul"]


def test_a_slot_that_needs_the_other_ones_result() -> None:
    graph = Graph()
    first = graph.slotted("first", "x")
    second = graph.slotted("second", "x", graph.node("MatMul", [first, "w"], ["y"]))
    nodes, _ = graph.twin(second)
    assert kinds(nodes) == ["MatMul", "AdapterAdd", "MatMul", "AdapterAdd"]


def test_one_slot_twice_over_the_same_activations() -> None:
    graph = Graph()
    graph.slotted("s", "x")
    graph.node("MatMul", ["x", "w"], ["y2"])
    graph.node("MatMul", ["x", "s.A"], ["h2"])
    graph.node("MatMul", ["h2", "s.B"], ["d2"])
    graph.node("Add", ["y2", "d2"], ["r2"])
    assert kinds(graph.twin("s.r", "r2")[0]).count("AdapterAdd") == 2


def test_what_lies_far_apart_and_more_than_have_room() -> None:
    graph = Graph()
    graph.slotted("near", "x")
    other = "x"
    for number in range(50):
        other = graph.node("Relu", [other], [f"o{number}"])
    graph.slotted("far", "x")
    assert kinds(graph.twin("near.r", "far.r", other)[0]).count("AdapterAdd") == 2
    many = Graph()
    results = [many.slotted(f"s{number}", "x") for number in range(10)]
    found = [node for node in many.twin(*results)[0] if node.domain]
    assert [len(node.output) for node in found] == [8, 2]


def test_a_subgraph_leads_to_y() -> None:
    """What a subgraph reads is not known, so nothing in it moves."""
    graph = Graph()
    graph.slotted("first", "x")
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "first.r"], ["inner"])],
        "b",
        [],
        [helper.make_tensor_value_info("inner", F, None)],
    )
    condition = numpy_helper.from_array(np.array(True), "true")
    graph.node("Constant", [], ["true"], value=condition)
    y = graph.node("If", ["true"], ["y"], then_branch=branch, else_branch=branch)
    nodes, _ = graph.twin(graph.slotted("second", "x", y))
    assert kinds(nodes).count("AdapterAdd") == 2


@pytest.mark.parametrize("first", [True, False])
def test_a_norm_behind_a_slot(first: bool) -> None:
    graph = Graph()
    result = graph.slotted("s", "x")
    graph.norm(*(("x", result) if first else (result, "x")), epsilon=3e-5)
    graph.node("Add", ["norm", "norm.sum"], ["out"])
    nodes, _ = graph.twin("out")
    assert kinds(nodes) == ["MatMul", "AdapterSkipNorm", "Add"]
    joined = nodes[1]
    assert list(joined.input) == ["s.y", "x", "piece", "piece.rows", "x", "gamma"]
    assert list(joined.output) == ["norm", "norm.sum"]
    assert attributes(joined) == {"slot": 0, "epsilon": pytest.approx(3e-5)}
    assert kinds(graph.twin("out", norms=())[0])[1] == "AdapterAdd"


def test_a_norm_without_a_sum() -> None:
    graph = Graph()
    graph.norm("x", graph.slotted("s", "x"), outputs=["norm"])
    (_, joined), _ = graph.twin("norm")
    assert list(joined.output) == ["norm", "s.r.total"]


@pytest.mark.parametrize(
    ("outputs", "more"),
    [
        (("norm", "s.r"), {}),
        (("norm", "mean"), {"outputs": ["norm", "mean", "", "sum"]}),
        (("norm",), {"further": ["gamma"]}),
    ],
    ids=["the slot's result is an output", "the mean is an output", "a bias"],
)
def test_norms_that_stay(outputs: tuple[str, ...], more: dict[str, Any]) -> None:
    graph = Graph()
    graph.norm("x", graph.slotted("s", "x"), **more)
    assert kinds(graph.twin(*outputs)[0]) == ["MatMul", "AdapterAdd", "SkipSimplifiedLayerNormalization"]


@pytest.mark.parametrize("further", [[], ["beta"], ["", "bias"], ["beta", "bias"]], ids=str)
def test_a_centered_norm(further: list[str]) -> None:
    graph = Graph()
    graph.norm(
        "x", graph.slotted("s", "x"), op="SkipLayerNormalization", further=[each and "gamma" for each in further]
    )
    (_, joined), _ = graph.twin("norm.sum")
    assert list(joined.input)[5:] == ["gamma", *(each and "gamma" for each in further)]
    assert attributes(joined) == {"slot": 0, "epsilon": pytest.approx(1e-5), "centered": 1}
    kept = graph.twin("norm", norms=NORMS[:1])[0]
    assert kinds(kept) == ["MatMul", "AdapterAdd", "SkipLayerNormalization"]


@pytest.mark.parametrize("adapter", ["piece", None])
def test_means_that_nothing_reads_in_bundles_of_before(adapter: str | None) -> None:
    graph = Graph()
    graph.slotted("s", "x")
    graph.norm("x", "s.y", outputs=["norm", "mean", "deviation", "sum"])
    graph.norm("norm", "sum", "other", outputs=["other", "other.mean", "", "other.sum"])
    nodes, _ = graph.twin("s.r", "other", "other.mean", adapter=adapter)
    kept = {node.output[0]: list(node.output) for node in nodes if node.op_type in NORMS}
    assert kept == {"norm": ["norm", "", "", "sum"], "other": ["other", "other.mean", "", "other.sum"]}
    assert attributes(next(node for node in nodes if node.output[0] == "norm")) == {"epsilon": pytest.approx(1e-5)}


def test_a_norm_behind_two_slots_of_one_node() -> None:
    graph = Graph()
    one, two = graph.slotted("one", "x"), graph.slotted("two", "x")
    graph.norm(one, two)
    assert kinds(graph.twin("norm")[0]) == ["MatMul", "MatMul", "AdapterAddEach", "SkipSimplifiedLayerNormalization"]


def gated(form: str = SIGMOID, *, swapped: bool = False, **more: Any) -> tuple[Graph, str]:
    """``silu(gate) * up``, and the name of the product."""
    graph = Graph()
    gate, up = graph.slotted("gate", "x"), graph.slotted("up", "x")
    if form == SIGMOID:
        activated = graph.node("Mul", [gate, graph.node(SIGMOID, [gate], ["s"])][:: -1 if swapped else 1], ["a"])
    else:
        activated = graph.node(form, [gate], ["a"], **{"domain": "com.microsoft", "alpha": 1.0, **more})
    return graph, graph.node("Mul", [up, activated] if swapped else [activated, up], ["m"])


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("form", [SIGMOID, QUICK_GELU])
def test_a_gate(form: str, swapped: bool) -> None:
    graph, out = gated(form, swapped=swapped)
    nodes, twin = graph.twin(graph.node("Relu", [out], ["r"]), silus=[form])
    assert kinds(nodes) == ["MatMul", "MatMul", "AdapterSiluMul", "Relu"]
    joined = nodes[2]
    assert list(joined.input) == ["x", "piece", "piece.rows", "gate.y", "up.y"]
    assert list(joined.output) == ["m"]
    assert attributes(joined) == {"slots": [0, 1]}
    assert joined.name == "gate*up/AdapterSiluMul"
    assert [each.name for each in twin.slots] == ["gate", "up"]
    other = {SIGMOID: QUICK_GELU, QUICK_GELU: SIGMOID}[form]
    for silus in ([], [other]):
        assert "AdapterAddEach" in kinds(graph.twin("m", silus=silus)[0])


def test_the_gate_may_be_the_second_slot() -> None:
    graph = Graph()
    up, gate = graph.slotted("up", "x"), graph.slotted("gate", "x")
    graph.node("Mul", [graph.node(QUICK_GELU, [gate], ["a"], domain="com.microsoft", alpha=1.0), up], ["m"])
    nodes, _ = graph.twin("m", silus=[QUICK_GELU])
    assert list(nodes[-1].input)[3:] == ["gate.y", "up.y"]
    assert attributes(nodes[-1]) == {"slots": [1, 0]}


@pytest.mark.parametrize("outputs", [("m", "a"), ("m", "s"), ("m", "gate.r"), ("m", "up.r")], ids=str)
def test_a_gate_that_something_else_reads(outputs: tuple[str, ...]) -> None:
    graph, _ = gated()
    assert "AdapterAddEach" in kinds(graph.twin(*outputs, silus=[SIGMOID])[0])


@pytest.mark.parametrize("more", [{"alpha": 1.702}, {"alpha": None}, {"domain": ""}], ids=str)
def test_another_activation(more: dict[str, Any]) -> None:
    """``QuickGelu`` without ``alpha`` multiplies by 1.702."""
    graph, _ = gated(QUICK_GELU, **more)
    assert "AdapterAddEach" in kinds(graph.twin("m", silus=[QUICK_GELU])[0])


def test_a_gate_times_itself() -> None:
    graph = Graph()
    gate, up = graph.slotted("gate", "x"), graph.slotted("up", "x")
    activated = graph.node("Mul", [gate, graph.node(SIGMOID, [gate], ["s"])], ["a"])
    graph.node("Add", [graph.node("Mul", [activated, activated], ["m"]), up], ["out"])
    assert "AdapterAddEach" in kinds(graph.twin("out", silus=[SIGMOID])[0])


def test_the_order_of_nodes() -> None:
    assert in_order([["a"], ["b"], []], [["c"], ["a"], ["b"]]) == [2, 1, 0]
    assert in_order([[], [], ["a", "b"]], [["a"], ["b"], ["c"]]) == [0, 1, 2]
    assert in_order([["a", "b"], ["b"], [], ["", "c"]], [["c"], ["a"], ["b"], ["d"]]) == [2, 1, 0, 3]
