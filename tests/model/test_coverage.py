"""Provider coverage and the static graphs it recommends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgepeft import runtime
from edgepeft.devices.checks.coverage import _listed, _xnnpack, cover, coverage_report
from edgepeft.errors import InputError, UnknownAdapterError
from edgepeft.pipeline import write_static
from edgepeft.targets import load_target


def toy(sequence: int | str) -> onnx.ModelProto:
    """x [1, s, 4] → MatMul with a constant, MatMul with an input, LayerNormalization: FLOPs known by hand."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 8], np.ones(32, np.float32))
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [6], np.ones(6, np.float32))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="constant"),
        helper.make_node("MatMul", ["a", "v"], ["b"], name="fed"),
        helper.make_node("LayerNormalization", ["b", "scale"], ["y"], name="norm"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, sequence, 4]),
        helper.make_tensor_value_info("v", TensorProto.FLOAT, [8, 6]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, sequence, 6])
    graph = helper.make_graph(nodes, "toy", inputs, [output], [weight, scale])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_nodes_flops_and_reasons_by_hand() -> None:
    nnapi = cover(toy(5), "toy", "NNAPI", *_listed("NNAPI"))
    assert (nnapi.nodes, nnapi.taken, nnapi.partitions) == (3, 2, 1)
    # 2·5·8·4 + 2·5·6·8 of the MatMuls, and 30 elements normalized.
    assert nnapi.flops_share == pytest.approx((320 + 480) / 830)
    assert dict(nnapi.rejected) == {("LayerNormalization", "operator not supported"): 1}
    coreml = cover(toy(5), "toy", "CoreML", *_listed("CoreML"))
    assert (coreml.taken, coreml.flops_share) == (3, 1.0)
    assert any(said.startswith("ai.onnx:MatMul: Only support for transA") for said in coreml.caveats)
    xnnpack = cover(toy(5), "toy", "XNNPACK", _xnnpack, {})
    assert xnnpack.taken == 0
    assert dict(xnnpack.rejected) == {
        ("MatMul", "not 2-D"): 1,
        ("MatMul", "weight is not constant"): 1,
        ("LayerNormalization", "operator not supported"): 1,
    }


def test_dynamic_shapes_are_a_reason_and_make_flops_unknown() -> None:
    found = cover(toy("s"), "toy", "CoreML", *_listed("CoreML"))
    assert (found.taken, found.flops_share) == (0, None)
    assert found.rejected["MatMul", "dynamic shape"] == 2


def test_report_of_a_bundle(bundle: Path) -> None:
    report = coverage_report(bundle, adapter="head", shape="1x8")
    rows = {(row[0], row[1]): row for row in report.tables[1].rows}
    shipped, fixed = rows["as shipped", "CoreML"], rows["1x8, constant slots", "CoreML"]
    assert shipped[4] < 0.2 < 0.9 < fixed[4]  # type: ignore[operator] # cells are wider than numbers
    assert shipped[5] is None
    assert all(row[3] <= row[2] for row in rows.values())  # type: ignore[operator]
    left = [row for row in report.tables[0].rows if row[:2] == ("1x8, constant slots", "NNAPI")]
    assert ("LayerNormalization", "operator not supported") in [row[3:] for row in left]
    assert any("MatMul: Only support" in note for note in report.notes)
    json.dumps(report.data)
    with pytest.raises(UnknownAdapterError, match="nobody"):
        coverage_report(bundle, adapter="nobody")
    with pytest.raises(InputError, match="not a shape"):
        coverage_report(bundle, shape="big")


def test_static_files_hold_the_adapter(bundle: Path, tmp_path: Path) -> None:
    target = load_target("ios-coreml")
    target = target.model_copy(update={"graph": target.graph.model_copy(update={"buckets": ("1x8", "2x16")})})
    files = write_static(bundle, target, tmp_path / "out", adapter="dora")
    assert [file.name for file in files] == ["dora_1x8.onnx", "dora_2x16.onnx"]
    session = ort.InferenceSession(str(files[1]), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(3).integers(5, 30, size=(2, 16))
    fill = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feeds = {value.name: fill[value.name] for value in session.get_inputs()}
    expected = runtime.open(bundle).use("dora").forward(feeds)["logits"]
    # Fused operators are written out: float32 sums in another order.
    np.testing.assert_allclose(session.run(["logits"], feeds)[0], expected, atol=1e-5)
    write_static(bundle, target, tmp_path / "slots")
    assert "classifier.weight.slot" in json.loads((tmp_path / "slots" / "slots.json").read_text())
    with pytest.raises(InputError, match="exists and is not empty"):
        write_static(bundle, target, tmp_path / "out", adapter="dora")
    with pytest.raises(InputError, match=r"linux-x64-cpu has no graph\.buckets"):
        write_static(bundle, load_target("linux-x64-cpu"), tmp_path / "x")
    with pytest.raises(UnknownAdapterError, match="nobody"):
        write_static(bundle, target, tmp_path / "x", adapter="nobody")
