"""What a target gets of a bundle: variant, slot style, file format, threads; and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from causal import build_causal
from conftest import all_equal, save_lora
from encoder_decoder import SEQ2SEQ, build_encoder_decoder

from edgepeft import runtime
from edgepeft.base.samples import bundle_batches
from edgepeft.bundle import read_bundle
from edgepeft.errors import BundleError, InputError, TargetError
from edgepeft.pipeline import export, export_for, fit, quantize, write_input_style, write_static
from edgepeft.targets import Target, list_targets, load_target
from edgepeft.validate.probe import bundle_probe, same_outputs

TARGETS = [target.name for target in list_targets()]
#: Beside encoders: those whose cache is longer with every token.
WRITERS = ["text-generation", SEQ2SEQ]


def changed(target: Target, **keys: object) -> Target:
    return Target.model_validate({**target.model_dump(), **keys})


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``writers(task)``: a bundle with one adapter that has its int8 and q4 variants; do not change it."""
    made: dict[str, Path] = {}

    def get(task: str) -> Path:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            common = {"task": task, "scale": 0.2, "r": 2}
            if task == SEQ2SEQ:
                model = build_encoder_decoder(folder / "model", "T5")
                save_lora(folder / "a", model, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM", **common)
            else:
                model = build_causal(folder / "model", num_hidden_layers=1)
                save_lora(folder / "a", model, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **common)
            export(model, {"a": folder / "a"}, folder / "bundle", task=task)
            for variant in ("int8", "q4"):
                quantize(folder / "bundle", variant)
            made[task] = folder / "bundle"
        return made[task]

    return get


@pytest.mark.parametrize("task", WRITERS)
@pytest.mark.parametrize("name", TARGETS)
def test_every_target_takes_what_writes_texts_or_says_why_not(
    name: str, task: str, writers: Callable[[str], Path], tmp_path: Path
) -> None:
    target, source = load_target(name), writers(task)
    if target.graph.shapes == "static":
        with pytest.raises(TargetError, match=rf"{name} takes fixed shapes only \(1x32, 1x128\).*cache.*{task}"):
            fit(source, target, tmp_path / "out")
        with pytest.raises(TargetError, match=rf"{name} takes fixed shapes only"):
            write_static(source, target, tmp_path / "out")
        assert not list(tmp_path.iterdir())
        return
    done = fit(source, target, tmp_path / "out")
    fitted = read_bundle(tmp_path / "out")
    fitted.verify()
    entry = fitted.manifest.variants[done.variant]
    suffix = ".ort" if target.graph.format == "ort" else ".onnx"
    assert {Path(file).suffix for file in entry.graphs()} == {suffix}
    assert len(entry.graphs()) == (1 + (task == SEQ2SEQ)) * (1 + (target.slots == "input"))
    on_disk = {p.relative_to(fitted.path).as_posix() for p in fitted.path.rglob("*") if p.is_file()}
    assert on_disk == {*fitted.manifest.files, "edgepeft.json"}, "nothing else is deployed"
    probe = bundle_probe(fitted)
    before, after = runtime.open(source, variant=done.variant), runtime.open(fitted.path)
    bare, adapted = (probe.run(after.adapter(adapter)) for adapter in (None, "a"))
    assert probe.difference(bare, probe.run(before.adapter(None))) <= 1e-4
    assert probe.difference(adapted, probe.run(before.adapter("a"))) <= 1e-4
    assert not same_outputs(bare, adapted)
    if task == "text-generation":
        there, here = (json.loads((path / "genai_config.json").read_text()) for path in (source, fitted.path))
        assert there["search"]["past_present_share_buffer"], "the model has GroupQueryAttention"
        assert here["search"] == there["search"], "also of a file in ORT format"
        assert here["model"]["decoder"]["filename"] == entry.file


@pytest.mark.parametrize("task", WRITERS)
def test_the_operators_of_both_halves_are_listed(task: str, writers: Callable[[str], Path], tmp_path: Path) -> None:
    fitted = fit(writers(task), changed(load_target("android-arm64-cpu"), variants=("q4",)), tmp_path / "out").bundle
    operators = fitted.file(fitted.manifest.provenance["required_operators"]).read_text()
    assert re.search(r"^com\.microsoft;1;.*MatMulNBits", operators, re.MULTILINE), operators


@pytest.mark.parametrize("task", WRITERS)
@pytest.mark.parametrize("name", ["linux-arm64-cpu", "android-arm64-cpu", "web-wasm"])
def test_the_variant_is_one_that_keeps_the_size_budget(
    name: str, task: str, writers: Callable[[str], Path], tmp_path: Path
) -> None:
    target = load_target(name)
    large = fit(writers(task), target, tmp_path / "large")
    assert large.variant == "int8"
    assert large.notes == ()
    limit = large.size_mb - 0.001
    small = changed(target, budgets={**target.budgets.model_dump(), "bundle_mb": limit, "adapter_mb": None})
    done = fit(writers(task), small, tmp_path / "small")
    assert done.variant == "q4"
    assert done.size_mb <= limit
    (note,) = done.notes
    assert re.fullmatch(r"int8: \d\.\d MB, the budget is bundle_mb = \d\.\d+", note)


def test_a_packed_ort_file_is_no_source(writers: Callable[[str], Path], bundle: Path, tmp_path: Path) -> None:
    android = changed(load_target("android-arm64-cpu"), variants=("fp32",))
    for at, source in enumerate((writers("text-generation"), bundle)):
        packed = fit(source, android, tmp_path / f"packed-{at}").bundle.path
        again = changed(load_target("linux-x64-cpu"), variants=("fp32",))
        with pytest.raises(TargetError, match=r"fp32: onnx/model\.ort is in ORT format already; pack the bundle"):
            fit(packed, again, tmp_path / "again")
        assert not (tmp_path / "again").exists()
        for change in (lambda path: quantize(path, "int8"), write_input_style):
            with pytest.raises(
                BundleError, match=r"onnx/model\.ort is in ORT format.*the bundle that it was packed from"
            ):
                change(packed)
        read_bundle(packed).verify()


def test_the_advice_for_a_target_of_fixed_shapes_helps(writers: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(TargetError) as refused:
        fit(writers("text-generation"), load_target("ios-coreml"), tmp_path / "out")
    assert 'extends = "ios-coreml"' in str(refused.value)
    with pytest.raises(TargetError, match="Use --target android-arm64-cpu"):
        fit(writers("text-generation"), load_target("android-nnapi"), tmp_path / "out")
    own = tmp_path / "mine.toml"
    own.write_text(
        'extends = "ios-coreml"\nname = "ios-cpu"\nsummary = "iOS, the CPU"\n[runtime]\nproviders = ["CPUExecutionProvider"]\n'
        '[graph]\nshapes = "dynamic"\nbuckets = []\n'
    )
    done = fit(writers("text-generation"), load_target(str(own)), tmp_path / "out")
    assert runtime.open(done.bundle.path).adapter("a").generate("the film", max_new_tokens=2)


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
