"""What all graph passes share: their form, edgepeft's errors, and nodes in the bodies of control flow."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgepeft.base.routes.mobius_fixes
import edgepeft.graph.passes
from edgepeft.base.routes.given import read_graph
from edgepeft.base.routes.mobius_fixes.norms import PortableNorms
from edgepeft.bundle import SlotTable
from edgepeft.errors import AdapterMismatchError, CaptureError, SiteError
from edgepeft.graph.edit_base import add_slots
from edgepeft.graph.editable import GraphPart
from edgepeft.graph.locate.by_content import locate
from edgepeft.graph.passes.compose import Compose
from edgepeft.graph.passes.decompose_fused import DecomposeFused, ReshapeWholeGathers
from edgepeft.graph.passes.edit import CopyPass, EditPass
from edgepeft.graph.passes.fold_transposes import FoldTransposes
from edgepeft.graph.passes.name_causal import NameCausal
from edgepeft.graph.passes.name_dimensions import DeclareShapes
from edgepeft.graph.passes.plain_inputs import PlainInputs
from edgepeft.graph.passes.split_experts import SplitExperts
from edgepeft.graph.passes.split_fused_matmul import SplitFusedMatMul
from edgepeft.graph.passes.unpack_int4 import SetAccuracyLevel, UnpackInt4
from edgepeft.quantize.int8 import int8
from edgepeft.quantize.q4 import q4

RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_normal((8, 32)).astype(np.float32)  # [out, in]
X = RNG.standard_normal((2, 3, 32)).astype(np.float32)
OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("own", 1)]


def in_both(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    out: tuple[str | int, ...] = ("batch_size", 3, 8),
    inside: dict[str, np.ndarray] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
) -> ir.Model:
    """``y = flag ? f(x) : x'`` with ``f`` (which gives ``f``) in the body of an If, and ``z = f(x)`` in the main graph.

    ``inside`` are weights that the body holds itself.
    """
    result = helper.make_tensor_value_info("f", TensorProto.FLOAT, out)
    body = helper.make_graph(
        nodes, "then", [], [result], [numpy_helper.from_array(a, n) for n, a in (inside or {}).items()]
    )
    zeros = helper.make_node("Sub", ["z", "z"], ["none"])
    other = helper.make_graph([zeros], "else", [], [helper.make_tensor_value_info("none", TensorProto.FLOAT, out)])
    main = []
    for node in nodes:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.name = f"main/{node.name}"
        for names in (copy.input, copy.output):
            for index, name in enumerate(names):
                if name and name not in weights and name not in (inside or {}) and name != "x":
                    names[index] = "z" if name == "f" else f"main_{name}"
        main.append(copy)
    choice = helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=body, else_branch=other)
    if inside:  # the main graph cannot see them
        main = [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Expand", ["s", "shape"], ["z"]),
        ]
        weights = {**weights, "shape": np.array([2, 3, 8], np.int64)}
    graph = helper.make_graph(
        [*main, choice],
        "main",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch_size", 3, 32)),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, ()),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, out) for name in ("y", "z")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=OPSETS, functions=functions or [], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    """``y`` and ``z``, the body's result and the main graph's."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(["y", "z"], {"x": X, "flag": np.array(True), **feeds})
    return found


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph.all_nodes()]


def linear(weight: str = "w", out: str = "f") -> list[onnx.NodeProto]:
    """``x W'`` through a Transpose of the weight."""
    return [
        helper.make_node("Transpose", [weight], ["t"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], [out], name="product"),
    ]


def test_every_pass_has_the_form() -> None:
    found = 0
    for package in (edgepeft.graph.passes, edgepeft.base.routes.mobius_fixes):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = import_module(info.name)
            own = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == info.name]
            passes = [c for c in own if issubclass(c, ir.passes.PassBase)]
            if info.name.endswith(".edit"):
                continue
            assert passes, f"{info.name} holds no pass"
            assert all(issubclass(each, EditPass | CopyPass) for each in passes), info.name
            found += len(passes)
    assert found >= 20


def test_transposes_are_folded_in_bodies_too() -> None:
    model = in_both(linear(), {"w": WEIGHT})
    before = run(model)
    assert FoldTransposes()(model).modified
    assert "Transpose" not in operators(model)
    assert set(model.graph.initializers) == {"w.transposed"}
    for mine, theirs in zip(run(model), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not FoldTransposes()(model).modified


def test_fused_operators_are_written_out_in_bodies_too() -> None:
    nodes = [
        *linear(out="h"),
        helper.make_node("BiasGelu", ["h", "b"], ["g"], name="gelu", domain="com.microsoft"),
        helper.make_node("SkipLayerNormalization", ["g", "h", "gamma", "beta"], ["f"], name="n", domain="com.microsoft",
                         epsilon=1e-5),
    ]  # fmt: skip
    vectors = {name: RNG.standard_normal(8).astype(np.float32) for name in ("b", "gamma", "beta")}
    model = in_both(nodes, {"w": WEIGHT, **vectors})
    before = run(model)
    result = DecomposeFused()(model)
    assert result.replaced == {"BiasGelu": 2, "SkipLayerNormalization": 2}
    assert all(node.domain == "" for node in model.graph.all_nodes())
    for mine, theirs in zip(run(model), before, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)  # Gelu by erf in both; sums in another order


def test_experts_are_split_in_bodies_too() -> None:
    nodes = [
        helper.make_node("Split", ["w"], ["e0", "e1"], name="split", axis=0, num_outputs=2),
        helper.make_node("Squeeze", ["e0", "axis"], ["first"], name="s0"),
        helper.make_node("Squeeze", ["e1", "axis"], ["second"], name="s1"),
        helper.make_node("MatMul", ["x", "first"], ["p0"], name="p0"),
        helper.make_node("MatMul", ["x", "second"], ["p1"], name="p1"),
        helper.make_node("Sub", ["p0", "p1"], ["f"], name="sub"),
    ]
    stack = RNG.standard_normal((2, 32, 8)).astype(np.float32)
    model = in_both(nodes[:6], {"w": stack, "axis": np.array([0], np.int64)})
    before = run(model)
    assert SplitExperts()(model).modified
    assert not {"Split", "Squeeze"} & set(operators(model))
    for mine, theirs in zip(run(model), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_products_by_a_transposed_weight_are_split_in_bodies_too() -> None:
    fused = helper.make_node("FusedMatMul", ["x", "w"], ["f"], name="head", domain="com.microsoft", transB=1)
    model = in_both([fused], {"w": WEIGHT})
    before = run(model)
    assert SplitFusedMatMul()(model).modified
    assert sorted(operators(model)).count("MatMul") == 2
    for mine, theirs in zip(run(model), before, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)  # another kernel


def test_dimensions_are_named_in_bodies_too() -> None:
    model = in_both(linear(), {"w": WEIGHT})
    assert DeclareShapes({"batch_size": "rows"})(model).modified
    named = {
        str(dim.value)
        for node in model.graph.all_nodes()
        for output in node.outputs
        for dim in output.shape or ()
        if isinstance(dim, ir.SymbolicDim)
    }
    assert named == {"rows"}
    assert not DeclareShapes({"batch_size": "rows"})(model).modified


def test_four_bits_are_unpacked_in_bodies_too(tmp_path: Path) -> None:
    plain = in_both([helper.make_node("MatMul", ["x", "w"], ["f"], name="product")], {"w": np.tile(WEIGHT.T, (4, 16))})
    plain = _wide(plain)
    ir.save(plain, tmp_path / "m.onnx")
    q4(tmp_path / "m.onnx", tmp_path / "q4.onnx", SlotTable())
    model = ir.load(tmp_path / "q4.onnx")
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)  # type: ignore[union-attr]
    assert operators(model).count("MatMulNBits") == 2
    assert SetAccuracyLevel(0)(model).modified
    levels = [n.attributes.get_int("accuracy_level") for n in model.graph.all_nodes() if n.op_type == "MatMulNBits"]
    assert levels == [0, 0]
    feeds = {"x": np.tile(X, (1, 1, 4))}
    before = run(model, **feeds)
    assert UnpackInt4()(model).modified
    assert "MatMulNBits" not in operators(model)
    for mine, theirs in zip(run(model, **feeds), before, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)  # sums over 128 numbers in another order


def _wide(model: ir.Model) -> ir.Model:
    """The same with an input of 128 and outputs of 128 numbers."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and len(value.shape) == 3:
            value.shape = ir.Shape(["batch_size", 3, 128])
    for node in model.graph.all_nodes():
        for output in node.outputs:
            output.shape = ir.Shape(["batch_size", 3, 128])
    return model


def test_int8_quantizes_in_bodies_too(tmp_path: Path) -> None:
    model = in_both([helper.make_node("MatMul", ["x", "w"], ["f"], name="product")], {"w": WEIGHT.T.copy()})
    before = run(model)
    ir.save(model, tmp_path / "m.onnx")
    int8(tmp_path / "m.onnx", tmp_path / "int8.onnx", SlotTable())
    after = ir.load(tmp_path / "int8.onnx")
    assert operators(after).count("MatMulInteger") == 2
    for value in after.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)  # type: ignore[union-attr]
    for mine, theirs in zip(run(after), before, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=0.03 * float(np.abs(theirs).max()))  # 8 bits of both factors


class Given:
    """A base of one linear site."""

    def __init__(self, graph: ir.Model) -> None:
        self.graph = graph
        self.weights = {"site.weight": WEIGHT}
        self.locations = locate(graph, self.weights)
        self.fresh: tuple[str, ...] = ()
        self.tied: dict[str, str] = {}
        self.head: str | None = None
        self.labels: tuple[str, ...] | None = None
        self.head_widths: dict[str, int] = {}
        self.decoder: GraphPart | None = None


def test_a_slot_reaches_the_nodes_in_bodies() -> None:
    model = in_both(linear(), {"w": WEIGHT})
    FoldTransposes()(model)
    before = run(model)
    slotted = add_slots(Given(model), reserve="all-linear")
    (slot,) = slotted.table.linear
    for mine, theirs in zip(run(slotted.graph), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    a, b = (RNG.standard_normal(shape).astype(np.float32) for shape in ((1, 32, 2), (1, 2, 8)))
    expected = X @ (WEIGHT.T + a[0] @ b[0])
    for mine in run(slotted.graph, **{slot.a: a, slot.b: b}):
        np.testing.assert_allclose(mine, expected, atol=1e-4)  # sums over 32 numbers in another order


def test_a_given_file_with_weights_in_a_body_is_read_as_one_graph(tmp_path: Path) -> None:
    model = in_both(linear("own"), {}, inside={"own": WEIGHT})
    ir.save(model, tmp_path / "m.onnx")
    before = run(model)
    graph = read_graph(tmp_path / "m.onnx")
    assert [place.initializer for place in locate(graph, {"w": WEIGHT})["w"]] != []
    for mine, theirs in zip(run(graph), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_given_file_with_functions_is_read_inlined(tmp_path: Path) -> None:
    call = helper.make_node("Linear", ["x", "w"], ["f"], name="call", domain="own")
    function = helper.make_function("own", "Linear", ["x", "w"], ["f"], linear(), [helper.make_opsetid("", 20)])
    model = in_both([call], {"w": WEIGHT}, functions=[function])
    before = run(model)
    ir.save(model, tmp_path / "m.onnx")
    graph = read_graph(tmp_path / "m.onnx")
    assert operators(graph).count("MatMul") == 2
    FoldTransposes()(graph)
    assert add_slots(Given(graph), reserve="all-linear").table.linear[0].parts[0].site == "site"
    for mine, theirs in zip(run(graph), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_precondition_raises_the_error_itself_and_changes_nothing() -> None:
    """Not onnx_ir's PreconditionError around it; the first of two nodes is not replaced where the second cannot be."""
    model = in_both(linear(), {"w": WEIGHT})
    with pytest.raises(SiteError, match="odd is not a graph input with a default"):
        PlainInputs(["odd"])(model)
    with pytest.raises(AdapterMismatchError, match="no slot odd"):
        Compose(SlotTable(), {"odd": X})(model)
    with pytest.raises(CaptureError, match="'x', which is neither"):
        NameCausal()(model)
    nodes = [
        *linear(out="h"),
        helper.make_node("BiasGelu", ["h", "b"], ["g"], name="gelu", domain="com.microsoft"),
        helper.make_node(
            "SkipLayerNormalization", ["g", "h", "b"], ["k", "", "", "sum"], name="n", domain="com.microsoft"
        ),
        helper.make_node("Add", ["k", "sum"], ["f"], name="add"),
    ]
    fused = in_both(nodes, {"w": WEIGHT, "b": np.ones(8, np.float32)})
    before = operators(fused)
    with pytest.raises(SiteError, match="its second output is used"):
        DecomposeFused()(fused)
    assert operators(fused) == before


def test_nothing_to_do_is_said() -> None:
    model = in_both([helper.make_node("MatMul", ["x", "w"], ["f"], name="product")], {"w": WEIGHT.T.copy()})
    idle: tuple[ir.passes.PassBase, ...] = (
        DecomposeFused(), ReshapeWholeGathers(), FoldTransposes(), SplitExperts(), SplitFusedMatMul(), PortableNorms(),
        SetAccuracyLevel(4), UnpackInt4(),
    )  # fmt: skip
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert [each(model).modified for each in idle] == [False] * len(idle)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
