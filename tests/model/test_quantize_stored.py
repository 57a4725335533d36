"""q4 of weights that were in 4 bits before: nothing is lost where their grid can be stored, and offsets make it so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from causal import build_causal
from conftest import save_lora

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.pipeline import Goal, export, quantize


def put_on_grid(folder: Path, *, offsets: bool) -> None:
    """Round a checkpoint's matrices to 4 bits in blocks of 32, as GGUF's Q4_0 or (with ``offsets``) its Q4_1 do."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "embed" not in name:
            blocks = tensor.float().reshape(len(tensor), -1, 32)
            low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
            scale = ((high - low) / 15).half().float()
            least = low.half().float() if offsets else (low / scale).round() * scale
            found = ((blocks - least) / scale).round().clamp(0, 15) * scale + least
            tensors[name] = found.reshape(tensor.shape)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """``bundles(offsets)``: a bundle over such weights; do not change it."""
    made: dict[bool, Path] = {}

    def get(offsets: bool) -> Path:
        if offsets not in made:
            root = tmp_path_factory.mktemp("stored")
            model = build_causal(root / "model")
            put_on_grid(model, offsets=offsets)
            save_lora(root / "one", model, task="text-generation", task_type="CAUSAL_LM", scale=0.25, r=4, seed=1,
                      target_modules=["q_proj", "v_proj", "down_proj"])  # fmt: skip
            export(model, {"one": root / "one"}, root / "bundle", task="text-generation", slots="all-linear")
            made[offsets] = root / "bundle"
        return made[offsets]

    return get


def lost(done) -> float:
    """Mean divergence from fp32 of base and adapter."""
    return float(np.mean([row.divergence for row in done.quality]))


def shifted(bundle: Path) -> int:
    """How many layers have offsets."""
    nodes = ir.load(bundle / "onnx" / "model_q4.onnx").graph
    return sum((node.name or "").endswith("/block_sums") for node in nodes)


def test_weights_on_a_grid_with_zero_stay_as_they_are(bundles: Callable[[bool], Path], tmp_path: Path) -> None:
    """With the head in 8 bits all that is left is what kernels round of activations, which the q8 of the same model has too."""
    own = Path(shutil.copytree(bundles(False), tmp_path / "b"))
    done = quantize(own, "q4", head_bits=8)
    assert shifted(own) == 0
    other = Path(shutil.copytree(bundles(True), tmp_path / "o"))
    assert lost(done) < 0.2 * lost(quantize(other, "q4", head_bits=8))


def test_offsets_keep_what_a_whole_zero_point_cannot(bundles: Callable[[bool], Path], tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundles(True), tmp_path / "b"))
    plain = quantize(own, "q4", head_bits=8)
    healed = quantize(own, "q4", head_bits=8, heal=2, replace=True)
    assert lost(healed) < 0.2 * lost(plain)
    assert shifted(own) >= 8
    # Half a bit more for each weight of a layer, and no low-rank factors.
    assert healed.bytes_after < plain.bytes_after * 1.12
    read_bundle(own).verify()
    with runtime.open(own, variant="q4") as model:
        first = model.generate("the film", max_new_tokens=4, temperature=0).tokens
        model.use("one")
        model.generate("the film", max_new_tokens=4, temperature=0)
        model.use(None)
        assert model.generate("the film", max_new_tokens=4, temperature=0).tokens == first


def test_goals_take_offsets_where_they_are_worth_it(
    bundles: Callable[[bool], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPEFT_CACHE", str(tmp_path / "cache"))
    own = Path(shutil.copytree(bundles(True), tmp_path / "b"))
    done = quantize(own, "q4", goal=Goal(bits=6.5))
    assert done.front is not None
    assert any("with offsets" in form for form in done.front.forms)
    assert done.front.bits <= 6.5
    assert done.front.chosen[0] * 1e6 == pytest.approx(done.bytes_after, rel=0.03)
    budget = done.bytes_after - 3000
    assert quantize(own, "q4", goal=Goal(bytes=budget), replace=True, measure=False).bytes_after <= budget
    whole = Path(shutil.copytree(bundles(False), tmp_path / "w"))
    found = quantize(whole, "q4", goal=Goal(divergence=0.5)).front
    assert found is not None
    assert not any("with offsets" in form or "128" in form for form in found.forms)


def test_halves_of_a_graph_with_offsets(bundles: Callable[[bool], Path], tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundles(True), tmp_path / "b"))
    quantize(own, "q4", heal=2, measure=False)
    quantize(own, "q4f16")
    with runtime.open(own, variant="q4f16") as half, runtime.open(own, variant="q4") as whole:
        one, two = (model.base.decoder(1, 8).prefill([[5, 6, 7]]) for model in (half, whole))
    assert np.abs(one - two).max() < 0.1 * np.abs(two).max()
