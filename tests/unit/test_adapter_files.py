"""Both adapter files: what is written is what is read, and damage is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.adapters.files import (
    read_adapter_onnx,
    read_onnx_adapter,
    version_number,
    write_adapter_onnx,
    write_onnx_adapter,
)
from edgepeft.errors import AdapterError

RNG = np.random.default_rng(0)
TENSORS = {
    "layer.0.q_k.lora_A": RNG.standard_normal((1, 8, 3)).astype(np.float32),
    "layer.0.q_k.lora_B": RNG.standard_normal((1, 3, 12)).astype(np.float32),
    "head.bias.slot": RNG.standard_normal((1, 1, 2)).astype(np.float32),
}
METADATA: dict[str, Any] = {"method": "LoRA", "labels": ["ä", "b"], "ranks": {"layer.0.q_k": 3}, "scalable": True}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[n], second[n]) for n in first)


def test_onnx_adapter(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx_adapter"
    write_onnx_adapter(path, TENSORS, base_identity="f" * 64, slots_hash="12" * 32)
    tensors, model, slots = read_onnx_adapter(path)
    assert same(tensors, TENSORS)
    assert (model, slots) == (0x7FFFFFFF, 0x12121212) == (version_number("f" * 64), version_number("12" * 32))


def test_subgraph(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    write_adapter_onnx(path, TENSORS, METADATA)
    found = read_adapter_onnx(path)
    assert same(found.tensors, TENSORS)
    assert found.metadata == METADATA


def test_subgraph_runs_by_itself(tmp_path: Path) -> None:
    import onnxruntime as ort

    path = tmp_path / "x.onnx"
    write_adapter_onnx(path, TENSORS, METADATA)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert not session.get_inputs()
    assert same(dict(zip(names, session.run(None, {}), strict=True)), TENSORS)


def test_written_twice_it_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_adapter_onnx(tmp_path / f"{name}.onnx", TENSORS, METADATA)
        write_onnx_adapter(tmp_path / f"{name}.onnx_adapter", TENSORS, base_identity="a" * 64, slots_hash="b" * 64)
    for suffix in ("onnx", "onnx_adapter"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


@pytest.mark.parametrize("keep", [0, 1, 40, 0.5, 0.9])
def test_truncated(keep: float, tmp_path: Path) -> None:
    write_onnx_adapter(tmp_path / "x.onnx_adapter", TENSORS, base_identity="a" * 64, slots_hash="b" * 64)
    write_adapter_onnx(tmp_path / "x.onnx", TENSORS, METADATA)
    for name, read in (("x.onnx_adapter", read_onnx_adapter), ("x.onnx", read_adapter_onnx)):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
        with pytest.raises(AdapterError, match=name.replace(".", r"\.")):
            read(tmp_path / name)


def test_missing(tmp_path: Path) -> None:
    for read in (read_onnx_adapter, read_adapter_onnx):
        with pytest.raises(AdapterError, match="not a readable"):
            read(tmp_path / "none")
