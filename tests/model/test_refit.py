"""Adapters fitted once more to a rounded base: exact where that can be, kept where it helps, and theirs through every change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from causal import build_causal_bundle, build_generating_bundle
from click.testing import CliRunner
from conftest import all_equal, save_lora
from encoder_decoder import MODELS, SEQ2SEQ, build_encoder_decoder

from edgepeft import runtime
from edgepeft.adapters.files import read_adapter_onnx, read_onnx_adapter
from edgepeft.bundle import Head, read_bundle
from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import BundleError, DataError, InputError, ManifestError, UnknownAdapterError
from edgepeft.pipeline import (
    add,
    blend,
    diff,
    export,
    quantize,
    quantize_cache,
    refit,
    relabel,
    remove,
    rename,
    store_adapters,
)
from edgepeft.pipeline._calibration_runs import feeds_of, slot_tensors
from edgepeft.pipeline._quality import measure_quality
from edgepeft.quantize.refit import refit as solve
from edgepeft.runtime.generation.tokens import Tokens
from edgepeft.runtime.sessions import open_session
from edgepeft.validate import read_language_rows

WORDS = ["the", "film", "was", "very", "good", "and", "end", "of", "book", "not", "naïve", "café"]


def sentences(count: int, seed: int = 0, length: int = 60) -> Examples:
    """Texts of words that the tokenizer knows."""
    numbers = np.random.default_rng(seed)
    return Examples(tuple(" ".join(numbers.choice(WORDS, length)) for _ in range(count)), None)


def chats(path: Path, count: int) -> Path:
    texts = sentences(2 * count, length=12).texts
    rows = [{"prompt": texts[2 * i], "completion": texts[2 * i + 1]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with a q4 that was rounded to nearest; do not change it."""
    made = build_causal_bundle(tmp_path_factory.mktemp("refit"))
    quantize(made, "q4", method="rtn")
    return made


@pytest.fixture(scope="module")
def fitted(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with ``wide`` refitted; do not change it."""
    own = Path(shutil.copytree(whole, tmp_path_factory.mktemp("fitted") / "b"))
    (done,) = refit(own, "q4", ["wide"], data={"wide": sentences(40)})
    assert done.kept
    return own


@pytest.fixture
def own(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "own"))


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def logits(bundle: Path, variant: str, adapter: str | None) -> np.ndarray:
    with runtime.open(bundle, variant=variant) as model:
        return np.array(model.adapter(adapter).decoder(1, 16).prefill([[5, 6, 7, 8, 9, 10]]))


# The closed form


def moved_base(bundle: Path, tensors: Mapping[str, np.ndarray], target: Path) -> dict[str, np.ndarray]:
    """The fp32 graph with ``A @ D`` taken from every weight of a slot: what an adapter must add to be itself, by its ``B``."""
    model = ir.load(bundle / "onnx" / "model.onnx")
    numbers = np.random.default_rng(3)
    wanted = {}
    for slot in read_bundle(bundle).manifest.slots.linear:
        if slot.b not in tensors:
            continue
        first, second = tensors[slot.a][0], tensors[slot.b][0]
        change = np.where(second != 0, numbers.normal(size=second.shape) * np.abs(second).max() * 0.5, 0)
        change = change.astype(np.float32)
        value = model.graph.initializers[slot.weight]
        assert value.const_value is not None
        delta = first @ change
        value.const_value = ir.tensor(value.const_value.numpy() - (delta.T if slot.transposed else delta))
        wanted[slot.b] = second + change
    ir.save(model, target, external_data=f"{target.name}_data")
    return wanted


def test_what_a_base_lacks_in_the_factors_reach_is_found_exactly(whole: Path, tmp_path: Path) -> None:
    """Layer by layer through the whole network: an error at an early site would show at all later ones."""
    bundle = read_bundle(whole)
    tensors = slot_tensors(bundle, "wide")
    wanted = moved_base(whole, tensors, tmp_path / "moved.onnx")
    numbers = np.random.default_rng(4)
    batches = [feeds_of(bundle, [int(t) for t in numbers.integers(3, 290, 96)]) for _ in range(4)]
    steps: list[tuple[int, int]] = []
    found = solve(
        whole / "onnx" / "model.onnx",
        tmp_path / "moved.onnx",
        bundle.manifest.slots,
        tensors,
        batches,
        open_session,
        ridge=1e-9,
        progress=lambda done, of: steps.append((done, of)),
    )
    assert found.keys() == wanted.keys()
    assert len(wanted) == 2 * 7 or len(wanted) == 2 * 4 or len(wanted) > 7
    assert steps[-1][0] == steps[-1][1] == len(steps)
    for name, array in wanted.items():
        assert found[name].shape == tensors[name].shape
        # float32 through the layers before, and normal equations, whose condition is that of the activations squared
        np.testing.assert_allclose(found[name][0], array, atol=2e-3 * np.abs(array).max())
    for path in tmp_path.iterdir():
        assert "_step" not in path.name


def test_a_ridge_draws_to_what_was(whole: Path, tmp_path: Path) -> None:
    bundle = read_bundle(whole)
    tensors = slot_tensors(bundle, "wide")
    moved_base(whole, tensors, tmp_path / "moved.onnx")
    batches = [feeds_of(bundle, list(range(3, 99)))]
    files = whole / "onnx" / "model.onnx", tmp_path / "moved.onnx"
    found = solve(*files, bundle.manifest.slots, tensors, batches, open_session, ridge=1e9)
    for name, array in found.items():
        np.testing.assert_allclose(array, tensors[name], atol=1e-4)


def test_parts_of_a_packed_slot_keep_their_own_rows(fitted: Path) -> None:
    """A packed q/k/v has one factor for each part: a column may use the rows of its part alone."""
    bundle = read_bundle(fitted)
    plain, own = (slot_tensors(each, "wide") for each in (bundle, bundle.on("q4")))
    packed = [slot for slot in bundle.manifest.slots.linear if len(slot.parts) > 1]
    for slot in bundle.manifest.slots.linear:
        assert np.array_equal(plain[slot.b] == 0, own[slot.b] == 0)
        assert np.array_equal(plain[slot.a], own[slot.a])
        assert not np.array_equal(plain[slot.b], own[slot.b])
    assert packed


# Over bundles


def test_it_helps_on_the_variant_and_nowhere_else(whole: Path, fitted: Path) -> None:
    bundle = read_bundle(fitted)
    bundle.verify()
    entry = bundle.manifest.adapters["wide"]
    assert list(entry.refits) == ["q4"]
    assert entry.refits["q4"].loss[1] < 0.8 * entry.refits["q4"].loss[0]
    assert entry.refits["q4"].bytes == (fitted / entry.refits["q4"].onnx_adapter).stat().st_size
    assert entry.only(()) == read_bundle(whole).manifest.adapters["wide"]
    before, after = content(whole), content(fitted)
    new = {"adapters/wide/q4.onnx", "adapters/wide/q4.onnx_adapter"}
    assert after.keys() - before.keys() == new
    assert {name for name in before if before[name] != after[name]} == {"edgepeft.json"}
    assert np.array_equal(logits(fitted, "fp32", "wide"), logits(whole, "fp32", "wide"))
    assert np.array_equal(logits(fitted, "q4", None), logits(whole, "q4", None))
    assert np.array_equal(logits(fitted, "q4", "narrow"), logits(whole, "q4", "narrow"))
    tokens = Tokens(bundle)
    windows = [tokens.encode(text, special=False)[:128] for text in sentences(8, seed=9).texts]
    lost = [measure_quality(path, "q4", {"wide": windows})[0].divergence for path in (whole, fitted)]
    assert lost[1] < lost[0]


def test_both_files_hold_the_same_and_say_whose_they_are(fitted: Path) -> None:
    entry = read_bundle(fitted).manifest.adapters["wide"]
    own = entry.refits["q4"]
    found = read_adapter_onnx(fitted / own.onnx)
    assert all_equal(read_onnx_adapter(fitted / own.onnx_adapter)[0], found.tensors)
    assert found.metadata == read_adapter_onnx(fitted / entry.onnx).metadata


def test_what_a_variant_loads_is_its_own_file_and_is_verified(own: Path) -> None:
    bundle = read_bundle(own)
    assert "adapters/wide/q4.onnx_adapter" in bundle.loaded_files("q4")
    assert "adapters/wide.onnx_adapter" not in bundle.loaded_files("q4")
    assert "adapters/wide/q4.onnx_adapter" not in bundle.loaded_files("fp32")
    assert "adapters/wide/q4.onnx" in bundle.manifest.deployed("q4")
    assert "adapters/wide/q4.onnx" not in bundle.manifest.deployed("fp32")
    file = own / "adapters/wide/q4.onnx_adapter"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(bytes(changed))
    with pytest.raises(BundleError, match=r"wide/q4\.onnx_adapter"):
        runtime.open(own, variant="q4").adapter("wide").decoder(1, 8).prefill([[5, 6]])
    runtime.open(own, variant="fp32").adapter("wide")
    file.unlink()
    with pytest.raises(BundleError, match=r"wide/q4\.onnx_adapter"):
        runtime.open(own, variant="q4")


def test_a_manifest_that_names_no_such_variant_is_refused(own: Path) -> None:
    path = own / "edgepeft.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["adapters"]["wide"]["refits"]["q8"] = manifest["adapters"]["wide"]["refits"].pop("q4")
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(
        ManifestError, match="adapter wide was refitted to variant q8, which is not listed under variants"
    ):
        read_bundle(own)


def test_scaled_blended_and_mixed_it_is_the_refitted_one(whole: Path, fitted: Path) -> None:
    inputs = feeds_of(read_bundle(whole), [5, 6, 7, 8])
    tensors = slot_tensors(read_bundle(fitted).on("q4"), "wide")
    with runtime.open(whole, variant="q4", kernels="off") as plain:
        expected = plain.session.run(["logits"], {**inputs, **tensors})[0]
    with runtime.open(fitted, variant="q4") as model:
        for found in (
            model.adapter("wide").forward(inputs)["logits"],
            model.adapter({"wide": 1.0}).forward(inputs)["logits"],
            model.forward({n: np.repeat(a, 2, 0) if a.shape[0] == 1 and n != "logits_from" else a
                           for n, a in inputs.items()}, adapters=["wide", None])["logits"][:1],
        ):  # fmt: skip
            np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_fit_that_does_not_help_is_not_kept(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    before = content(copy)
    unchanged = {
        name: array for name, array in slot_tensors(read_bundle(copy), "wide").items() if name.endswith("lora_B")
    }
    monkeypatch.setattr("edgepeft.pipeline._refit.solve", lambda *a, **k: unchanged)
    said: list[str] = []
    (same,) = refit(copy, "q4", ["wide"], data={"*": sentences(30)}, announce=said.append)
    assert not same.kept
    assert same.loss[0] == same.loss[1]
    assert "not kept, since it does not help beyond the noise" in said[-1]
    assert content(copy) == before


def test_all_adapters_on_a_text_that_ships(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    done = refit(copy, "q4")
    assert [each.adapter for each in done] == ["wide", "narrow"]
    assert done[0].kept
    kept = {each.adapter for each in done if each.kept}
    assert {name for name, e in read_bundle(copy).manifest.adapters.items() if e.refits} == kept
    for each in done:
        assert each.perplexities is not None
        assert each.texts >= 2
    read_bundle(copy).verify()


def test_again_it_begins_with_the_adapter_itself(own: Path, fitted: Path) -> None:
    (again,) = refit(own, "q4", ["wide"], data={"wide": sentences(40)})
    entry = read_bundle(own).manifest.adapters["wide"]
    assert again.loss == pytest.approx(read_bundle(fitted).manifest.adapters["wide"].refits["q4"].loss, rel=0.02)
    assert list(entry.refits) == ["q4"]
    read_bundle(own).verify()


def test_rows_with_a_prompt_are_judged_by_their_answers(own: Path, tmp_path: Path) -> None:
    rows = read_language_rows(chats(tmp_path / "chats.jsonl", 40))
    (done,) = refit(own, "q4", ["wide"], data={"wide": rows})
    assert done.texts == 8
    assert done.kept


# Through every change of the bundle


def test_renamed(own: Path) -> None:
    before = logits(own, "q4", "wide")
    rename(own, "wide", "broad")
    bundle = read_bundle(own)
    bundle.verify()
    assert bundle.manifest.adapters["broad"].refits["q4"].onnx == "adapters/broad/q4.onnx"
    assert not (own / "adapters" / "wide").exists()
    assert np.array_equal(logits(own, "q4", "broad"), before)


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_stored_in_another_form(form: Any, own: Path) -> None:
    whole, before = logits(own, "fp32", "wide"), logits(own, "q4", "wide")
    effect = np.square(logits(own, "q4", None) - before).mean()
    size = read_bundle(own).manifest.adapters["wide"].refits["q4"].bytes
    store_adapters(own, form, ["wide"])
    bundle = read_bundle(own)
    bundle.verify()
    assert bundle.manifest.adapters["wide"].refits["q4"].bytes < 0.7 * size
    found = logits(own, "q4", "wide")
    assert 0 < np.square(found - before).mean() < 0.02**2 * 25 * effect
    assert not np.array_equal(logits(own, "fp32", "wide"), whole)
    store_adapters(own, "fp32", ["wide"])
    np.testing.assert_allclose(logits(own, "q4", "wide"), found, atol=1e-5)


def test_the_variant_made_again_or_removed_takes_it_along(own: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(own, tmp_path / "again"))
    said: list[str] = []
    quantize(again, "q4", method="mse", replace=True, announce=said.append)
    assert any("adapter wide was refitted to the q4 of before" in line for line in said)
    remove(own, variant="q4")
    for path in (own, again):
        bundle = read_bundle(path)
        bundle.verify()
        assert not bundle.manifest.adapters["wide"].refits
        assert not [name for name in bundle.manifest.files if "/q4." in name]
        assert not (path / "adapters/wide/q4.onnx").exists()


def test_the_same_weights_with_a_cache_in_8_bits_run_it_too(own: Path, whole: Path) -> None:
    made = quantize_cache(own, "q4", data={"*": sentences(40)})
    found = logits(own, made.variant, "wide")
    away = {bundle: np.abs(found - logits(bundle, "q4", "wide")).mean() for bundle in (own, whole)}
    assert away[own] < 0.8 * away[whole], (
        "8 bits for the cache are coarse in a model of random weights, but the adapter is the refitted one"
    )
    refits = read_bundle(own).manifest.adapters["wide"].refits
    assert refits[made.variant] == refits["q4"]
    remove(own, variant=made.variant)
    read_bundle(own).verify()
    assert set(read_bundle(own).manifest.adapters["wide"].refits) == {"q4"}, "its files stay with the other"


def test_the_adapter_removed_or_replaced_takes_it_along(own: Path, whole: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(own, tmp_path / "other"))
    remove(own, "wide")
    add(other, "wide", whole / "adapters" / "wide.onnx", replace=True)
    for path in (own, other):
        bundle = read_bundle(path)
        bundle.verify()
        assert not [name for name in bundle.manifest.files if "/q4." in name]
    assert not read_bundle(other).manifest.adapters["wide"].refits


def test_the_refitted_file_is_an_adapter_of_its_own(own: Path) -> None:
    before = logits(own, "q4", "wide")
    added = add(own, "alone", own / "adapters/wide/q4.onnx")
    assert added.changes_output
    assert np.array_equal(logits(own, "q4", "alone"), before)


def test_a_blend_into_the_bundle_is_of_what_serves_all_variants(own: Path, whole: Path) -> None:
    blend(own, {"wide": 1.0}, "alone")
    assert not read_bundle(own).manifest.adapters["alone"].refits
    assert np.array_equal(logits(own, "fp32", "alone"), logits(whole, "fp32", "wide"))


def test_an_open_model_sees_it_after_a_refresh(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    with runtime.open(copy, variant="q4") as model, runtime.open(copy, variant="fp32") as other:
        before = np.array(model.adapter("wide").decoder(1, 8).prefill([[5, 6, 7]]))
        assert refit(copy, "q4", ["wide"])[0].kept
        assert model.refresh().replaced == ("wide",)
        assert not np.array_equal(np.array(model.adapter("wide").decoder(1, 8).prefill([[5, 6, 7]])), before)
        other.refresh()


def test_two_bundles_differ_by_it(own: Path, whole: Path) -> None:
    (found,) = [each for each in diff(whole, own).differences if "wide" in str(each)]
    assert "refitted" in str(found)


def test_a_device_gets_that_of_its_variant(own: Path, tmp_path: Path) -> None:
    """Files for one target: the q4 bundle has it, the fp32 one has no trace of it; the C++ runner is given its path."""
    from edgepeft.bench import Job
    from edgepeft.devices.executors.cpp_protocol import write_job

    bundle = read_bundle(own)
    for variant, file in (("q4", "adapters/wide/q4.onnx_adapter"), ("fp32", "adapters/wide.onnx_adapter")):
        job = Job(bundle=str(own), variant=variant, threads=1)
        text = write_job(job, bundle, {name: f"/b/{name}" for name in bundle.manifest.files})
        assert f"adapter wide /b/{file}\n" in text


# Other tasks


def test_an_encoder_and_its_labels(own_bundle: Path) -> None:
    for variant in ("int8", "q4"):
        quantize(own_bundle, variant)
        said: list[str] = []
        with pytest.raises(DataError, match="no texts are given"):
            refit(own_bundle, variant, ["plain"])
        texts = Examples(tuple(" ".join(np.random.default_rng(i).choice(list("abcdefgh"), 9)) for i in range(60)), None)
        (done,) = refit(own_bundle, variant, ["plain"], data={"*": texts}, announce=said.append)
        assert done.perplexities is None
        assert done.texts == 12
        if done.kept:
            assert done.loss[1] < done.loss[0]
    bundle = read_bundle(own_bundle)
    bundle.verify()
    if refits := bundle.manifest.adapters["plain"].refits:
        relabel(own_bundle, {"plain": Head(labels=("no", "maybe", "yes"))})
        read_bundle(own_bundle).verify()
        kept = read_bundle(own_bundle).manifest.adapters["plain"].refits
        assert kept.keys() == refits.keys()
        for each in kept.values():
            assert read_adapter_onnx(own_bundle / each.onnx).metadata["labels"] == ["no", "maybe", "yes"]


@pytest.mark.parametrize("kind", list(MODELS))
def test_an_encoder_decoder(kind: str, tmp_path: Path) -> None:
    model = build_encoder_decoder(tmp_path / "model", kind)
    wide = save_lora(
        tmp_path / "wide", model, r=5, target_modules=MODELS[kind][2], seed=2, task=SEQ2SEQ,
        task_type="SEQ_2_SEQ_LM", scale=0.2,
    )  # fmt: skip
    made = tmp_path / "bundle"
    export(model, {"wide": wide}, made)
    quantize(made, "q4", method="rtn")
    texts = Examples(tuple(" ".join(np.random.default_rng(i).choice(list("abcdefgh"), 12)) for i in range(30)), None)
    (done,) = refit(made, "q4", data={"*": texts})
    assert done.sites == len(read_bundle(made).manifest.slots.linear)
    assert done.loss[1] < done.loss[0]
    assert done.perplexities is not None
    bundle = read_bundle(made)
    bundle.verify()
    with runtime.open(made, variant="q4") as opened:
        assert opened.adapter("wide").generate("a b c", max_new_tokens=3).tokens


# What is refused


def test_what_cannot_be_refitted(whole: Path, tmp_path: Path) -> None:
    before = content(whole)
    for call, error, said in (
        (lambda: refit(whole, "q8"), BundleError, "has no variant 'q8'; it has: fp32, q4"),
        (lambda: refit(whole, "fp32"), InputError, "refitted to rounded weights, against fp32"),
        (lambda: refit(whole, "q4", ["other"]), UnknownAdapterError, "has no adapter 'other'"),
        (lambda: refit(whole, "q4", data={"other": sentences(9)}), UnknownAdapterError, "has no adapter 'other'"),
        (lambda: refit(whole, "q4", ["wide"], data={"wide": sentences(2, length=6)}), DataError, "every fifth is kept"),
    ):
        with pytest.raises(error, match=said):
            call()
    assert content(whole) == before
    halved = Path(shutil.copytree(whole, tmp_path / "halved"))
    quantize(halved, "q4f16")
    with pytest.raises(InputError, match=r"q4f16 computes in float16.*: q4"):
        refit(halved, "q4f16", ["wide"])
    prefixed = build_generating_bundle(tmp_path / "prefixed")
    quantize(prefixed, "q4", method="rtn")
    with pytest.raises(InputError, match="'prefix' cannot be refitted: it puts states before the sequence"):
        refit(prefixed, "q4", ["prefix"])


def test_a_bundle_that_changes_meanwhile(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(*arguments: Any, **options: Any) -> dict[str, np.ndarray]:
        if not (own / "adapters" / "late.onnx").exists():
            add(own, "late", own / "adapters" / "narrow.onnx")
            quantize(own, "q4", method="mse", replace=True)
        return solve(*arguments, **options)

    monkeypatch.setattr("edgepeft.pipeline._refit.solve", change)
    with pytest.raises(BundleError, match="was changed while adapters were being refitted"):
        refit(own, "q4", ["wide"], data={"wide": sentences(40)})
    bundle = read_bundle(own)
    bundle.verify()
    assert "late" in bundle.manifest.adapters
    assert not bundle.manifest.adapters["wide"].refits


# On the command line


def test_add_refits(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    file = str(whole / "adapters" / "wide.onnx")
    data = chats(tmp_path / "chats.jsonl", 40)
    words = ["add", str(copy), "--adapter", f"again={file}", "--refit", "q4", "--data", f"again={data}"]
    shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 0, shown.output
    assert "adapter again on q4: " in shown.output
    assert "(8 texts apart): kept" in shown.output
    assert "q4" in read_bundle(copy).manifest.adapters["again"].refits
    told = CliRunner().invoke(main, [*words, "--replace", "--json"])
    assert told.exit_code == 0, told.output
    (found,) = json.loads(told.stdout)["refitted"]
    assert (found["adapter"], found["variant"], found["kept"]) == ("again", "q4", True)
    seen = CliRunner().invoke(main, ["inspect", str(copy)])
    assert "refitted to q4" in seen.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", "again=x.jsonl"], "--data is what --refit VARIANT fits the adapter to"),
        (["--refit", "q4", "--dry-run"], "a dry run refits nothing"),
        (["--refit", "q4", "--data", "wide=x.jsonl"], "the texts are for the adapter that is added, again"),
        (["--refit", "q9"], "has no variant 'q9'"),
        (["--refit", "fp32"], "refitted to rounded weights"),
    ],
)
def test_add_refuses_first(more: list[str], said: str, whole: Path) -> None:
    before = content(whole)
    words = ["add", str(whole), "--adapter", f"again={whole / 'adapters' / 'wide.onnx'}", *more]
    shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 2, shown.output
    assert said in shown.output.replace("\n", " ")
    assert content(whole) == before


def test_quantize_refits_all(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    words = ["quantize", str(copy), "--variant", "q4", "--replace", "--method", "mse", "--refit", "--json"]
    shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)["refitted"]
    assert [each["adapter"] for each in found] == ["wide", "narrow"]
    kept = {each["adapter"] for each in found if each["kept"]}
    assert "wide" in kept
    assert {name for name, e in read_bundle(copy).manifest.adapters.items() if e.refits} == kept
