"""The whole way on real weights: all-MiniLM-L6-v2 with three random adapters of different methods and label counts.

Reference: PEFT in fp32 on the same tokens. Tolerance 1e-4 on logits of magnitude about 1, the figure that the project
promises; 1e-6 is what is seen.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import save_lora

from edgepeft import runtime
from edgepeft.bundle import Bundle, read_bundle
from edgepeft.demo.assets import minilm, vader
from edgepeft.demo.vader import read_sentences
from edgepeft.pipeline import add, export, quantize, validate

pytestmark = pytest.mark.real

ADAPTERS = {
    "binary": {"target_modules": ["query", "value"], "num_labels": 2},
    "rank-stable": {"target_modules": "all-linear", "use_rslora": True, "num_labels": 3},
    "dora": {
        "target_modules": ["query", "key", "value", "dense"],
        "use_dora": True,
        "num_labels": 4,
        "exclude_modules": ["pooler.dense"],
    },
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: save_lora(folder / name, minilm(), task_type="SEQ_CLS", scale=0.02, seed=seed, **options)
        for seed, (name, options) in enumerate(ADAPTERS.items())
    }


@pytest.fixture(scope="module")
def bundle(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    exported = export(minilm(), checkpoints, tmp_path_factory.mktemp("real") / "bundle", slots="all-linear")
    assert all(p.max_difference <= 1e-4 and p.changes_output for p in exported.parity)
    return exported.bundles[0]


@pytest.fixture
def own(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy for a test that edits: tests run in any order, and an open ``Bundle`` refuses files changed behind it."""
    return shutil.copytree(bundle.path, tmp_path / "own")


def test_every_adapter_equals_peft_and_the_base_comes_back(bundle: Bundle, checkpoints: dict[str, Path]) -> None:
    result = validate(bundle, adapters=checkpoints, base=str(minilm()))
    assert result.problems == ()
    assert {p.adapter for p in result.parity} == set(ADAPTERS)
    assert result.base_restored is True


def test_fusions_survive_and_a_slot_costs_three_nodes(bundle: Bundle) -> None:
    import onnx_ir as ir

    graph = ir.load(bundle.file("onnx/model.onnx")).graph
    kinds = [node.op_type for node in graph]
    assert kinds.count("SkipLayerNormalization") == 12
    assert kinds.count("BiasGelu") == 6
    slots = bundle.manifest.slots.linear
    packed = [slot for slot in slots if slot.name.endswith("query_key_value")]
    assert len(packed) == 6
    assert all([part.site.rpartition(".")[2] for part in slot.parts] == ["query", "key", "value"] for slot in packed)
    # Four slots a layer and the pooler, whose activation is 2-D and takes two nodes more; gains where DoRA is.
    assert len(slots) == 25
    gains = sum(slot.out_gain is not None for slot in slots)
    assert gains == 24
    head = 5 - 2  # Unsqueeze, MatMul, Add, Squeeze in place of one Gemm
    assert bundle.manifest.provenance["added_nodes"] == 3 * 25 + 2 + gains + head


def test_the_same_sentences_through_every_adapter_and_int8(own: Path) -> None:
    texts = [s.text for s in read_sentences(vader())[:40]]
    quantized = quantize(own, "int8")
    assert quantized.quantized.share > 0.99
    assert quantized.bytes_after < 0.27 * quantized.bytes_before
    exact, small = runtime.open(own), runtime.open(own, variant="int8")
    for name, options in ADAPTERS.items():
        reference, found = exact.use(name).logits(texts), small.use(name).logits(texts)
        assert reference.shape == (40, options["num_labels"])
        # int8 activations are per tensor: logits move by a few hundredths, labels of clear rows do not.
        clear = np.sort(reference, axis=1)[:, -1] - np.sort(reference, axis=1)[:, -2] > 0.2
        assert np.array_equal(found.argmax(1)[clear], reference.argmax(1)[clear])


def test_an_adapter_is_added_to_the_real_bundle(own: Path, checkpoints: dict[str, Path]) -> None:
    added = add(own, "again", checkpoints["rank-stable"])
    assert added.changes_output
    opened = read_bundle(own)
    first, second = opened.adapter("rank-stable"), opened.adapter("again")
    files = opened.manifest.files
    assert files[first.onnx_adapter].sha256 == files[second.onnx_adapter].sha256
    assert json.loads((own / "config.json").read_text())["model_type"] == "bert"
