"""Training from an adapter that is there, and from the nearest of several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_train_language as language
from click.testing import CliRunner
from test_train import BAD, FILL, GOOD, make_rows, model, tensors, train  # noqa: F401 - the fixture is this module's too
from test_train_language import model as language_model  # noqa: F401
from test_train_language import tokenizer  # noqa: F401

from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import InputError
from edgepeft.train import ADAPTER_FILE
from edgepeft.train.nearness import left_out_error

LONG = {"epochs": 6, "patience": None}


def by_length(count: int) -> Examples:
    """Rows whose label is whether they are long: another task over the same words."""
    generator = np.random.default_rng(7)
    texts, labels = [], []
    for i in range(count):
        size = int(generator.integers(2, 5)) if i % 2 else int(generator.integers(9, 14))
        texts.append(" ".join([*map(str, generator.choice([*FILL, *GOOD, *BAD], size=size)), *f"{i:04d}"]))
        labels.append("short" if i % 2 else "long")
    return Examples(tuple(texts), tuple(labels))


def renamed(rows: Examples) -> Examples:
    return Examples(rows.texts, tuple({"up": "yes", "down": "no"}[label] for label in rows.labels or ()))


def test_it_goes_on_from_the_adapter(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """With a learning rate of nothing, the scores before and after are those that the adapter had."""
    held = make_rows(60, seed=5)
    first = train(model, tmp_path / "first", validation=held, rank=4, target_modules=["key"], **LONG)
    again = train(model, tmp_path / "again", validation=held, start=tmp_path / "first", epochs=1, learning_rate=1e-12)
    assert again.before.accuracy == pytest.approx(first.after.accuracy)
    assert again.before.loss == pytest.approx(first.after.loss, abs=1e-4)
    one, other = tensors(tmp_path / "first"), tensors(tmp_path / "again")
    assert one.keys() == other.keys()
    assert all(np.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["r"] == 4
    record = json.loads((tmp_path / "again" / ADAPTER_FILE).read_text())["start"]
    assert record["folder"] == str(tmp_path / "first")
    assert record["head"]
    moved = train(model, tmp_path / "moved", validation=held, start=tmp_path / "first", epochs=1)
    assert not np.array_equal(tensors(tmp_path / "moved").popitem()[1], other.popitem()[1])
    assert str(moved.start) == f"started from {tmp_path / 'first'}"


def test_another_set_of_labels_gets_a_new_head(model: Path, tmp_path: Path) -> None:  # noqa: F811
    train(model, tmp_path / "first", **LONG)
    result = train(model, tmp_path / "again", data=renamed(make_rows(160)), start=tmp_path / "first", epochs=1)
    assert result.labels == ("no", "yes")
    assert result.start is not None
    assert not result.start.head
    assert "with a new head" in str(result.start)


def test_the_nearest_is_taken_and_said(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """An adapter of the same task under other names against one of another task: both orders."""
    train(model, tmp_path / "polarity", target_modules="all-linear", **LONG)
    train(model, tmp_path / "length", data=by_length(160), target_modules="all-linear", **LONG)
    for order in (["polarity", "length"], ["length", "polarity"]):
        found = train(
            model,
            tmp_path / "b",
            data=renamed(make_rows(120, seed=9)),
            start=[tmp_path / name for name in order],
            epochs=1,
        )
        assert found.start is not None
        assert found.start.folder == str(tmp_path / "polarity")
        distances = found.start.distances
        assert set(distances) == {"", *(str(tmp_path / name) for name in order)}
        assert distances[str(tmp_path / "polarity")] < distances[str(tmp_path / "length")]
        assert "the nearest by squared error of left-out rows" in str(found.start)


def test_left_out_rows_are_left_out() -> None:
    """The closed form against fits without each row."""
    generator = np.random.default_rng(0)
    features, noise = generator.normal(size=(12, 3)), generator.normal(size=(12, 1))
    targets = features @ np.array([[1.0], [0.5], [0.0]]) + 0.3 * noise
    errors = []
    for penalty in (0.01, 0.1, 1.0, 10.0):
        whole = features - features.mean(axis=0)
        scale = float((whole**2).sum()) / 3 * penalty
        found = 0.0
        for row in range(12):
            rest = [i for i in range(12) if i != row]
            x, y = features[rest] - features.mean(axis=0), targets[rest]
            # An intercept that is not penalized, over features centred once.
            design = np.hstack([np.ones((11, 1)), x])
            solved = np.linalg.solve(design.T @ design + scale * np.diag([0.0, 1, 1, 1]), design.T @ y)
            found += float(
                ((np.hstack([1.0, features[row] - features.mean(axis=0)]) @ solved - targets[row]) ** 2).sum()
            )
        errors.append(found)
    centred = targets - targets.mean()
    assert left_out_error(features, targets) == pytest.approx(
        min(errors) / float(((centred * 12 / 11) ** 2).sum()), rel=1e-6
    )
    assert left_out_error(generator.normal(size=(40, 3)), generator.normal(size=(40, 1))) > 0.9


def test_what_cannot_be_started_from(model: Path, tmp_path: Path) -> None:  # noqa: F811
    from transformers import AutoTokenizer, BertConfig, BertModel

    with pytest.raises(InputError, match=r"has no adapter_config.json and no adapter_model.safetensors"):
        train(model, tmp_path / "a", start=tmp_path)
    train(model, tmp_path / "first", epochs=1)
    with pytest.raises(InputError, match="names the same adapter twice"):
        train(model, tmp_path / "a", start=[tmp_path / "first", tmp_path / "first"])
    other = tmp_path / "other"
    AutoTokenizer.from_pretrained(model).save_pretrained(other)
    size = len(AutoTokenizer.from_pretrained(model))
    BertModel(
        BertConfig(
            vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64,
        )
    ).save_pretrained(other)  # fmt: skip
    with pytest.raises(InputError, match="was trained on another base than"):
        train(other, tmp_path / "a", start=tmp_path / "first")
    (tmp_path / "first" / ADAPTER_FILE).unlink()
    with pytest.raises(InputError, match="does not fit"):
        train(other, tmp_path / "a", start=tmp_path / "first")


def test_language_models_start_from_the_nearest(language_model: Path, tmp_path: Path) -> None:  # noqa: F811
    """One adapter learnt these answers, another one texts of digits."""
    data = language.write(tmp_path / "d.jsonl", language.rows(60))
    digits = language.write(tmp_path / "n.jsonl", [{"text": f"{i} {i + 1} {i + 2}"} for i in range(60)])
    first = language.train(language_model, data, tmp_path / "first", epochs=4)
    language.train(language_model, digits, tmp_path / "digits", epochs=4)
    found = language.train(
        language_model, data, tmp_path / "b", start=[tmp_path / "digits", tmp_path / "first"], epochs=1
    )
    assert found.start is not None
    assert found.start.folder == str(tmp_path / "first")
    assert found.before.nll == pytest.approx(first.after.nll, abs=1e-4)
    assert found.after.nll < found.before.nll + 0.1


def test_on_the_command_line(model: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = make_rows(80)
    pairs = zip(rows.texts, rows.labels or (), strict=True)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    train(model, tmp_path / "first", data=rows, epochs=1)
    call: list[Any] = ["train", "--model", model, "--data", data, "--epochs", 1, "--threads", 1]
    call = [*map(str, call), "--from", str(tmp_path / "first")]
    done = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "a")])
    assert done.exit_code in {0, 1}, done.output
    assert done.stdout.startswith(f"started from {tmp_path / 'first'}\n")
    refused = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "b"), "--rank", "4"])
    assert refused.exit_code == 2
    assert "--rank: with --from the adapter decides this" in refused.stderr
