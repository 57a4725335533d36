"""What a target gets of a bundle: variant, slot style, file format, threads; and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import all_equal

from edgepeft import runtime
from edgepeft.base.samples import bundle_batches
from edgepeft.bundle import read_bundle
from edgepeft.errors import InputError, TargetError
from edgepeft.pipeline import export_for, fit, quantize
from edgepeft.targets import Target, list_targets, load_target

TARGETS = [target.name for target in list_targets()]


def changed(target: Target, **keys: object) -> Target:
    return Target.model_validate({**target.model_dump(), **keys})


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_gets_a_bundle_of_its_own(name: str, bundle: Path, tmp_path: Path) -> None:
    target = load_target(name)
    done = fit(bundle, target, tmp_path / "out")
    fitted = read_bundle(tmp_path / "out")
    fitted.verify()
    manifest = fitted.manifest
    assert list(manifest.variants) == [done.variant]
    assert done.variant in target.variants
    entry = manifest.variants[done.variant]
    assert entry.file.endswith(".ort" if target.graph.format == "ort" else ".onnx")
    assert (entry.input_file is not None) == (target.slots == "input")
    assert manifest.provenance["target"]["threads"] == target.runtime.threads
    on_disk = {p.relative_to(fitted.path).as_posix() for p in fitted.path.rglob("*") if p.is_file()}
    assert on_disk == {*manifest.files, "edgepeft.json"}, "nothing else is deployed"
    assert done.size_mb == pytest.approx(sum(e.bytes for e in manifest.files.values()) / 1e6)
    # The adapters are the adapters still: bits where the graph is the same file, the parity tolerance where it was converted.
    if done.variant == "fp32":
        before, after = runtime.open(bundle), runtime.open(fitted.path)
        for adapter in (None, *manifest.adapters):
            for batch in bundle_batches(fitted):
                one, two = before.use(adapter).forward(batch), after.use(adapter).forward(batch)
                assert np.allclose(one["logits"], two["logits"], atol=1e-5)


def test_ort_files_swap_adapters_and_name_their_operators(bundle: Path, tmp_path: Path) -> None:
    target = changed(load_target("android-arm64-cpu"), variants=("fp32",))
    fitted = fit(bundle, target, tmp_path / "out").bundle
    model = runtime.open(fitted.path)
    (batch, *_) = bundle_batches(fitted)
    base = model.forward(batch)
    plain = model.use("plain").forward(batch)
    assert not all_equal(base, plain)
    assert all_equal(base, model.use(None).forward(batch))
    operators = fitted.file(fitted.manifest.provenance["required_operators"]).read_text()
    assert re.search(r"^ai\.onnx;\d+;.*MatMul", operators, re.MULTILINE), operators


def test_threads_come_from_the_target(bundle: Path, tmp_path: Path) -> None:
    fit(bundle, changed(load_target("linux-x64-cpu"), runtime={**load_target("linux-x64-cpu").runtime.model_dump(), "threads": 2}),
        tmp_path / "out")  # fmt: skip
    assert runtime.open(tmp_path / "out").session.get_session_options().intra_op_num_threads == 2
    assert runtime.open(tmp_path / "out", threads=1).session.get_session_options().intra_op_num_threads == 1


def test_too_large_leaves_what_was_there(bundle: Path, tmp_path: Path) -> None:
    target = load_target("linux-x64-cpu")
    fit(bundle, target, tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    small = changed(target, budgets={**target.budgets.model_dump(), "bundle_mb": 0.01, "adapter_mb": None})
    with pytest.raises(TargetError, match=r"has 0\.\d MB, its budget is bundle_mb = 0\.01; nothing was written"):
        fit(bundle, small, tmp_path / "out")
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    with pytest.raises(TargetError, match="nothing was written"):
        fit(bundle, small, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_what_does_not_suit_is_passed_over_or_refused(own_bundle: Path, tmp_path: Path) -> None:
    quantize(own_bundle, "int8")
    target = load_target("linux-x64-cpu")
    graph = target.graph.model_dump()
    webgpu = fit(
        own_bundle,
        changed(target, variants=("int8", "fp32"), graph={**graph, "forbidden_ops": ("MatMulInteger",)}),
        tmp_path / "a",
    )
    assert webgpu.variant == "fp32"
    assert webgpu.notes == ("int8: linux-x64-cpu does not run MatMulInteger",)
    with pytest.raises(
        TargetError, match=r"no variant of .* suits linux-x64-cpu .*fp32: linux-x64-cpu does not run MatMul"
    ):
        fit(
            own_bundle,
            changed(target, variants=("fp32",), graph={**graph, "forbidden_ops": ("MatMul",)}),
            tmp_path / "b",
        )
    with pytest.raises(TargetError, match="is of opset 20, linux-x64-cpu takes at most 17"):
        fit(own_bundle, changed(target, graph={**graph, "opset": 17}), tmp_path / "b")
    with pytest.raises(TargetError, match="q3: the bundle has none, and no recipe makes it"):
        fit(own_bundle, changed(target, variants=("q3",)), tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a bundle"):
        fit(own_bundle, target, tmp_path / "c")


def test_export_for_a_target(models: object, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    done = export_for(
        load_target("web-wasm"),
        models("bert"),
        {"plain": checkpoints["plain"]},
        tmp_path / "out",
        announce=said.append,  # type: ignore[operator]
    )
    (written,) = done.bundles
    assert written.path == tmp_path / "out"
    assert list(written.manifest.variants) == ["int8"]
    assert done.parity[0].max_difference <= 1e-4
    assert any(re.search(r"int8 for web-wasm, 0\.\d MB", line) for line in said)
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "no scratch is left"
