"""Adapters at rest in float16 and 8 bits: every use of them gives what float32 gives, up to what the form rounds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal_bundle
from conftest import Bases, all_equal, ragged

from edgepeft import runtime
from edgepeft.adapters.files import read_adapter_onnx, read_onnx_adapter
from edgepeft.bundle import Head, read_bundle
from edgepeft.bundle.adapter_forms import AdapterForm
from edgepeft.errors import AdapterError, AdapterMismatchError, InputError, UnknownAdapterError
from edgepeft.pipeline import add, blend, quantize, relabel, rename, store_adapters, write_input_style
from edgepeft.pipeline._stored_adapters import KEPT

#: Adapters that are mostly factors; "head" is mostly a head.
NAMES = ("plain", "dora")
#: What a form changes at most of what an adapter does: rounding to 11 bits, and to 8 with a scale a rank.
MOST = {"fp16": 0.002, "int8": 0.02}


@pytest.fixture(scope="module", params=["fp16", "int8"])
def form(request: pytest.FixtureRequest) -> AdapterForm:
    found: AdapterForm = request.param
    return found


@pytest.fixture(scope="module")
def small(form: AdapterForm, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of encoders with all adapters in another form."""
    path = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("small") / "b"))
    done = store_adapters(path, form, NAMES)
    assert [each.name for each in done] == list(NAMES)
    for each in done:
        assert each.form == form
        assert 0 < each.change < MOST[form]
        assert each.bytes_after < each.bytes_before
    return path


def share(found: np.ndarray, expected: np.ndarray, base: np.ndarray) -> float:
    """How far an output is from what it should be, as a share of what the adapter does."""
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected - base).mean()))


def test_the_manifest_says_it_and_hashes_hold(form: AdapterForm, small: Path, bundle: Path) -> None:
    opened = read_bundle(small)
    opened.verify()
    assert opened.manifest.adapters["head"].form == "fp32"
    for name in NAMES:
        entry = opened.manifest.adapters[name]
        before = read_bundle(bundle).manifest.adapters[name]
        assert entry.form == form
        assert entry.model_copy(update={"form": "fp32", "bytes": before.bytes}) == before
        assert entry.bytes == (small / entry.onnx_adapter).stat().st_size
        assert all_equal(
            read_onnx_adapter(small / entry.onnx_adapter)[0], read_adapter_onnx(small / entry.onnx).tensors
        )


def test_every_use_of_it_is_that_of_float32(form: AdapterForm, small: Path, bundle: Path, bases: Bases) -> None:
    inputs = ragged(bases("bert"))[0]
    mine, whole = runtime.open(small), runtime.open(bundle)
    base = whole.base.forward(inputs)["logits"]
    assert np.array_equal(mine.base.forward(inputs)["logits"], base)

    def both(run: Any) -> None:
        found, expected = run(mine), run(whole)
        width = min(expected.shape[-1], base.shape[-1])
        assert share(found[..., :width], expected[..., :width], base[..., :width]) < MOST[form]

    for name in NAMES:
        both(lambda model, name=name: model.adapter(name).forward(inputs)["logits"])
    both(lambda model: model.adapter("plain", scale=0.5).forward(inputs)["logits"])
    both(lambda model: model.forward(inputs, adapters=["plain", None])["logits"][:1])


def test_swapped_away_the_base_is_back(small: Path, bases: Bases) -> None:
    inputs = ragged(bases("bert"))[0]
    model = runtime.open(small)
    before = model.base.forward(inputs)
    model.adapter("plain").forward(inputs)
    assert all_equal(model.base.forward(inputs), before)


def test_a_file_in_another_form_than_the_manifest_says_is_refused(
    form: AdapterForm, small: Path, bundle: Path, tmp_path: Path
) -> None:
    """Both ways, with hashes that hold: ONNX Runtime itself would fail in a run, or run what nobody checked."""
    from edgepeft.pipeline._manifest import write_manifest

    for source, said, words in ((small, "fp32", "plain"), (bundle, form, f"the manifest says .* {form}")):
        own = Path(shutil.copytree(source, tmp_path / f"{said}"))
        manifest = read_bundle(own).manifest
        entry = manifest.adapters["plain"].model_copy(update={"form": said})
        write_manifest(
            own, manifest.model_copy(update={"adapters": {**manifest.adapters, "plain": entry}}), manifest.files
        )
        with pytest.raises(AdapterMismatchError, match=words):
            runtime.open(own).adapter("plain").forward(ragged_inputs(own))


def ragged_inputs(bundle: Path) -> dict[str, np.ndarray]:
    model = runtime.open(bundle)
    return {name: array[:1] for name, array in model.encode(["a b"]).items()}


def test_blended_renamed_and_relabelled_it_stays_itself(
    form: AdapterForm, small: Path, bundle: Path, bases: Bases, tmp_path: Path
) -> None:
    inputs = ragged(bases("bert"))[0]
    own = Path(shutil.copytree(small, tmp_path / "own"))
    before = runtime.open(own).adapter("plain").forward(inputs)
    rename(own, "plain", "renamed")
    relabel(own, {"renamed": Head(labels=("no", "maybe", "yes"))})
    entry = read_bundle(own).manifest.adapters["renamed"]
    assert (entry.form, entry.labels) == (form, ("no", "maybe", "yes"))
    assert all_equal(runtime.open(own).adapter("renamed").forward(inputs), before)
    blend(own, {"renamed": 1.0}, "alone")
    assert read_bundle(own).manifest.adapters["alone"].form == "fp32"
    assert all_equal(runtime.open(own).adapter("alone").forward(inputs), before)


def test_back_to_float32_it_is_what_was_stored(form: AdapterForm, small: Path, tmp_path: Path, bases: Bases) -> None:
    inputs = ragged(bases("bert"))[0]
    own = Path(shutil.copytree(small, tmp_path / "own"))
    before = runtime.open(own).adapter("plain").forward(inputs)
    (done,) = store_adapters(own, "fp32", ["plain"])
    assert (done.form, done.change) == ("fp32", 0.0)
    assert all_equal(runtime.open(own).adapter("plain").forward(inputs), before)
    assert {n: e.form for n, e in read_bundle(own).manifest.adapters.items()} == {
        "plain": "fp32", "head": "fp32", "dora": form,
    }  # fmt: skip


def test_added_from_a_checkpoint_or_a_file(
    form: AdapterForm, small: Path, own_bundle: Path, checkpoints: dict[str, Path]
) -> None:
    said: list[str] = []
    added = add(own_bundle, "again", checkpoints["plain"], form=form, announce=said.append)
    assert (added.entry.form, added.changes_output) == (form, True)
    assert f"adapter again: stored in {form}, 0." in "\n".join(said)
    of_file = add(own_bundle, "file", small / "adapters" / "plain.onnx_adapter", form=form)
    assert of_file.entry.form == form
    for name in ("again", "file"):
        assert all_equal(
            read_adapter_onnx(own_bundle / "adapters" / f"{name}.onnx").tensors,
            read_adapter_onnx(small / "adapters" / "plain.onnx").tensors,
        )


def test_auto_takes_the_smallest_that_keeps_what_the_adapter_does(own_bundle: Path) -> None:
    done = {each.name: each for each in store_adapters(own_bundle, "auto")}
    for name, each in done.items():
        assert each.change <= KEPT
        entry = read_bundle(own_bundle).manifest.adapters[name]
        assert (entry.form, entry.bytes) == (each.form, each.bytes_after)
    assert done["plain"].form == "int8"


def test_auto_keeps_float32_where_no_form_does(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: (own_bundle / p).read_bytes() for p in ("adapters/plain.onnx", "adapters/plain.onnx_adapter")}
    monkeypatch.setattr("edgepeft.pipeline._stored_adapters.KEPT", 0.0)
    said: list[str] = []
    (done,) = store_adapters(own_bundle, "auto", ["plain"], announce=said.append)
    assert (done.form, done.change) == ("fp32", 0.0)
    assert len([line for line in said if "would change" in line]) == 2
    assert {path: (own_bundle / path).read_bytes() for path in before} == before
    read_bundle(own_bundle).verify()


def test_a_form_that_is_not_smaller_is_refused_with_the_arithmetic(own_bundle: Path) -> None:
    """Names and scales of many small factors take more than 8 bits save."""
    before = {p: p.read_bytes() for p in own_bundle.rglob("*") if p.is_file()}
    with pytest.raises(
        InputError,
        match=r"'head' in int8 would not be smaller: [\d,]+ bytes of factors, [\d,]+ of their scales and [\d,]+ of other "
        r"tensors are [\d,]+, and fp16 takes [\d,]+\. Take --adapter-form fp16",
    ):
        store_adapters(own_bundle, "int8", ["plain", "head"])
    assert {p: p.read_bytes() for p in own_bundle.rglob("*") if p.is_file()} == before
    said: list[str] = []
    (done,) = store_adapters(own_bundle, "auto", ["head"], announce=said.append)
    assert done.form == "fp16"
    assert "would not be smaller" in said[0]


def test_an_unknown_adapter_leaves_the_bundle(own_bundle: Path) -> None:
    before = {p: p.read_bytes() for p in own_bundle.rglob("*") if p.is_file()}
    with pytest.raises(UnknownAdapterError):
        store_adapters(own_bundle, "fp16", ["plain", "nobody"])
    assert {p: p.read_bytes() for p in own_bundle.rglob("*") if p.is_file()} == before


def test_numbers_beyond_float16(own_bundle: Path, tmp_path: Path) -> None:
    from edgepeft.adapters.files import write_adapter_onnx

    found = read_adapter_onnx(own_bundle / "adapters" / "plain.onnx")
    slot = read_bundle(own_bundle).manifest.slots.linear[0]
    tensors = {
        **found.tensors,
        slot.a: found.tensors[slot.a] * np.float32(1e6),
        slot.b: found.tensors[slot.b] * np.float32(1e-6),
    }
    write_adapter_onnx(tmp_path / "large.onnx", tensors, found.metadata)
    with pytest.raises(AdapterError, match=r"cannot be written in fp16: .* holds .*float16"):
        add(own_bundle, "large", tmp_path / "large.onnx", form="fp16")
    assert "large" not in read_bundle(own_bundle).manifest.adapters
    assert add(own_bundle, "large", tmp_path / "large.onnx", form="int8").entry.form == "int8"


def test_a_language_model_writes_with_it(form: AdapterForm, tmp_path: Path) -> None:
    """Decoding binds the tensors; quantized variants, and graphs whose slots are inputs, take the same file."""
    whole = build_causal_bundle(tmp_path / "whole")
    small = Path(shutil.copytree(whole, tmp_path / "small"))
    store_adapters(small, form)
    expected, found = (runtime.open(path).adapter("wide") for path in (whole, small))
    base = runtime.open(whole).base
    tokens = [[5, 6, 7, 8, 9, 10, 11, 12]]
    before, mine, theirs = (
        np.array(view.decoder(1, 16).prefill(tokens), np.float64) for view in (base, found, expected)
    )
    assert share(mine, theirs, before) < MOST[form] * 2
    quantize(small, "q4", method="rtn")
    runtime.open(small, variant="q4").adapter("wide").generate("a b c", max_new_tokens=3)
    write_input_style(small)
