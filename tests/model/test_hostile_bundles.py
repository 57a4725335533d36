"""Bundles whose hashes are right and whose content is hostile, and calls that fit nothing: typed errors, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft import runtime
from edgepeft.adapters.files import read_adapter_onnx, read_onnx_adapter, write_adapter_onnx, write_onnx_adapter
from edgepeft.bundle import hash_file, read_bundle
from edgepeft.errors import (
    AdapterError,
    AdapterMismatchError,
    BundleError,
    CorruptBundleError,
    EdgepeftError,
    InputError,
    ManifestError,
)
from edgepeft.pipeline import add

Json = dict[str, Any]


def edit(bundle: Path, change: Callable[[Json], object]) -> None:
    path = bundle / "edgepeft.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def mend(bundle: Path, *names: str) -> None:
    edit(bundle, lambda m: m["files"].update({name: hash_file(bundle / name).model_dump() for name in names}))


def put(bundle: Path, name: str, content: bytes) -> None:
    (bundle / name).write_bytes(content)
    mend(bundle, name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["provenance"].update(target={"threads": 100_000}), "threads must be 1 to 1024, found 100000"),
        (lambda m: m["provenance"].update(target={"threads": "many"}), "threads must be 1 to 1024, found 'many'"),
        (lambda m: m["provenance"].update(target={"threads": True}), "threads must be 1 to 1024"),
        (lambda m: m["provenance"].update(target=[1]), "provenance.target must be an object, found an array"),
        (lambda m: m["provenance"].update(calibration="x"), "provenance.calibration must be an object"),
        (lambda m: m["slots"]["linear"][0].update(in_features=2**31), "in_features"),
        (lambda m: m["slots"]["linear"][0].update(in_features=-1), "in_features"),
        (lambda m: m["slots"]["linear"][0].update(in_features="32"), "in_features"),
        (lambda m: m["slots"]["linear"][0].update(name=""), "name"),
        (lambda m: m["slots"]["linear"][0].update(name="x" * 1025), "name"),
        (lambda m: m["inputs"][0].update(shape=[1] * 9), "shape"),
        (lambda m: m.update(max_length=0), "max_length"),
        (lambda m: m.update(labels=[]), "labels"),
        (lambda m: m["adapters"]["plain"].update(residual=-1), "residual"),
        (lambda m: m["adapters"]["plain"].update(bytes=-1), "bytes"),
        (lambda m: m["adapters"]["plain"]["ranks"].update(x=2**31), "ranks"),
        (lambda m: m["adapters"].update(PLAIN=m["adapters"]["plain"]), "'plain' and 'PLAIN' differ only in case"),
        (lambda m: m["adapters"].update(nul=m["adapters"]["plain"]), "'nul' cannot be a name.*device"),
        (lambda m: m["adapters"].update({"a.": m["adapters"]["plain"]}), "'a.' cannot be a name.*dots"),
        (lambda m: m["variants"].update(FP32=m["variants"]["fp32"]), "differ only in case"),
        (lambda m: m["files"].update({"onnx/aux.txt": m["files"]["config.json"]}), "aux.txt.*device"),
        (lambda m: m["files"].update({"Config.json": m["files"]["config.json"]}), "differ only in case"),
        (lambda m: m["files"].update({"a /x": m["files"]["config.json"]}), "dots and spaces"),
        (lambda m: m["files"].update({"a\nb": m["files"]["config.json"]}), "Windows does not take"),
        (lambda m: m["files"].update({"./a": m["files"]["config.json"]}), "shortest form"),
        (lambda m: m["files"].update({"a" * 300: m["files"]["config.json"]}), "longer than file systems take"),
    ],
)  # fmt: skip
def test_manifests(change: Callable[[Json], object], says: str, own_bundle: Path) -> None:
    edit(own_bundle, change)
    with pytest.raises(ManifestError, match=rf"(?s)edgepeft\.json.*{says}"):
        read_bundle(own_bundle)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["adapters"]["head"].update(labels=["a", "b"]), "names 2 labels .a, b., its head has 5"),
        (lambda m: m["adapters"]["plain"].update(labels=["a"] * 9), "names 9 labels .*its head has 3"),
        (lambda m: m["adapters"]["plain"]["ranks"].update(dict.fromkeys(m["adapters"]["plain"]["ranks"], 7)), "at rank 7"),
        (lambda m: m["adapters"]["plain"].update(ranks={}), "names no rank"),
        (lambda m: m["adapters"]["plain"]["ranks"].update(nowhere=4), "nowhere, which is not a slot"),
    ],
)  # fmt: skip
def test_adapters_that_say_what_they_are_not(change: Callable[[Json], object], says: str, own_bundle: Path) -> None:
    edit(own_bundle, change)
    with pytest.raises(AdapterMismatchError, match=says):
        read_bundle(own_bundle)


@pytest.mark.parametrize("threads", [0, -1, 100_000, 10**30, 1.5, "2", True])
def test_threads(threads: Any, bundle: Path) -> None:
    with pytest.raises(InputError, match="threads must be a whole number of at least 1 and at most 1024"):
        runtime.open(bundle, threads=threads)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"TORT" * 40, bytes(range(256)) * 4])
def test_adapter_files_that_are_none(content: bytes, own_bundle: Path) -> None:
    put(own_bundle, "adapters/plain.onnx_adapter", content)
    with pytest.raises(CorruptBundleError, match=r"plain\.onnx_adapter is not an adapter"):
        runtime.open(own_bundle).adapter("plain")


@pytest.mark.parametrize("change", ["dtype", "shape", "name", "fewer"])
def test_adapter_files_with_other_tensors(change: str, own_bundle: Path) -> None:
    path = own_bundle / "adapters" / "plain.onnx_adapter"
    tensors, _, _ = read_onnx_adapter(path)
    name, array = tensors.popitem()
    if change == "dtype":
        tensors[name] = array.astype(np.float64)
    elif change == "shape":
        tensors[name] = array[..., :-1].copy()
    elif change == "name":
        tensors["input_ids"] = array
    path.unlink()
    write_onnx_adapter(path, tensors, base_identity="0" * 64, slots_hash="0" * 64)
    mend(own_bundle, "adapters/plain.onnx_adapter")
    with pytest.raises(AdapterMismatchError, match="plain"):
        runtime.open(own_bundle).adapter("plain")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 9999, '{"a": 1, "a": 2}', "9" * 9999, '{"version": "1.0"}', '"\\ud800"']
)
def test_text_files(name: str, content: str, own_bundle: Path) -> None:
    put(own_bundle, name, content.encode())
    if (name, content) == ("tokenizer_config.json", '{"version": "1.0"}'):  # one without a pad token
        with runtime.open(own_bundle) as model:
            assert model.predict("a film").label
        return
    with pytest.raises(BundleError, match=name), runtime.open(own_bundle) as model:
        model.predict("a film")


def test_a_graph_that_is_another(own_bundle: Path) -> None:
    graph = (own_bundle / "adapters" / "plain.onnx").read_bytes()
    put(own_bundle, "onnx/model.onnx", graph)
    with pytest.raises(BundleError, match=r"model\.onnx has the inputs .*the manifest says"):
        runtime.open(own_bundle)


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 5000, "no/such"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        runtime.open(path)


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb", 3, None, ("a",), ("a", "b", "c")])
def test_texts_that_are_none(text: Any, bundle: Path) -> None:
    with runtime.open(bundle) as model:
        for call in (model.predict, model.logits, model.run):
            with pytest.raises(InputError, match="is not a text"):
                call([text])


# Adapters on their way into a bundle


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(labels=["a"]), "names 1 labels .*its head has 5"),
        (lambda m: m.update(labels="abcde"), "record is wrong: labels"),
        (lambda m: m.update(labels=[1, 2, 3, 4, 5]), "record is wrong: labels"),
        (lambda m: m.update(ranks=[1]), "record is wrong: ranks"),
        (lambda m: m["ranks"].update(dict.fromkeys(m["ranks"], 9)), "at rank 9"),
        (lambda m: m.update(scalable="maybe"), "record is wrong: scalable"),
        (lambda m: m.update(prefix_length=2), "puts 2 states before the sequence, and this base has no cache"),
        (lambda m: m.pop("method"), "record is wrong: method"),
        (lambda m: m.pop("base_identity"), "record is wrong: base_identity"),
        (lambda m: m.update(slots_hash=5), "record is wrong: slots_hash"),
        (lambda m: m.update(nonsense=1), "record is wrong: nonsense"),
        (lambda m: m.update(bytes=1), "holds bytes"),
        (lambda m: m.update(residual=1e999), "residual: Input should be a valid number"),
    ],
)  # fmt: skip
def test_the_record_in_an_added_file(
    change: Callable[[Json], object], says: str, own_bundle: Path, tmp_path: Path
) -> None:
    found = read_adapter_onnx(own_bundle / "adapters" / "head.onnx")
    change(found.metadata)
    write_adapter_onnx(tmp_path / "new.onnx", found.tensors, found.metadata)
    before = (own_bundle / "edgepeft.json").read_bytes()
    with pytest.raises(AdapterError, match=says):
        add(own_bundle, "new", tmp_path / "new.onnx")
    assert (own_bundle / "edgepeft.json").read_bytes() == before
    assert not (own_bundle / "adapters" / "new.onnx").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.dims.__setitem__(1, 2**40), "dimensions"),
        (lambda t: t.dims.__setitem__(1, -4), "dimensions|readable"),
        (lambda t: t.__setattr__("data_type", 11), "is double, slots take float32"),
        (lambda t: t.__setattr__("data_type", 99), "readable|not a"),
        (lambda t: t.__setattr__("data_type", 8), "string|readable"),
        (lambda t: t.__setattr__("raw_data", b""), "dimensions"),
        (lambda t: (t.external_data.add(key="location", value="/etc/passwd"), setattr(t, "data_location", 1)), "another file"),
    ],
)  # fmt: skip
def test_tensors_in_an_added_file(change: Callable[[Any], object], says: str, own_bundle: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(own_bundle / "adapters" / "head.onnx")
    change(model.graph.initializer[0])
    (tmp_path / "new.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(AdapterError, match=says):
        add(own_bundle, "new", tmp_path / "new.onnx")


@pytest.mark.parametrize(
    ("name", "says"),
    [("PLAIN", "differ only in case"), ("con", "device"), ("NUL", "device"), ("aux.txt", "device"), ("a.", "dots")],
)
def test_names(name: str, says: str, own_bundle: Path, checkpoints: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=says):
        add(own_bundle, name, checkpoints["plain"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"r": "4"}, "adapter_config.json cannot be used: r"),
        ({"r": 2**40}, "less than 1048576"),
        ({"lora_alpha": None}, "do not make up one LORA adapter"),
        ({"lora_alpha": [1]}, "lora_alpha"),
        ({"rank_pattern": {"(": 4}}, "not a regular expression"),
        ({"rank_pattern": {r"([a-z_.0-9]+)+\.nope": 4}}, "does not end within"),
        ({"alpha_pattern": {"query": "x"}}, "do not make up one LORA adapter"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"target_modules": 5}, "target_modules"),
        ({"modules_to_save": "classifier"}, "modules_to_save"),
        ({"bias": 5}, "bias"),
        ({"base_model_name_or_path": {"a": 1}}, "base_model_name_or_path"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"layer_replication": "x"}, "layer_replication"),
    ],
)
def test_peft_configs(change: Json, says: str, own_bundle: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(checkpoints["plain"], tmp_path / "checkpoint"))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    before = (own_bundle / "edgepeft.json").read_bytes()
    with pytest.raises(EdgepeftError, match=says):
        add(own_bundle, "new", folder)
    assert (own_bundle / "edgepeft.json").read_bytes() == before
