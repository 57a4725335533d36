"""``--general``: rows of other domains are measured too, and have a say in which epoch is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from same_training import assert_same_weights
from test_train import make_rows, model, train  # noqa: F401 - the fixture is this module's too
from test_train_resume import Power, breaking_at

from edgepeft.cli import main
from edgepeft.data import Examples
from edgepeft.errors import DataError
from edgepeft.train import ADAPTER_FILE, loop, resume


def write(path: Path, rows: Examples, labels: dict[str, str] | None = None) -> Path:
    lines = [
        {"text": text, "label": (labels or {}).get(label, label)}
        for text, label in zip(rows.texts, rows.labels or (), strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_another_domain_in_which_it_gets_worse(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """The same texts with each label turned round: what is won on one side is lost on the other, row by row."""
    held = make_rows(80, seed=5)
    turned = write(tmp_path / "turned.jsonl", held, {"up": "down", "down": "up"})
    plain = train(model, tmp_path / "plain", validation=held, epochs=6, patience=None)
    found = train(model, tmp_path / "a", validation=held, epochs=6, patience=None, general=turned)
    assert plain.general is None
    assert found.general is not None
    assert found.general.rows == 80
    for mine, theirs in ((found.before, found.general.before), (found.after, found.general.after)):
        assert mine.accuracy is not None
        assert theirs.accuracy == pytest.approx(1 - mine.accuracy)
    assert found.general.gain.estimate == pytest.approx(-found.gain.estimate)
    # Each epoch's mean over both is that of labels at random; the best for the validation rows alone has no merit here.
    assert (found.after.macro_f1 or 0) + (found.general.after.macro_f1 or 0) <= 1.0 + 1e-9
    assert json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())["general"]["rows"] == 80


def test_the_same_rows_twice_choose_as_once(model: Path, tmp_path: Path) -> None:  # noqa: F811
    held = make_rows(80, seed=5)
    options: dict[str, Any] = {"validation": held, "epochs": 4, "patience": None}
    plain = train(model, tmp_path / "plain", **options)
    found = train(model, tmp_path / "a", **options, general=write(tmp_path / "g.jsonl", held))
    assert (found.best_epoch, found.after) == (plain.best_epoch, plain.after)
    assert found.general.after == found.after
    assert_same_weights(tmp_path / "plain", tmp_path / "a")


def test_it_goes_on_where_it_was(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(resume, "EVERY_S", 0.0)
    options: dict[str, Any] = {"general": write(tmp_path / "g.jsonl", make_rows(40, seed=7)), "patience": None}
    whole = train(model, tmp_path / "whole", **options)
    with monkeypatch.context() as broken:
        broken.setattr(loop, "_bar", breaking_at(13))
        with pytest.raises(Power):
            train(model, tmp_path / "a", **options)
    found = train(model, tmp_path / "a", resume=True, **options)
    assert found.general == whole.general
    assert_same_weights(tmp_path / "whole", tmp_path / "a")


def test_what_is_said_and_refused(model: Path, tmp_path: Path) -> None:  # noqa: F811
    data, held = write(tmp_path / "d.jsonl", make_rows(160)), make_rows(80, seed=5)
    validation = write(tmp_path / "h.jsonl", held)
    turned = write(tmp_path / "turned.jsonl", held, {"up": "down", "down": "up"})
    call = ["train", "--model", str(model), "--data", str(data), "--validation", str(validation), "--threads", "1"]
    call += ["--out", str(tmp_path / "a"), "--epochs", "8", "--learning-rate", "0.01", "--patience", "9"]
    done = CliRunner().invoke(main, [*call, "--general", str(turned)])
    assert done.exit_code in {0, 1}, done.output
    assert f"on 80 rows of {turned}: accuracy " in done.stdout
    with pytest.raises(DataError, match=r"label\(s\) \['left'\] are not among the training labels \['down', 'up'\]"):
        train(model, tmp_path / "b", general=write(tmp_path / "g.jsonl", held, {"up": "left"}))
    done = CliRunner().invoke(main, [*call, "--compare", "lora,ia3", "--general", str(turned)])
    assert done.exit_code == 2
    assert "--general is for the training of one adapter" in done.stderr
