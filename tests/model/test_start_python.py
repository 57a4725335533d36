"""The Python of docs/start.md, run as it stands: the five stages for each kind of task, and a bundle opened.

Only the model's id and the task are replaced. Adapters are found by their paths in the page, below the current folder.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal import build_causal
from conftest import Models, save_lora
from encoder_decoder import SEQ2SEQ, made_once

from edgepeft import runtime
from edgepeft.bundle import read_bundle
from edgepeft.errors import InputError, ManifestError
from edgepeft.pipeline import Bundle, add_slots, capture, export, merge, quantize, read_adapter, validate, write_bundle

README = Path(__file__).parents[2] / "docs" / "start.md"
MODEL, TASK = '"sentence-transformers/all-MiniLM-L6-v2"', 'task="text-classification"'
#: The text that the tests write from, in words of the tiny models' vocabulary.
TEXT = "the film was very good"


def block(word: str) -> str:
    """The one Python block of the page that holds ``word``."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (found,) = [each for each in blocks if word in each]
    return str(found)


def run_block(code: str, **replaced: str) -> dict[str, Any]:
    """What the names of a block are after it ran."""
    for old, new in ((MODEL, replaced.get("model")), (TASK, replaced.get("task"))):
        if new is not None:
            assert code.count(old) == 1, f"the page's block no longer holds {old}"
            code = code.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(code, str(README), "exec"), names)
    return names


def adapter(folder: Path, model: Path, task: str, seed: int = 1, **options: Any) -> Path:
    """A LoRA checkpoint of random numbers over every linear layer that a tiny model of the task has."""
    kinds = {"text-classification": "SEQ_CLS", "text-generation": "CAUSAL_LM", SEQ2SEQ: "SEQ_2_SEQ_LM"}
    return save_lora(
        folder, model, task=task, task_type=kinds[task], scale=0.4, seed=seed,
        **{"target_modules": "all-linear", **options},
    )  # fmt: skip


@pytest.fixture(scope="module")
def encoder_decoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return made_once(tmp_path_factory)


def model_of(task: str, kind: str, folder: Path, models: Models, encoder_decoders: Callable[[str], Path]) -> Path:
    if task == SEQ2SEQ:
        return encoder_decoders(kind)
    return build_causal(folder / "model") if task == "text-generation" else models(kind)


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("text-classification", "bert"),
        ("text-generation", "llama"),
        (SEQ2SEQ, "T5"),
        pytest.param(SEQ2SEQ, "Bart", marks=pytest.mark.slow),
    ],
)
def test_five_stages(
    task: str,
    kind: str,
    models: Models,
    encoder_decoders: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = model_of(task, kind, tmp_path, models, encoder_decoders)
    adapter(tmp_path / "reviews-lora", model, task)
    names = run_block(block("write_bundle"), model=repr(str(model)), task=f"task={task!r}")

    bundle: Bundle = names["bundle"]
    assert bundle.manifest.task == task
    checked = validate("bundle")
    assert [each.adapter for each in checked.parity] == ["reviews"]  # and so it was compared with PEFT
    assert all(each.changes_output for each in checked.parity)
    (variant,) = bundle.manifest.variants.values()
    assert (variant.decoder_file is not None) is (task == SEQ2SEQ)
    with runtime.open("bundle") as opened:
        reviews = opened.adapter("reviews")
        if task == "text-classification":
            assert not np.allclose(reviews.logits(TEXT), opened.base.logits(TEXT), atol=1e-3)
            return
        written = [
            view.generate(TEXT, max_new_tokens=12, temperature=0, repetition_penalty=1.0).tokens
            for view in (opened.base, reviews, opened.base)
        ]
    assert written[0] == written[2] != written[1]


def test_on_the_device(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two adapters whose heads have labels of their own; nothing in the block is replaced."""
    monkeypatch.chdir(tmp_path)
    model, labels = models("bert"), {"reviews": ["bad", "good"], "topics": ["sports", "trade", "art", "law"]}
    for seed, (name, own) in enumerate(labels.items()):
        adapter(
            tmp_path / name, model, "text-classification", seed, target_modules=["query", "value"],
            modules_to_save=["classifier"], num_labels=len(own), record={"labels": own},
        )  # fmt: skip
    export(str(model), {name: tmp_path / name for name in labels}, "bundle", task="text-classification")
    quantize("bundle", "int8")
    names = run_block(block("runtime.open"))

    opened = names["model"]
    assert opened.variant == "int8"
    assert (list(names["reviews"].labels), list(names["topics"].labels)) == (labels["reviews"], labels["topics"])
    assert opened.active == "reviews"  # what the last line chose
    with pytest.raises(InputError, match="closed"):
        opened.predict(names["texts"])
    with runtime.open("bundle", variant="int8") as again:
        mixed = again.predict(names["texts"], adapters=["reviews", "topics"])
        for name, text, found in zip(labels, names["texts"], mixed, strict=True):
            assert found.label in labels[name]
            assert found.probabilities == pytest.approx(again.adapter(name).predict(text).probabilities, abs=1e-2)
            assert not np.allclose(
                again.adapter(name, scale=0.5).logits(text), again.adapter(name).logits(text), atol=1e-4
            )


@pytest.fixture(scope="module")
def writer(
    encoder_decoders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Any]]:
    """``writer(kind)``: a captured encoder-decoder and an adapter of it."""
    made: dict[str, tuple[Any, Any]] = {}

    def get(kind: str) -> tuple[Any, Any]:
        if kind not in made:
            model = encoder_decoders(kind)
            source = adapter(tmp_path_factory.mktemp(f"{kind}-lora") / "lora", model, SEQ2SEQ)
            base = capture(model, task=SEQ2SEQ)
            made[kind] = base, read_adapter(source, name="reviews", weights=base.weight)
        return made[kind]

    return get


@pytest.mark.parametrize("kind", ["T5"])
@pytest.mark.parametrize("way", ["swap", "merge"])
def test_an_encoder_alone_is_not_written(
    kind: str, way: str, writer: Callable[[str], tuple[Any, Any]], tmp_path: Path
) -> None:
    base, lora = writer(kind)
    whole = merge(base, lora) if way == "merge" else add_slots(base, [lora])
    adapters = [] if way == "merge" else [lora]
    half = dataclasses.replace(whole, decoder=None)
    with pytest.raises(InputError, match=r"nothing was written: .*two graphs, the encoder and the decoder"):
        write_bundle(tmp_path / "below" / "bundle", base, half, adapters)
    assert list(tmp_path.iterdir()) == []

    written = write_bundle(tmp_path / "bundle", base, whole, adapters)
    before = {path: path.read_bytes() for path in written.path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="nothing was written"):
        write_bundle(tmp_path / "bundle", base, half, adapters)
    assert {path: path.read_bytes() for path in written.path.rglob("*") if path.is_file()} == before


def test_a_decoder_that_the_task_does_not_take_is_not_written(bases: Any, tmp_path: Path) -> None:
    base = bases("bert")
    slotted = add_slots(base, reserve="all-linear")
    with pytest.raises(InputError, match=r"nothing was written: .*text-classification takes one graph"):
        write_bundle(tmp_path / "bundle", base, dataclasses.replace(slotted, decoder=slotted.graph))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("edit", ["none", "gone"])
@pytest.mark.parametrize("kind", ["T5"])
def test_a_manifest_without_its_decoder_is_refused(
    kind: str, edit: str, writer: Callable[[str], tuple[Any, Any]], tmp_path: Path
) -> None:
    base, lora = writer(kind)
    folder = write_bundle(tmp_path / "bundle", base, add_slots(base, [lora]), [lora]).path
    manifest = json.loads((folder / "edgepeft.json").read_text(encoding="utf-8"))
    for variant in manifest["variants"].values():
        if edit == "none":
            variant["decoder_file"] = None
        else:
            del variant["decoder_file"]
    (folder / "edgepeft.json").write_text(json.dumps(manifest), encoding="utf-8")
    for use in (read_bundle, validate, runtime.open):
        with pytest.raises(ManifestError, match="has no decoder_file: text2text-generation takes two graphs"):
            use(folder)
