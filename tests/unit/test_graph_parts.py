"""Weights of a graph's parts: slices of rows, scales that are widened where they are read, nodes with branches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgepeft.runtime.graph_parts import GraphParts

ROWS, COLUMNS, BLOCK = 100, 64, 32


def model_of(*, halves: bool = False, zeros: bool = False, bias: bool = False, order: bool = False) -> ir.Model:
    """``y = x W``, ``W`` in 4 bits; with scales in float16, zero points, a bias, an order of columns."""
    rng = np.random.default_rng(3)
    blocks = COLUMNS // BLOCK
    held: dict[str, np.ndarray | None] = {
        "w.q": rng.integers(0, 256, (ROWS, blocks, BLOCK // 2), np.uint8),
        "w.s": rng.uniform(0.01, 0.02, ROWS * blocks).astype(np.float16 if halves else np.float32),
        "w.z": rng.integers(0, 256, ROWS * (blocks // 2), np.uint8) if zeros else None,
        "w.o": np.arange(COLUMNS, dtype=np.int32) // BLOCK if order else None,
        "w.b": rng.standard_normal(ROWS).astype(np.float32) if bias else None,
    }
    values = {name: None if array is None else stored(name, array) for name, array in held.items()}
    x = ir.Value(name="x", shape=ir.Shape(["rows", COLUMNS]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, scale = [], values["w.s"]
    if halves:
        widen = ir.node("Cast", [scale], {"to": int(ir.DataType.FLOAT)}, name="widen")
        widen.outputs[0].name = "w.s.wide"
        nodes, scale = [widen], widen.outputs[0]
    inputs = [x, values["w.q"], scale, values["w.z"], values["w.o"], values["w.b"]]
    settings = {"K": COLUMNS, "N": ROWS, "bits": 4, "block_size": BLOCK}
    product = ir.node("MatMulNBits", inputs, settings, domain="com.microsoft", name="head")
    y = product.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["rows", ROWS]), ir.TensorType(ir.DataType.FLOAT)
    weights = [value for value in values.values() if value is not None]
    opsets = {"": 20, "com.microsoft": 1}
    return ir.Model(
        ir.Graph([x], [y], nodes=[*nodes, product], initializers=weights, opset_imports=opsets, name="g"), ir_version=10
    )


def stored(name: str, array: np.ndarray) -> ir.Value:
    kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    return ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape), type=kind)


def written(model: ir.Model, folder: Path, *, outside: bool) -> bytes:
    file = folder / "m.onnx"
    if outside:
        ir.save(model, file, external_data="m.data", size_threshold_bytes=0)
    else:
        ir.save(model, file)
    return file.read_bytes()


def run(graph: GraphParts, feeds: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """All parts one behind the other."""
    values = dict(feeds)
    for part in graph.parts:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        fed = {name: values[name] for name in part.inputs}
        session = ort.InferenceSession(graph.model_of(part, fed), options, providers=["CPUExecutionProvider"])
        values.update(zip(part.outputs, session.run(list(part.outputs), fed), strict=True))
    return values


def whole(folder: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["y"], feeds)[0]
    return found


@pytest.mark.parametrize("outside", [False, True], ids=["in the graph", "in a file"])
@pytest.mark.parametrize("more", [{}, {"halves": True, "zeros": True, "bias": True}], ids=["plain", "fitted"])
def test_a_large_weight_in_slices(tmp_path: Path, more: dict[str, bool], outside: bool) -> None:
    """Each number is the same product: float32 sums in another order of columns, 1e-5 of the largest."""
    model = written(model_of(**more), tmp_path, outside=outside)
    graph = GraphParts(model, 1500)
    sizes = [[weight.dims[0] for weight in part.weights if weight.name.startswith("w.q")] for part in graph.parts]
    assert [rows for part in sizes for rows in part] == [64, 36]
    assert max(len(part) for part in sizes) == 1, "a part for each slice"
    feeds = {"x": np.random.default_rng(5).standard_normal((3, COLUMNS)).astype(np.float32)}
    expected = whole(tmp_path, feeds)
    found = run(graph, feeds, tmp_path)["y"]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize(("more", "budget"), [({}, 10**6), ({"order": True}, 100)], ids=["it fits", "ordered columns"])
def test_a_weight_that_stays_whole(tmp_path: Path, more: dict[str, bool], budget: int) -> None:
    graph = GraphParts(written(model_of(**more), tmp_path, outside=False), budget)
    assert [node.op for part in graph.parts for node in part.nodes] == ["MatMulNBits"]


def test_widened_scales_are_constants_of_the_part_that_reads_them(tmp_path: Path) -> None:
    """Casts at the graph's begin would hand scales on as values, and ONNX Runtime packs constants alone."""
    graph = GraphParts(written(model_of(halves=True), tmp_path, outside=True), 10**6)
    (part,) = graph.parts
    assert part.inputs == ("x",)
    assert {weight.name for weight in part.weights} == {"w.q", "w.s"}
    sliced = GraphParts(written(model_of(halves=True), tmp_path, outside=True), 1500)
    assert [part.inputs[0] for part in sliced.parts[:2]] == ["x", "x"]


def test_what_branches_read_comes_along(tmp_path: Path) -> None:
    """An If whose branches read a value, a weight and a widened weight from outside."""
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    choice = ir.Value(name="choice", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    weight, half = stored("w", np.array([1.0, 2.0], np.float32)), stored("h", np.array([3.0, 5.0], np.float16))
    wide = ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)})
    double = ir.node("Add", [x, x])
    wide.outputs[0].name, double.outputs[0].name = "wide", "double"
    branches = {}
    for name, other in (("then_branch", weight), ("else_branch", wide.outputs[0])):
        inner = ir.node("Mul", [double.outputs[0], other])
        inner.outputs[0].name = f"{name}.y"
        branches[name] = ir.Graph([], [inner.outputs[0]], nodes=[inner], name=name)
    chosen = ir.node("If", [choice], branches)
    y = chosen.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape([2]), ir.TensorType(ir.DataType.FLOAT)
    made = ir.Graph(
        [x, choice], [y], nodes=[wide, double, chosen], initializers=[weight, half], opset_imports={"": 20}, name="g"
    )
    graph = GraphParts(written(ir.Model(made, ir_version=10), tmp_path, outside=False), 1)
    assert len(graph.parts) > 1
    for taken, expected in ((True, [2.0, 8.0]), (False, [6.0, 20.0])):
        feeds = {"x": np.array([1.0, 2.0], np.float32), "choice": np.array(taken)}
        assert run(graph, feeds, tmp_path)["y"].tolist() == expected == whole(tmp_path, feeds).tolist()


def test_bytes_that_are_no_graph() -> None:
    with pytest.raises(IndexError):
        GraphParts(b"\x3a\xff", 1)
