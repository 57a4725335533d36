"""Slots as plain inputs: the same graph, the same weights file, the same bits."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgepeft import runtime
from edgepeft.adapters.files import read_onnx_adapter
from edgepeft.base.samples import bundle_batches
from edgepeft.bundle import dump_manifest, read_bundle
from edgepeft.errors import BundleError, CorruptBundleError, InputError
from edgepeft.pipeline import quantize, write_input_style


@pytest.fixture(scope="module")
def webbed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with fp32 and int8, both with a second graph; do not change it."""
    own = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("web") / "b"))
    quantize(own, "int8")
    write_input_style(own)
    return own


@pytest.fixture
def own_webbed(webbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(webbed, tmp_path / "own"))


def test_the_files_are_named_and_listed(webbed: Path) -> None:
    bundle = read_bundle(webbed)
    bundle.verify()
    variants = bundle.manifest.variants
    assert {n: v.input_file for n, v in variants.items()} == {
        "fp32": "onnx/model_web.onnx",
        "int8": "onnx/model_int8_web.onnx",
    }
    assert {n: v.file for n, v in variants.items()} == {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}
    assert {p.name for p in (webbed / "onnx").iterdir()} == {
        "model.onnx", "model_web.onnx", "model.onnx_data", "model_int8.onnx", "model_int8_web.onnx",
        "model_int8.onnx_data", "defaults.onnx_adapter",
    }  # fmt: skip


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_the_weights_are_shared_and_the_nodes_are_the_same(webbed: Path, variant: str) -> None:
    bundle = read_bundle(webbed)
    entry = bundle.manifest.variants[variant]
    plain, slotted = ir.load(webbed / (entry.input_file or "")), ir.load(webbed / entry.file)
    assert [(n.op_type, n.name) for n in plain.graph] == [(n.op_type, n.name) for n in slotted.graph]
    slots = set(bundle.manifest.slots.tensors())
    assert slots <= {value.name for value in plain.graph.inputs}
    assert not slots & set(plain.graph.initializers)
    places = [
        tensor
        for value in plain.graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    ]
    assert {Path(tensor.location).name for tensor in places} == {Path(entry.data[0]).name}


@pytest.mark.parametrize("variant", ["fp32", "int8"])
@pytest.mark.parametrize("adapter", [None, "plain", "head", "dora"])
def test_fed_slots_give_the_bits_of_overridden_ones(webbed: Path, variant: str, adapter: str | None) -> None:
    """Reference: the runtime on the first graph. Tolerance none: the nodes and their inputs are the same."""
    bundle = read_bundle(webbed)
    manifest = bundle.manifest
    session = ort.InferenceSession(
        webbed / (manifest.variants[variant].input_file or ""), providers=["CPUExecutionProvider"]
    )
    feeds = read_onnx_adapter(bundle.file(manifest.slot_defaults or ""))[0]
    for name, shape in manifest.slots.tensors().items():
        sizes = [d if isinstance(d, int) else int(d == "adapter_batch") for d in shape]
        feeds.setdefault(name, np.zeros(sizes, np.float32))
    if adapter is not None:
        feeds.update(read_onnx_adapter(bundle.file(manifest.adapters[adapter].onnx_adapter))[0])
    model = runtime.open(webbed, variant=variant).use(adapter)
    for inputs in bundle_batches(bundle):
        values = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in {**inputs, **feeds}.items()}
        (found,) = session.run_with_ort_values(["logits"], values)
        assert np.array_equal(found.numpy(), model.forward(inputs)["logits"])


def test_a_second_run_writes_the_same_files(own_webbed: Path) -> None:
    def digests() -> dict[str, str]:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in own_webbed.rglob("*") if p.is_file()}

    before = digests()
    write_input_style(own_webbed)
    assert digests() == before


def test_quantizing_again_makes_both_graphs_again(own_webbed: Path) -> None:
    quantize(own_webbed, "int8", replace=True)
    bundle = read_bundle(own_webbed)
    bundle.verify()
    assert bundle.manifest.variants["int8"].input_file == "onnx/model_int8_web.onnx"


def test_config_says_what_transformers_js_fetches(webbed: Path, bundle: Path) -> None:
    """It fetches ``<graph>_data`` for each graph it is told has one: a wrong count is a 404 or a missing tensor."""
    config = json.loads((webbed / "config.json").read_text())["transformers.js_config"]
    assert config == {"dtype": "int8", "use_external_data_format": {"model.onnx": 1, "model_int8.onnx": 1}}
    config = json.loads((bundle / "config.json").read_text())["transformers.js_config"]
    assert config == {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}}


def test_a_damaged_graph_is_refused_and_nothing_is_written(own_webbed: Path) -> None:
    file = own_webbed / "onnx" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-3] + b"abc")
    before = sorted(p.name for p in own_webbed.rglob("*"))
    with pytest.raises(CorruptBundleError, match=r"model\.onnx was changed"):
        write_input_style(own_webbed, "fp32")
    assert sorted(p.name for p in own_webbed.rglob("*")) == before


def test_an_unknown_variant_lists_those_there_are(webbed: Path) -> None:
    with pytest.raises(BundleError, match="no variant 'q4'; it has: fp32, int8"):
        write_input_style(webbed, "q4")


def test_a_merged_bundle_needs_none(own_webbed: Path) -> None:
    manifest = read_bundle(own_webbed).manifest.model_copy(update={"mode": "merge", "merged": "plain"})
    (own_webbed / "edgepeft.json").write_text(dump_manifest(manifest))
    with pytest.raises(InputError, match="it has no slots, any runtime opens it as it is"):
        write_input_style(own_webbed)


def test_a_missing_second_graph_is_a_manifest_error(own_webbed: Path) -> None:
    raw = json.loads((own_webbed / "edgepeft.json").read_text())
    del raw["files"]["onnx/model_web.onnx"]
    (own_webbed / "edgepeft.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"model_web\.onnx is not listed under files"):
        read_bundle(own_webbed)


def test_no_torch(own_webbed: Path) -> None:
    code = (
        "import sys; from edgepeft.pipeline import write_input_style; write_input_style(sys.argv[1]); "
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(own_webbed)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
