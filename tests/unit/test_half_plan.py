"""Half precision planned on small graphs: what overflows is found in measured ranges and kept in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepeft.bundle import SlotTable
from edgepeft.quantize.halves.plan import MARGIN, HalfPlan, plan_halves
from edgepeft.quantize.halves.prepare import FAR, float_values, prepare
from edgepeft.quantize.halves.ranges import LARGEST, write_watched
from edgepeft.quantize.halves.write import plain_session, write_emulated, write_halves

Arrays = Mapping[str, np.ndarray]


class Graph:
    """A graph in a file, with what each step makes of it."""

    def __init__(self, folder: Path, nodes: list[onnx.NodeProto], constants: Arrays, shape: tuple[int, ...]) -> None:
        graph = helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *shape[1:]])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )  # fmt: skip
        self.file = folder / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), self.file)
        self.prepared = folder / "prepared.onnx"
        prepare(self.file, self.prepared)
        self.floats = float_values(self.prepared, plain_session)

    def largest(self, x: np.ndarray) -> dict[str, float]:
        watched = self.file.with_name("watched.onnx")
        names = write_watched(self.prepared, watched, self.floats)
        (sizes,) = plain_session(watched).run([LARGEST], {"x": x})
        return dict(zip(names, map(float, sizes), strict=True))

    def plan(self, largest: Mapping[str, float]) -> HalfPlan:
        return plan_halves(ir.load(self.prepared).graph, self.floats, largest, {}, cache=False)

    def emulated(self, plan: HalfPlan, x: np.ndarray) -> np.ndarray:
        target = self.file.with_name("emulated.onnx")
        write_emulated(self.prepared, target, self.floats, plan)
        return run(target, x)

    def halved(self, plan: HalfPlan) -> Path:
        target = self.file.with_name("halved.onnx")
        write_halves(self.prepared, target, SlotTable(), floats=self.floats, plan=plan)
        return target


def run(file: Path, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = plain_session(file).run(["y"], {"x": x})[0]
    return found


def norm(folder: Path, weight: np.ndarray) -> Graph:
    """A root mean square norm in parts, as traced models have it, between two products."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Pow", ["h", "two"], ["square"], name="square"),
        helper.make_node("ReduceMean", ["square", "axis"], ["mean"], name="mean", keepdims=1),
        helper.make_node("Add", ["mean", "epsilon"], ["shifted"], name="shifted"),
        helper.make_node("Sqrt", ["shifted"], ["root"], name="root"),
        helper.make_node("Div", ["h", "root"], ["normed"], name="normed"),
        helper.make_node("MatMul", ["normed", "w"], ["y"], name="last"),
    ]
    constants = {
        "w": weight, "two": np.float32(2), "axis": np.array([-1]), "epsilon": np.float32(1e-6),
    }  # fmt: skip
    return Graph(folder, nodes, constants, (1, len(weight)))


@pytest.fixture
def weight() -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((16, 16)) * 0.2).astype(np.float32)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)


def test_a_residual_channel_of_800_before_a_norm_is_kept_in_float32(
    tmp_path: Path, weight: np.ndarray, x: np.ndarray
) -> None:
    """Reference: the float32 graph. 800 fits float16, its square does not; 5e-3 is half a thousandth a layer, with room."""
    weight[:, 3] = 0
    weight[3, 3] = 1
    x[:, 3] = 800
    graph = norm(tmp_path, weight)
    expected = run(graph.file, x)
    largest = graph.largest(x)
    assert largest["h"] == pytest.approx(800, rel=1e-3)
    assert largest["square"] == pytest.approx(640_000, rel=1e-3)
    plan = graph.plan(largest)
    assert {"square", "mean"} <= plan.islands.keys()
    assert not plan.islands.keys() & {"first", "normed", "last"}
    assert "reaches 6.4e+05" in plan.islands["square"]
    assert np.abs(graph.emulated(plan, x) - expected).max() < 5e-3
    blind = graph.plan(dict.fromkeys(largest, 1.0))
    assert "square" in blind.nodes
    assert np.abs(graph.emulated(blind, x) - expected).max() > 0.5, "emulation sees what a plan without ranges does"
    halved = onnx.load(graph.halved(plan))
    types = {value.name: value.data_type for value in halved.graph.initializer}
    assert types["w/half"] == TensorProto.FLOAT16
    assert "w" not in types
    assert types["two"] == TensorProto.FLOAT
    assert np.abs(run(tmp_path / "halved.onnx", x) - expected).max() < 5e-3


def test_without_outliers_only_what_float16_cannot_say_is_an_island(
    tmp_path: Path, weight: np.ndarray, x: np.ndarray
) -> None:
    """An epsilon of 1e-6 is a float16, though not a precise one; one of 1e-12 is none."""
    plan = norm(tmp_path, weight).plan(norm(tmp_path, weight).largest(x))
    assert plan.islands == {}
    assert plan.total == 7
    tiny = norm(tmp_path, weight)
    model = onnx.load(tiny.prepared)
    next(value for value in model.graph.initializer if value.name == "epsilon").CopyFrom(
        numpy_helper.from_array(np.float32(1e-12), "epsilon")
    )
    onnx.save(model, tiny.prepared)
    assert list(tiny.plan(tiny.largest(x)).islands) == ["shifted"]


def test_measured_numbers_have_a_margin(tmp_path: Path, weight: np.ndarray) -> None:
    graph = norm(tmp_path, weight)
    fits = dict.fromkeys(graph.floats, 65_504 / MARGIN)
    assert graph.plan(fits).islands == {}
    assert set(graph.plan({**fits, "h": fits["h"] * 1.01}).islands) == {"first", "square", "normed"}


def test_what_is_tiny_and_then_amplified_stays_in_float32(tmp_path: Path, weight: np.ndarray, x: np.ndarray) -> None:
    """Numbers of 1e-4 have squares of 1e-8, of which float16 keeps one bit or none."""
    graph = norm(tmp_path, weight)
    small = x * np.float32(1e-3)
    plan = graph.plan(graph.largest(small))
    assert {"square", "mean"} <= plan.islands.keys()
    expected = run(graph.file, small)
    apart = np.abs(graph.emulated(plan, small) - expected).max()
    blind = np.abs(graph.emulated(graph.plan(dict.fromkeys(graph.floats, 1.0)), small) - expected).max()
    assert apart < 5e-3 < blind


def test_emulation_rounds_at_every_edge(tmp_path: Path) -> None:
    """Reference: numpy's float16. Were a Cast and its way back taken out, the sums would keep what they lose here."""
    nodes = [
        helper.make_node("Add", ["x", "tiny"], ["a"], name="a"),
        helper.make_node("Add", ["a", "tiny"], ["b"], name="b"),
        helper.make_node("Sub", ["b", "one"], ["y"], name="c"),
    ]
    graph = Graph(tmp_path, nodes, {"tiny": np.float32(2**-12), "one": np.float32(1)}, (1, 3))
    x = np.ones((2, 3), np.float32)
    plan = graph.plan(dict.fromkeys(graph.floats, 1.0))
    assert len(plan.nodes) == 3
    assert np.array_equal(graph.emulated(plan, x), np.zeros((2, 3)))
    assert np.array_equal(run(graph.file, x), np.full((2, 3), 2**-11, np.float32))


def test_masks_and_positions(tmp_path: Path) -> None:
    """What is counted stays in float32 up to where it meets the rest; minus infinity becomes a number that float16 has."""
    lowest = float(np.finfo(np.float32).min)
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Gather", ["shape", "zero"], ["rows"], name="rows", axis=0),
        helper.make_node("Cast", ["rows"], ["count"], name="count", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["count", "frequency"], ["angle"], name="angle"),
        helper.make_node("Sin", ["angle"], ["sine"], name="sine"),
        helper.make_node("Greater", ["x", "half"], ["bright"], name="bright"),
        helper.make_node("Where", ["bright", "none", "lowest"], ["mask"], name="mask"),
        helper.make_node("Add", ["x", "mask"], ["masked"], name="masked"),
        helper.make_node("Softmax", ["masked"], ["weights"], name="weights", axis=-1),
        helper.make_node("Mul", ["weights", "sine"], ["y"], name="y"),
    ]
    constants = {
        "zero": np.array(0), "frequency": np.float32(0.37), "half": np.float32(0.5), "none": np.float32(0),
        "lowest": np.float32(lowest),
    }  # fmt: skip
    graph = Graph(tmp_path, nodes, constants, (1, 5))
    x = np.random.default_rng(0).random((4099, 5)).astype(np.float32)
    x[np.abs(x - 0.5) < 1e-2] = 0.3  # on which side of a threshold a number is, rounding may change
    x[:, 0] = 0.9
    plan = graph.plan(graph.largest(x))
    assert set(plan.islands) == {"count", "angle", "sine", "mask"}
    held = {value.name: numpy_helper.to_array(value) for value in onnx.load(graph.prepared).graph.initializer}
    assert held["lowest"] == -FAR
    found, expected = graph.emulated(plan, x), run(graph.file, x)
    assert np.abs(found - expected).max() < 1e-3  # half of float16's last bit, twice
    assert np.array_equal(found[expected == 0], expected[expected == 0]), "what is masked stays masked"


def test_an_island_of_weights_keeps_them_in_float32(tmp_path: Path, weight: np.ndarray, x: np.ndarray) -> None:
    weight[5, 5] = 1e5
    graph = norm(tmp_path, weight)
    plan = graph.plan(graph.largest(x))
    assert {"first", "last"} <= plan.islands.keys()
    assert "w holds 1e+05" in plan.islands["last"]
    types = {value.name: value.data_type for value in onnx.load(graph.halved(plan)).graph.initializer}
    assert types["w"] == TensorProto.FLOAT
    assert "w/half" not in types


def test_weights_that_are_stored_in_float16_already_are_no_islands(tmp_path: Path, x: np.ndarray) -> None:
    """Reference: the float32 graph. A correction's factors are float16 in the file; sixteen products of 11 bits: 5e-3."""
    factor = (np.random.default_rng(3).standard_normal((16, 4)) * 0.3).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["factor"], ["wide"], name="wide", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"], name="y"),
    ]
    graph = Graph(tmp_path, nodes, {"factor": factor}, (1, 16))
    plan = graph.plan(graph.largest(x))
    assert plan.islands == {}
    expected = run(graph.file, x)
    assert np.abs(graph.emulated(plan, x) - expected).max() < 5e-3
    assert np.abs(run(graph.halved(plan), x) - expected).max() < 5e-3
