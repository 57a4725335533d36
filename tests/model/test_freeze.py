"""Static graphs: the same numbers as the graph with slots, whatever becomes of the slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from conftest import Bases

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.graph.passes.decompose_fused import DecomposeFused
from edgepeft.graph.passes.freeze import freeze, freeze_inputs, pad_to, slot_defaults, slot_shapes
from edgepeft.runtime.active import read_tensors

#: Float32 sums in another order: fused operators written out, and ORT's own choice of kernels.
TOLERANCE = 1e-5


def session(model: ir.Model, path: Path) -> ort.InferenceSession:
    ir.save(model, path, external_data=f"{path.name}_data")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs(bundle: Path, length: int) -> dict[str, np.ndarray]:
    names = [value.name for value in read_bundle(bundle).manifest.inputs]
    ids = np.random.default_rng(0).integers(5, 30, size=(1, length))
    mask = np.ones_like(ids)
    mask[:, length - 3 :] = 0
    fill = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: fill[name] for name in names}


def logits(model: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = model.run(["logits"], feeds)[0]
    return found


def test_constant_slots_give_the_adapter(bundle: Path, tmp_path: Path) -> None:
    opened = read_bundle(bundle)
    graph = ir.load(opened.file("onnx/model.onnx"))
    live = runtime.open(bundle)
    feeds = inputs(bundle, 12)
    for name in (None, "plain", "head", "dora"):
        tensors = read_tensors(opened, name, opened.adapter(name)) if name else {}
        frozen = freeze(graph, opened.manifest.slots, tensors, batch=1, sequence=12)
        static = session(frozen, tmp_path / f"{name}.onnx")
        assert [i.name for i in static.get_inputs()] == [v.name for v in opened.manifest.inputs]
        assert all(list(i.shape) == [1, 12] for i in static.get_inputs())
        assert not [n for n in frozen.graph if n.domain == "com.microsoft"]
        expected = live.use(name).forward(feeds)["logits"]
        np.testing.assert_allclose(logits(static, feeds), expected, atol=TOLERANCE)
    empty = freeze(graph, opened.manifest.slots, {}, batch=1, sequence=12)
    tensors = read_tensors(opened, "plain", opened.adapter("plain"))
    full = freeze(graph, opened.manifest.slots, tensors, batch=1, sequence=12)
    count = [sum(n.op_type == "MatMul" for n in m.graph) for m in (empty, full)]
    filled = sum(1 for slot in opened.manifest.slots.linear if slot.a in tensors)
    assert count[1] - count[0] == 2 * filled, "slots that an adapter leaves empty are gone"


def test_slots_as_inputs_of_a_fixed_rank_serve_every_adapter(bundle: Path, tmp_path: Path) -> None:
    opened = read_bundle(bundle)
    table = opened.manifest.slots
    graph = ir.load(opened.file("onnx/model.onnx"))
    tensors = {name: read_tensors(opened, name, entry) for name, entry in opened.manifest.adapters.items()}
    shapes, defaults = slot_shapes(tensors.values()), slot_defaults(graph, table)
    static = session(freeze_inputs(graph, table, shapes, batch=1, sequence=9), tmp_path / "in.onnx")
    assert {i.name: tuple(i.shape) for i in static.get_inputs() if i.name in shapes} == shapes
    live, feeds = runtime.open(bundle), inputs(bundle, 9)
    for name in (None, *tensors, None):
        expected = live.use(name).forward(feeds)["logits"]
        found = logits(static, {**feeds, **pad_to(tensors.get(name or "", {}), shapes, defaults)})
        np.testing.assert_allclose(found[:, : expected.shape[1]], expected, atol=TOLERANCE)


def test_slots_that_no_adapter_fills_are_gone(bundle: Path) -> None:
    """Tensors of no numbers are what providers refuse; the pooler's slot has its sequence axis squeezed off again."""
    opened = read_bundle(bundle)
    table = opened.manifest.slots
    assert any("pooler" in slot.name for slot in table.linear)
    graph = ir.load(opened.file("onnx/model.onnx"))
    for model in (
        freeze(graph, table, {}, batch=1, sequence=9),
        freeze_inputs(graph, table, {}, batch=1, sequence=9),
    ):
        assert not [node.name for node in model.graph if "lora_" in (node.name or "")]
        held = [value for value in model.graph.initializers.values() if value.uses() and value.const_value is not None]
        assert not [value.name for value in held if value.const_value is not None and value.const_value.size == 0]


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta"])
def test_fused_operators_written_out_compute_the_same(architecture: str, bases: Bases, tmp_path: Path) -> None:
    base = bases(architecture)
    graph = base.graph.clone()
    fused = sum(
        n.domain == "com.microsoft" and n.op_type in {"SkipLayerNormalization", "BiasGelu"} for n in graph.graph
    )
    done = DecomposeFused()(graph).replaced
    assert sum(done.values()) == fused > 0
    assert not [n for n in graph.graph if n.op_type in done]
    rng = np.random.default_rng(1)
    feeds = {
        value.name: rng.integers(5, 30, size=(2, 7)) if value.name == "input_ids"
        else np.ones((2, 7), np.int64) if value.name == "attention_mask" else np.zeros((2, 7), np.int64)
        for value in base.graph.graph.inputs
    }  # fmt: skip
    before = session(base.graph.clone(), tmp_path / "a.onnx").run(None, feeds)[0]
    after = session(graph, tmp_path / "b.onnx").run(None, feeds)[0]
    np.testing.assert_allclose(after, before, atol=TOLERANCE)
