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


def test_onnx_reads_what_we_write(tmp_path: Path) -> None:
    """The library itself takes the file, checks it against the format, and finds the same numbers and the record."""
    import onnx
    from onnx import numpy_helper

    path = tmp_path / "x.onnx"
    write_adapter_onnx(path, TENSORS, METADATA)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert same({t.name.removesuffix(".value"): numpy_helper.to_array(t) for t in model.graph.initializer}, TENSORS)
    assert [entry.key for entry in model.metadata_props] == ["edgepeft.adapter"]
    assert {o.name: tuple(d.dim_value for d in o.type.tensor_type.shape.dim) for o in model.graph.output} == {
        name: array.shape for name, array in TENSORS.items()
    }


@pytest.mark.parametrize("raw", [True, False])
def test_we_read_what_onnx_writes(raw: bool, tmp_path: Path) -> None:
    """Bundles of before were written by onnx_ir, and others may store numbers as a list."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def stored(name: str, array: np.ndarray) -> TensorProto:
        if raw:
            return numpy_helper.from_array(array, f"{name}.value")
        return helper.make_tensor(f"{name}.value", TensorProto.FLOAT, array.shape, array.ravel().tolist())

    graph = helper.make_graph(
        [helper.make_node("Identity", [f"{name}.value"], [name]) for name in TENSORS],
        "g",
        [],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in TENSORS.items()],
        [stored(name, array) for name, array in TENSORS.items()],
    )
    model = helper.make_model(graph)
    helper.set_model_props(model, {"edgepeft.adapter": '{"method": "LoRA"}', "other": "x"})
    path = tmp_path / "x.onnx"
    onnx.save(model, path)
    found = read_adapter_onnx(path)
    assert same(found.tensors, TENSORS)
    assert found.metadata == {"method": "LoRA"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: setattr(g.node[0], "op_type", "Neg"), "is not a stored tensor"),
        (lambda g: setattr(g.node[0], "domain", "com.other"), "is not a stored tensor"),
        (lambda g: g.node.append(g.node[0]), "stands for two values"),
        (lambda g: g.initializer.append(g.initializer[0]), "stands for two values"),
        (lambda g: g.output.append(g.output[0]), "has two outputs"),
        (lambda g: g.initializer[0].dims.__setitem__(1, -1), "does not hold what its dimensions"),
        (lambda g: g.initializer[0].dims.__setitem__(1, 2**62), "does not hold what its dimensions"),
        (lambda g: setattr(g.initializer[0], "raw_data", b"abc"), "not a readable ONNX file"),
        (lambda g: setattr(g.initializer[0], "data_location", 1), "is stored in another file"),
        (lambda g: setattr(g.initializer[0], "data_type", 10), "is float16, slots take float32"),
        (lambda g: g.input.add(name="x"), "it has inputs"),
    ],
)
def test_other_graphs_are_refused(change: Any, says: str, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "x.onnx"
    write_adapter_onnx(path, TENSORS, METADATA)
    model = onnx.load(path)
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(AdapterError, match=says):
        read_adapter_onnx(path)


def test_neither_file_needs_onnx(tmp_path: Path) -> None:
    """Reading and writing work where only the base install is."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules.update(dict.fromkeys('torch onnx onnx_ir safetensors ml_dtypes'.split()))\n"
        "import numpy as np; from pathlib import Path; from edgepeft.adapters.files import *\n"
        f"p = Path({str(tmp_path / 'x.onnx')!r}); write_adapter_onnx(p, {{'a': np.ones((1, 2), np.float32)}}, {{}})\n"
        "assert read_adapter_onnx(p).tensors['a'].sum() == 2"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
