"""int8: the base shrinks; slots and adapters stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from conftest import Bases, all_equal, ragged

from edgepeft import runtime
from edgepeft.bundle import SlotTable, read_bundle
from edgepeft.cli import main
from edgepeft.errors import BundleError, InputError
from edgepeft.pipeline import plan_quantize, quantize
from edgepeft.quantize.counts import count_quantized


@pytest.fixture(scope="module")
def quantized(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    own = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("int8") / "b"))
    quantize(own, "int8")
    return own


def test_slots_stay_in_float_and_adapters_unchanged(quantized: Path, bundle: Path) -> None:
    before, after = read_bundle(bundle), read_bundle(quantized)
    after.verify()
    assert list(after.manifest.variants) == ["fp32", "int8"]
    assert after.manifest.variants["int8"].file == "onnx/model_int8.onnx"
    assert after.manifest.adapters == before.manifest.adapters
    assert after.manifest.slots == before.manifest.slots
    for name in before.manifest.files.keys() - {
        "config.json"
    }:  # which lists each variant's weights for transformers.js
        assert (bundle / name).read_bytes() == (quantized / name).read_bytes(), name
    graph = ir.load(quantized / "onnx" / "model_int8.onnx").graph
    inputs = {value.name: value for value in graph.inputs}
    for name in after.manifest.slots.tensors():
        assert inputs[name].dtype == ir.DataType.FLOAT
        assert graph.initializers[name].dtype == ir.DataType.FLOAT
        for user, _ in inputs[name].uses():
            assert user.op_type in {"MatMul", "Mul", "Add"}, "slots are used as they come"


def test_every_packed_weight_is_int8(quantized: Path, bases: Bases) -> None:
    graph = ir.load(quantized / "onnx" / "model_int8.onnx").graph
    for slot in read_bundle(quantized).manifest.slots.linear:
        assert slot.weight not in graph.initializers, f"{slot.weight} stayed in fp32"


def test_the_share_is_counted(quantized: Path) -> None:
    """Reference: sizes of the stored tensors, added up here by their bytes."""
    bundle = read_bundle(quantized)
    graph = ir.load(quantized / "onnx" / "model_int8.onnx")
    slots = bundle.manifest.slots.tensors()
    tensors = [
        v.const_value for n, v in graph.graph.initializers.items() if n not in slots and v.const_value is not None
    ]
    int8 = sum(t.size for t in tensors if t.dtype in {ir.DataType.INT8, ir.DataType.UINT8} and t.size > 1)
    fp32 = sum(t.size for t in tensors if t.dtype == ir.DataType.FLOAT and t.size > 1)
    share = bundle.manifest.variants["int8"].quantized_share
    assert share == pytest.approx(int8 / (int8 + fp32), abs=1e-6)
    assert 0.5 < share < 1
    counted = count_quantized(ir.load(quantized / "onnx" / "model.onnx"), bundle.manifest.slots)
    assert (counted.quantized, counted.share) == (0, 0.0)


def test_swapping_on_int8(quantized: Path, bases: Bases) -> None:
    """Reference: fp32. int8 moves logits of magnitude 1 by about 0.05 here; 0.3 tells noise from a wrong adapter."""
    inputs = ragged(bases("bert"))[1]
    full, small = runtime.open(quantized), runtime.open(quantized, variant="int8")
    before = small.forward(inputs)
    seen = {}
    for name in (*small.adapters, None):
        seen[name] = small.use(name).forward(inputs)["logits"]
        np.testing.assert_allclose(seen[name], full.use(name).forward(inputs)["logits"], atol=0.3)
    assert not np.allclose(seen["plain"], seen[None], atol=0.1)
    assert all_equal(small.use(None).forward(inputs), before), "base restored bit for bit"


def test_a_second_run(quantized: Path) -> None:
    first = (quantized / "onnx" / "model_int8.onnx").read_bytes()
    with pytest.raises(InputError, match="already has a variant 'int8'"):
        quantize(quantized, "int8")
    quantize(quantized, "int8", replace=True)
    assert (quantized / "onnx" / "model_int8.onnx").read_bytes() == first


def test_unknown_recipe(bundle: Path) -> None:
    with pytest.raises(InputError, match="no recipe makes a variant 'q3'; there are: int8"):
        quantize(bundle, "q3")


def test_a_recipe_that_does_nothing_is_refused(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses
    import shutil

    from edgepeft.quantize import recipes

    idle = dataclasses.replace(
        recipes.RECIPES["int8"], apply=lambda source, target, slots: shutil.copyfile(source, target)
    )
    monkeypatch.setitem(recipes.RECIPES, "int8", idle)
    before = (own_bundle / "edgepeft.json").read_bytes()
    with pytest.raises(BundleError, match="quantized none of"):
        quantize(own_bundle, "int8")
    assert (own_bundle / "edgepeft.json").read_bytes() == before
    assert not (own_bundle / "onnx" / "model_int8.onnx").exists()


def test_counting_ignores_index_constants() -> None:
    def value(name: str, array: np.ndarray) -> ir.Value:
        return ir.Value(name=name, const_value=ir.tensor(array, name=name))

    values = [
        value("w8", np.zeros((4, 4), np.int8)),
        value("w32", np.zeros(16, np.float32)),
        value("axes", np.zeros(5, np.int64)),
        value("one", np.zeros((), np.float32)),
    ]
    graph = ir.Model(ir.Graph([], [], nodes=[], initializers=values, name="g"), ir_version=10)
    found = count_quantized(graph, SlotTable())
    assert (found.quantized, found.total, found.share) == (16, 32, 0.5)


def test_a_row_does_not_depend_on_its_batch(quantized: Path, bases: Bases) -> None:
    """Activations have a scale for each token. One for a whole batch moved these logits by 1e-2; float sums move 1e-6."""
    model = runtime.open(quantized, variant="int8").use("plain")
    inputs = ragged(bases("bert"))[1]
    together = model.forward(inputs)["logits"]
    for row, expected in enumerate(together):
        alone = model.forward({name: array[row : row + 1] for name, array in inputs.items()})["logits"][0]
        np.testing.assert_allclose(alone, expected, atol=1e-5)


def test_a_tied_head_is_stored_once_in_int8(tmp_path: Path) -> None:
    """One table of int8 rows for lookups, turned for the head; the product is that of the rounded numbers."""
    from edgepeft.quantize.int8 import int8, quantize_channels
    from edgepeft.quantize.weights import SMALL

    rng = np.random.default_rng(0)
    table = rng.standard_normal((SMALL // 16 + 3, 16)).astype(np.float32)
    ids = ir.Value(name="ids", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.INT64))
    weight = ir.Value(
        name="table",
        shape=ir.Shape(table.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(table, name="table"),
    )
    looked = ir.node("Gather", [weight, ids], name="look")
    looked.outputs[0].shape = ir.Shape(["n", 16])
    turned = ir.node("Transpose", [weight], {"perm": [1, 0]}, name="turn")
    head = ir.node("MatMul", [looked.outputs[0], turned.outputs[0]], name="head")
    head.outputs[0].name, head.outputs[0].type = "logits", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [ids], [head.outputs[0]], nodes=[looked, turned, head], initializers=[weight], opset_imports={"": 20}, name="g"
    )
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "fp32.onnx")
    int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", SlotTable())
    made = ir.load(tmp_path / "int8.onnx").graph
    big = [v.name for v in made.initializers.values() if v.const_value is not None and v.const_value.size >= table.size]
    assert big == ["table_int8"]
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(tmp_path / "int8.onnx", options, providers=["CPUExecutionProvider"])
    chosen = np.array([5, 0, 77])
    (found,) = session.run(None, {"ids": chosen})
    rounded = (lambda q, s: q * s[:, None])(*quantize_channels(table))
    # Reference: rounded weights in numpy; the activations' own rounding is half a 127th of their largest number.
    bound = np.abs(rounded[chosen]).max(1, keepdims=True) / 254 * np.abs(rounded).sum(1)[None]
    assert np.all(np.abs(found - rounded[chosen] @ rounded.T) <= bound * 1.01)
    assert found.argmax(1).tolist() == (table[chosen] @ table.T).argmax(1).tolist()


@pytest.mark.parametrize("variant", ["int8", "q4", "q8"])
def test_a_dry_run_tells_what_is_then_written(own_bundle: Path, variant: str) -> None:
    before = {path: path.read_bytes() for path in own_bundle.rglob("*") if path.is_file()}
    plan = plan_quantize(own_bundle, variant)
    assert {path: path.read_bytes() for path in own_bundle.rglob("*") if path.is_file()} == before
    made = quantize(own_bundle, variant)
    assert {file.name for file in plan.files} == set(made.bundle.variant_files(variant))
    assert plan.bytes_before == made.bytes_before
    weights = {file.name: file.bytes for file in plan.files if file.name.endswith("_data")}
    assert weights == {name: (own_bundle / name).stat().st_size for name in weights}
    # The graph of 100 kB, as large as these weights, is taken to be that of fp32.
    assert plan.bytes == pytest.approx(made.bytes_after, rel=0.35)
    assert not plan.replaces
    assert plan_quantize(own_bundle, variant, replace=True).replaces


def test_a_dry_run_refuses_what_quantize_refuses(own_bundle: Path) -> None:
    with pytest.raises(InputError, match="q5"):
        plan_quantize(own_bundle, "q5")
    with pytest.raises(InputError, match="--heal, --head-bits"):
        plan_quantize(own_bundle, "int8", heal=4)
    quantize(own_bundle, "int8")
    with pytest.raises(InputError, match="already has a variant 'int8'"):
        plan_quantize(own_bundle, "int8")
    done = CliRunner().invoke(main, ["quantize", str(own_bundle), "--variant", "q4", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "would get q4: 4 bits" in done.output
    assert "nothing was written" in done.output
    assert "q4" not in read_bundle(own_bundle).manifest.variants
