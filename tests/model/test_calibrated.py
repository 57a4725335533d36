"""w8a16: activations are measured with every adapter; slots, adapters and the base's bits stay as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from conftest import WORDS, Bases, Models, all_equal, ragged, save_lora

from edgepeft import runtime
from edgepeft.base.samples import bundle_batches
from edgepeft.bundle import Bundle, SlotTable, read_bundle
from edgepeft.data import Examples
from edgepeft.errors import BundleError, InputError, UnknownAdapterError
from edgepeft.pipeline import add, export, export_for, fit, quantize, write_static
from edgepeft.pipeline._calibrate import measure_ranges
from edgepeft.quantize.w8a16 import w8a16, with_extremes
from edgepeft.quantize.weights import matrices
from edgepeft.targets import load_target


def texts(seed: int, count: int = 24) -> Examples:
    rng = np.random.default_rng(seed)
    return Examples(tuple(" ".join(rng.choice(WORDS, rng.integers(2, 14))) for _ in range(count)), labels=None)


#: "dora" has none of its own and runs all of them.
DATA = {"plain": texts(0), "head": texts(1)}


@pytest.fixture(scope="module")
def quantized(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("w8a16") / "b"))
    quantize(own, "w8a16", data=DATA)
    quantize(own, "int8")
    return own


def test_what_is_written(quantized: Path, bundle: Path) -> None:
    before, after = read_bundle(bundle), read_bundle(quantized)
    after.verify()
    entry = after.manifest.variants["w8a16"]
    assert entry.file == "onnx/model_w8a16.onnx"
    assert 0.5 < entry.quantized_share < 1
    assert after.manifest.provenance["calibration"] == {
        "w8a16": {"texts": {"*": 48, "plain": 24, "head": 24, "dora": 48}}
    }
    assert (after.manifest.adapters, after.manifest.slots) == (before.manifest.adapters, before.manifest.slots)
    graph = ir.load(after.file(entry.file)).graph
    for name in after.manifest.slots.tensors():
        assert graph.initializers[name].dtype == ir.DataType.FLOAT
        users = [user for user, _ in graph.initializers[name].uses()]
        assert users
        assert {user.op_type for user in users} <= {"MatMul", "Mul", "Add"}
    for slot in after.manifest.slots.linear:
        assert slot.weight not in graph.initializers, f"{slot.weight} stayed in fp32"
    for node in graph:
        if node.op_type == "QuantizeLinear":
            assert all(value is not None and value.is_initializer() for value in node.inputs[1:]), "scales are constant"


def test_swapping(quantized: Path, bases: Bases) -> None:
    """Reference: fp32. Beside int8 this also keeps the activations' noise out: it must be the closer of the two."""
    full, small, dynamic = (runtime.open(quantized, variant=name) for name in ("fp32", "w8a16", "int8"))
    batch = ragged(bases("bert"))[1]
    before = small.forward(batch)
    seen = {}
    for name in (*small.adapters, None):
        expected = full.use(name).forward(batch)["logits"]
        seen[name] = small.use(name).forward(batch)["logits"]
        error, coarse = (
            float(np.sqrt(np.mean((found - expected) ** 2)))
            for found in (seen[name], dynamic.use(name).forward(batch)["logits"])
        )
        assert error < 0.05
        assert error < coarse
    assert not np.allclose(seen["plain"], seen[None], atol=0.1)
    assert all_equal(small.use(None).forward(batch), before), "base restored bit for bit"


def watched(opened: Bundle, path: Path) -> tuple[ort.InferenceSession, list[str]]:
    """The fp32 graph with every linear layer's input and output as outputs."""
    model = ir.load(opened.file("onnx/model.onnx"))
    values = {
        value.name: value
        for matrix in matrices(model.graph, opened.manifest.slots)
        for node in matrix.linear
        for value in (node.inputs[0], node.outputs[0])
        if value is not None
    }
    model.graph.outputs.extend(values.values())
    ir.save(model, path, external_data="all.onnx_data")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), [str(name) for name in values]


def test_ranges_are_those_of_each_adapter_on_its_texts(bundle: Path, tmp_path: Path) -> None:
    """Reference: all activations themselves, adapter by adapter, minimum and maximum by numpy."""
    opened = read_bundle(bundle)
    ranges, counts = measure_ranges(opened, DATA, rows=10, announce=lambda message: None)
    assert counts == {"*": 10, "plain": 10, "head": 10, "dora": 10}
    session, names = watched(opened, tmp_path / "all.onnx")
    assert sorted(ranges) == sorted(names)
    live = runtime.open(bundle)
    everything = [*DATA["plain"].texts, *DATA["head"].texts]
    found: dict[str | None, dict[str, tuple[float, float]]] = {}
    for adapter in (None, "plain", "head", "dora"):
        own = list(DATA[adapter].texts) if adapter in DATA else everything
        chosen = [own[int(i * len(own) / 10)] for i in range(10)]
        parts = []
        for start in range(0, 10, 8):  # padded as they are measured
            feeds = live.encode(chosen[start : start + 8])
            options = ort.RunOptions()
            if adapter is not None:
                handle = ort.LoraAdapter()
                handle.Load(str(opened.file(opened.adapter(adapter).onnx_adapter)))
                options.add_active_adapter(handle)
            parts.append(session.run(names, feeds, options))
        found[adapter] = {
            name: (min(float(p[i].min()) for p in parts), max(float(p[i].max()) for p in parts))
            for i, name in enumerate(names)
        }
    for name in names:
        lows, highs = zip(*(each[name] for each in found.values()), strict=True)
        assert ranges[name] == pytest.approx((min(0.0, *lows), max(0.0, *highs)), rel=1e-5)
    wider = [name for name in names if max(each[name][1] for each in found.values()) > found[None][name][1] * 1.01]
    assert wider, "the adapters move activations: measuring the base alone would not do"


@pytest.mark.parametrize("opset", [20, 21])
def test_both_sets_of_operators_compute_the_same(opset: int, bundle: Path, quantized: Path, tmp_path: Path) -> None:
    """ONNX has 16-bit numbers in these operators from opset 21 on, ONNX Runtime's own take them before."""
    opened = read_bundle(bundle)
    model = ir.load(opened.file("onnx/model.onnx"))
    model.graph.opset_imports[""] = opset
    source, target = tmp_path / "fp32.onnx", tmp_path / "w8a16.onnx"
    ir.save(model, source, external_data="fp32.onnx_data")
    ranges, _ = measure_ranges(opened, DATA, announce=lambda message: None)
    w8a16(source, target, opened.manifest.slots, ranges=ranges)
    graph = ir.load(target).graph
    domains = {node.domain for node in graph if node.op_type == "QuantizeLinear" and "rows" not in str(node.inputs[0])}
    assert ("com.microsoft" in domains) is (opset < 21)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    live = runtime.open(quantized, variant="w8a16")
    feeds = live.encode(["the film was not very good", "a great plot ."])
    np.testing.assert_allclose(session.run(["logits"], feeds)[0], live.forward(feeds)["logits"], atol=1e-5)


def test_a_tied_head_is_quantized_as_a_table_and_as_a_head(bases: Bases, tmp_path: Path) -> None:
    base = bases("bert", "fill-mask", sizes=(("hidden_size", 64),))  # smaller tables stay in float
    source, target = tmp_path / "m.onnx", tmp_path / "q.onnx"
    ir.save(base.graph, source, external_data="m.onnx_data")
    names = with_extremes(source, tmp_path / "x.onnx", SlotTable())
    batch = ragged(base)[0]
    session = ort.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    ends = dict(zip([o.name for o in session.get_outputs()], session.run(None, batch), strict=True))
    ranges = {name: (float(ends[f"{name}/min"]), float(ends[f"{name}/max"])) for name in names}
    w8a16(source, target, SlotTable(), ranges=ranges)
    graph = ir.load(target).graph
    stored = {
        value.dtype
        for value in graph.initializers.values()
        if value.shape is not None and value.shape in ([base.config["vocab_size"], 64], [64, base.config["vocab_size"]])
    }
    assert stored == {ir.DataType.INT8, ir.DataType.UINT8}
    found = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"]).run(["logits"], batch)[0]
    expected = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"]).run(["logits"], batch)[0]
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.02 * np.abs(expected).max()


def test_static_graphs_of_it(quantized: Path, tmp_path: Path) -> None:
    target = load_target("android-qnn")
    target = target.model_copy(update={"graph": target.graph.model_copy(update={"buckets": ("2x8",)})})
    (file,) = write_static(quantized, target, tmp_path / "out", adapter="dora")
    (plain,) = write_static(quantized, target, tmp_path / "fp32", adapter="dora", variant="fp32")
    assert [n.op_type for n in ir.load(file).graph].count("QuantizeLinear") > 5
    assert "QuantizeLinear" not in [n.op_type for n in ir.load(plain).graph]
    assert not [n for n in ir.load(file).graph if n.op_type in {"GatherND", "Expand"} and "mask" in (n.name or "")]
    ids = np.random.default_rng(3).integers(5, 30, size=(2, 8))
    fill = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = {value.name: fill[value.name] for value in session.get_inputs()}
    expected = runtime.open(quantized, variant="w8a16").use("dora").forward(feeds)["logits"]
    # One step of an activation at most rounds otherwise where float32 sums come in another order.
    np.testing.assert_allclose(session.run(["logits"], feeds)[0], expected, atol=2e-3)
    with pytest.raises(InputError, match="no variant 'q4'"):
        write_static(quantized, target, tmp_path / "x", variant="q4")


def test_a_target_that_prefers_it_gets_it_where_there_are_texts(bundle: Path, tmp_path: Path) -> None:
    target = load_target("android-qnn")
    assert fit(bundle, target, tmp_path / "with", data={"*": texts(5)}).variant == "w8a16"
    without = fit(bundle, target, tmp_path / "without")
    assert without.variant == "fp32"
    assert without.notes[0].startswith("w8a16: activations are measured on texts, and none are given")


def test_bad_input(own_bundle: Path, tmp_path: Path) -> None:
    before = (own_bundle / "edgepeft.json").read_bytes()
    with pytest.raises(InputError, match=r"none are given: --data NAME=FILE"):
        quantize(own_bundle, "w8a16")
    with pytest.raises(UnknownAdapterError, match="no adapter 'plane'; it has: plain, head, dora"):
        quantize(own_bundle, "w8a16", data={"plane": texts(0)})
    with pytest.raises(InputError, match="int8 measures nothing beforehand: leave the data out"):
        quantize(own_bundle, "int8", data=DATA)
    graph = ir.load(own_bundle / "onnx" / "model.onnx")
    manifest = read_bundle(own_bundle).manifest
    slot = manifest.slots.linear[0]
    value = graph.graph.initializers[slot.weight]
    assert value.shape is not None
    broken = np.full(value.shape.numpy(), np.inf, np.float32)
    value.const_value = ir.tensor(broken, name=slot.weight)
    ir.save(graph, own_bundle / "onnx" / "model.onnx", external_data="model.onnx_data")
    opened = Bundle(path=own_bundle, manifest=manifest)
    with pytest.raises(BundleError, match="is not finite on the given texts"):
        measure_ranges(opened, DATA, announce=lambda message: None)
    assert (own_bundle / "edgepeft.json").read_bytes() == before
    assert not (own_bundle / "onnx" / "model_w8a16.onnx").exists()


def test_merged_bundles_are_measured_with_their_own_texts(
    models: Models, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model, two = models("bert"), {name: checkpoints[name] for name in ("plain", "head")}
    made = export_for(load_target("android-qnn"), model, two, tmp_path / "m", data=DATA, mode="merge")
    (batch, *_) = bundle_batches(made.bundles[0])
    for bundle in made.bundles:
        assert list(bundle.manifest.variants) == ["w8a16"]
        assert bundle.manifest.provenance["calibration"]["w8a16"]["texts"] == {"*": 24}
        found = runtime.open(bundle.path).forward(batch)["logits"]
        name = str(bundle.manifest.merged)
        whole = export(model, {name: two[name]}, tmp_path / "whole" / name, mode="merge").bundles[0]
        expected = runtime.open(whole.path).forward(batch)["logits"]
        assert 0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.05


def test_an_adapter_added_later_runs_on_it_and_the_user_is_told(
    quantized: Path, models: Models, bases: Bases, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(quantized, tmp_path / "own"))
    later = save_lora(tmp_path / "later", models("bert"), seed=9, r=8, target_modules=["query", "dense"])
    said: list[str] = []
    add(own, "later", later, announce=said.append)
    assert any("w8a16 was measured without later" in line for line in said)
    batch = ragged(bases("bert"))[1]
    full, small = (runtime.open(own, variant=name).use("later") for name in ("fp32", "w8a16"))
    expected, found = (model.forward(batch)["logits"] for model in (full, small))
    assert 0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.05
