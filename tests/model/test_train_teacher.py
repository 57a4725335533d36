"""``--distill`` and ``--teacher`` of classifiers: another network's odds are learnt in place of labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_train import make_rows, model, train  # noqa: F401 - the fixture is this module's too
from test_train_deployed import bundles  # noqa: F401
from test_train_language import model as language_model  # noqa: F401
from test_train_language import tokenizer  # noqa: F401

from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import InputError
from edgepeft.train import ADAPTER_FILE, teacher
from edgepeft.train.problem import Problem


def odds(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_the_distance_is_the_divergence_at_a_temperature() -> None:
    """Against numpy in float64; torch computes in float32."""
    import torch

    generator = np.random.default_rng(0)
    mine, theirs = (3 * generator.standard_normal((7, 4)).astype(np.float32) for _ in range(2))
    found = [
        float(teacher.distance(torch.from_numpy(mine), torch.from_numpy(theirs), kind))
        for kind in ("single_label_classification", "multi_label_classification", "regression")
    ]
    hot = teacher._TEMPERATURE
    p, q = (odds(each.astype(np.float64) / hot) for each in (theirs, mine))
    single = hot**2 * (p * np.log(p / q)).sum(axis=1).mean()
    p, q = (1 / (1 + np.exp(-each.astype(np.float64) / hot)) for each in (theirs, mine))
    several = hot**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=1).mean()
    assert found == pytest.approx([single, several, ((mine - theirs) ** 2).mean()], rel=1e-5)
    for kind in ("single_label_classification", "multi_label_classification", "regression"):
        itself = torch.from_numpy(theirs)
        assert float(teacher.distance(itself, itself, kind)) == pytest.approx(0, abs=1e-6)


def test_what_is_the_same() -> None:
    rows = [teacher.Row({"input_ids": [1]}, target) for target in (0, 1, 1)]
    said = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]], np.float32)
    mine = np.array([[1.0, 0.0], [1.0, 0.0], [5.0, 1.0]])
    found = teacher.Teacher("big", "", rows, said, said, "single_label_classification").taught(
        mine, rows, Problem("single_label_classification", ("a", "b"))
    )
    assert (found.score, found.same) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert str(found) == "taught by big (accuracy 0.667); the adapter says the same of 66.7 % of the validation rows"


def test_rounded_weights_learn_what_the_adapter_says(
    model: Path,  # noqa: F811
    tmp_path: Path,
    bundles: dict[str, Path],  # noqa: F811
) -> None:
    """The loss is the distance from what the adapter says in fp32: it starts low, as rounding changes little, and falls."""
    held = make_rows(80, seed=5)
    plain = train(model, tmp_path / "plain", validation=held, epochs=6)
    found = train(
        model,
        tmp_path / "a",
        validation=held,
        epochs=6,
        learning_rate=3e-3,
        patience=None,
        start=tmp_path / "plain",
        deploy_variant="int8",
        bundle=bundles["encoder"],
        distill=True,
    )
    assert found.deployed is not None
    assert found.deployed.fp32_before.loss == pytest.approx(plain.after.loss, abs=1e-5)  # other batches, float32
    assert found.taught is not None
    assert found.taught.score == pytest.approx(plain.after.accuracy)
    assert found.taught.same is not None
    assert found.taught.same > 0.9
    record = json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())
    losses = record["metrics"]["train_loss"]
    assert losses[-1] < losses[0] < 0.1
    assert record["taught"]["same"] == found.taught.same


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A classifier that was fine-tuned whole, with its labels in another order than edgepeft's, and one more."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = make_rows(160)
    names = ["other", *sorted(set(rows.labels or ()), reverse=True)]
    torch.manual_seed(0)
    network: Any = AutoModelForSequenceClassification.from_pretrained(
        model,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: place for place, name in enumerate(names)},
    )
    tokens = AutoTokenizer.from_pretrained(model)
    batch = tokens(list(rows.texts), padding=True, return_tensors="pt")
    labels = torch.tensor([names.index(label) for label in rows.labels or ()])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network.train()
    for _ in range(40):
        network(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("whole") / "teacher"
    network.eval().save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def test_a_whole_model_teaches(model: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    """It knows the labels by name; where it was wrong the adapter learns what it says, and not what the rows say."""
    rows, held = make_rows(160), make_rows(80, seed=5)
    turned = Examples(rows.texts, ("up", "down") * 80)  # each of them wrong
    found = train(model, tmp_path / "a", data=turned, validation=held, epochs=12, patience=None, teacher=whole)
    assert found.taught is not None
    assert found.taught.score > 0.7  # what it learnt in its 40 steps
    assert found.after.accuracy is not None
    assert found.after.accuracy > 0.65  # by the labels alone it is below 0.5
    assert found.taught.same is not None
    assert found.taught.same > 0.85


def test_what_is_refused(model: Path, whole: Path, tmp_path: Path, bundles: dict[str, Path]) -> None:  # noqa: F811
    for more in ({}, {"deploy_variant": "int8", "bundle": bundles["encoder"]}):
        with pytest.raises(InputError, match="--distill needs --from"):
            train(model, tmp_path / "a", distill=True, **more)
    with pytest.raises(InputError, match="has no trained head"):
        train(
            model, tmp_path / "a", teacher=_named(model, tmp_path / "headless", sorted(set(make_rows(9).labels or ())))
        )
    with pytest.raises(InputError, match=r"does not know the labels? .*; it has LABEL_0, LABEL_1"):
        train(model, tmp_path / "a", teacher=_named(whole, tmp_path / "nameless", None))
    with pytest.raises(InputError, match="cannot load --teacher"):
        train(model, tmp_path / "a", teacher=tmp_path / "none")
    train(model, tmp_path / "other", data=Examples(make_rows(80).texts, ("x", "y") * 40), epochs=1)
    options = {"start": tmp_path / "other", "deploy_variant": "int8", "bundle": bundles["encoder"], "distill": True}
    with pytest.raises(InputError, match="whose head is for other labels"):
        train(model, tmp_path / "a", **options)
    with pytest.raises(InputError, match="leave one of them out"):
        train(model, tmp_path / "a", teacher=whole, **options)


def _named(source: Path, target: Path, labels: list[str] | None) -> Path:
    """A copy of a model's folder with these names of labels, or none."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    for name in ("id2label", "label2id"):
        config.pop(name, None)
    if labels is not None:
        config |= {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_on_the_command_line(model: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = make_rows(160)
    pairs = zip(rows.texts, rows.labels or (), strict=True)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    call = ["train", "--model", str(model), "--data", str(data), "--teacher", str(whole), "--threads", "1"]
    done = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "a"), "--epochs", "4"])
    assert done.exit_code == 0, done.output
    assert f"taught by {whole} (accuracy" in done.stdout
    done = CliRunner().invoke(main, [*call, "--compare", "lora,ia3"])
    assert done.exit_code == 2
    assert "--teacher is for the training of one adapter" in done.stderr
