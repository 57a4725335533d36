"""Forms of an adapter's tensors: what is stored, what comes back, and what other programs make of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.adapters.files import (
    in_form,
    read_adapter_onnx,
    read_onnx_adapter,
    write_adapter_onnx,
    write_onnx_adapter,
)
from edgepeft.bundle.adapter_forms import AdapterForm, expanded, stored, wrong_type
from edgepeft.errors import AdapterError

RNG = np.random.default_rng(0)
TENSORS = {
    "layer.0.q_k.lora_A": RNG.standard_normal((1, 200, 3)).astype(np.float32) * np.float32([1, 100, 1e-3]),
    "layer.0.q_k.lora_B": RNG.standard_normal((1, 3, 120)).astype(np.float32),
    "conv.lora_A": RNG.standard_normal((2, 5, 3, 3)).astype(np.float32),
    "head.weight.slot": RNG.standard_normal((1, 32, 2)).astype(np.float32),
    "odd/scale": RNG.standard_normal((1, 4)).astype(np.float32),  # the name alone makes no scales of it
}
AXES = {"layer.0.q_k.lora_A": 2, "layer.0.q_k.lora_B": 1, "conv.lora_A": 0}


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
def test_both_files_give_the_same_numbers(form: AdapterForm, tmp_path: Path) -> None:
    """Also to ONNX Runtime, which runs the subgraph, and to onnx, which checks it."""
    import onnx
    import onnxruntime as ort

    held = in_form(tmp_path / "x", TENSORS, form, AXES)
    write_onnx_adapter(tmp_path / "x.onnx_adapter", held, base_identity="a" * 64, slots_hash="b" * 64)
    write_adapter_onnx(tmp_path / "x.onnx", held, {"method": "LoRA"})
    onnx.checker.check_model(onnx.load(tmp_path / "x.onnx"), full_check=True)
    session = ort.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    run = dict(zip(names, session.run(None, {}), strict=True))
    mapped, _, _ = read_onnx_adapter(tmp_path / "x.onnx_adapter")
    read = read_adapter_onnx(tmp_path / "x.onnx").tensors
    for found in (mapped, read, run):
        assert found.keys() == TENSORS.keys()
        for name, array in found.items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, expanded(held)[name])
    exact = form == "fp32"
    assert all(np.array_equal(read[name], TENSORS[name]) for name in TENSORS) is exact
    size = (tmp_path / "x.onnx_adapter").stat().st_size
    numbers = 4 * sum(array.size for array in TENSORS.values())
    assert size < {"fp32": 1.5, "fp16": 0.8, "int8": 0.7}[form] * numbers  # small tensors: names are a good part


def test_eight_bits_have_a_scale_for_each_rank() -> None:
    """Ranks of very different sizes keep their digits: half a step of each is the most that is lost."""
    held = stored(TENSORS, "int8", AXES)
    for name, axis in AXES.items():
        others = tuple(a for a in range(TENSORS[name].ndim) if a != axis)
        step = np.abs(TENSORS[name]).max(axis=others, keepdims=True) / 127
        assert (np.abs(expanded(held)[name] - TENSORS[name]) <= step * 0.501).all()
        assert held[f"{name}/scale"].size == TENSORS[name].shape[axis]
        assert np.abs(held[name]).max() == 127
    assert held["head.weight.slot"].dtype == np.float16, "heads are no factors"


def test_zeros_stay_zeros() -> None:
    zeros = {"a": np.zeros((1, 4, 2), np.float32)}
    np.testing.assert_array_equal(expanded(stored(zeros, "int8", {"a": 2}))["a"], zeros["a"])


def test_a_number_that_float16_cannot_hold_is_named(tmp_path: Path) -> None:
    large = {"big": np.array([[1.0, 7e4]], np.float32)}
    with pytest.raises(AdapterError, match=r"cannot be written in fp16: big holds 7e\+04.*Keep it in fp32"):
        in_form(tmp_path / "x", large, "fp16", {})
    assert stored(large, "int8", {"big": 0})["big"].dtype == np.int8, "a factor has a scale"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.pop("layer.0.q_k.lora_A/scale"), "its scales are none"),
        (lambda h: h.update({"layer.0.q_k.lora_A/scale": np.ones((1, 1, 2), np.float32)}), "its scales are float32"),
        (lambda h: h.update({"layer.0.q_k.lora_A/scale": np.ones((1, 200, 3), np.float32)}), "its scales are float32"),
        (lambda h: h.update({"layer.0.q_k.lora_A/scale": np.ones((1, 1, 3), np.float16)}), "its scales are float16"),
    ],
)
def test_scales_that_do_not_fit_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    held = stored(TENSORS, "int8", AXES)
    change(held)
    with pytest.raises(ValueError, match=words):
        expanded(held)
    write_onnx_adapter(tmp_path / "x.onnx_adapter", held, base_identity="a" * 64, slots_hash="b" * 64)
    with pytest.raises(AdapterError, match=words):
        read_onnx_adapter(tmp_path / "x.onnx_adapter")


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("said", ["fp32", "fp16", "int8"])
def test_a_file_in_another_form_is_told(form: AdapterForm, said: AdapterForm) -> None:
    assert (wrong_type(stored(TENSORS, form, AXES), said, AXES) is None) is (form == said)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: setattr(g.initializer[0], "data_type", 3), "is int8, where float16 is read"),
        (lambda g: setattr(g.node[0].attribute[0], "i", 10), "is not a stored tensor"),
        (lambda g: setattr(g.node[0], "domain", "com.other"), "is not a stored tensor"),
        (lambda g: g.initializer[0].dims.__setitem__(1, 2**62), "does not hold what its dimensions"),
    ],
)
def test_other_graphs_are_refused(change: Any, says: str, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "x.onnx"
    write_adapter_onnx(path, stored(TENSORS, "fp16", {}), {})
    model = onnx.load(path)
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(AdapterError, match=says):
        read_adapter_onnx(path)
