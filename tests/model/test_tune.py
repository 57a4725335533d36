"""``edgepeft tune`` on a tiny BERT: folds, the range test, heads on features, contrast, and a whole search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_train import make_rows, model, tensors  # noqa: F401 - the fixture is this module's too

from edgepeft.cli import main
from edgepeft.cli.tune import parse_seconds
from edgepeft.data import Examples
from edgepeft.errors import DataError, InputError
from edgepeft.train import ADAPTER_FILE
from edgepeft.train.methods import Settings
from edgepeft.train.range_test import choose_rate
from edgepeft.train.source import load_rows
from edgepeft.train.trials import Candidate, Trial, make_folds, run_trial, trained
from edgepeft.train.tune import tune
from edgepeft.train.tune_search import Search, clearly_better
from edgepeft.train.workbench import open_workbench


def bench(folder: Path, rows: Examples) -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(3)
        return open_workbench(folder, load_rows(rows, None, text="text", label="label", pair=None), None)


def test_folds_hold_every_label_on_both_sides() -> None:
    targets = [0] * 12 + [1] * 6 + [2] * 4
    folds = make_folds(targets, seed=1)
    assert len(folds) == 2 * 4  # 22 rows: four folds, twice
    for train, held in folds:
        assert sorted(train + held) == list(range(22))
        assert {targets[i] for i in train} == {targets[i] for i in held} == {0, 1, 2}
    assert np.unique([i for _, held in folds for i in held], return_counts=True)[1].tolist() == [2] * 22
    assert make_folds(targets, seed=1) == folds != make_folds(targets, seed=2)
    ((train, held),) = make_folds([0, 1] * 500, seed=0)
    assert (len(train), len(held)) == (800, 200)
    assert sum(place % 2 for place in held) == 100


def test_a_rate_from_a_range_test() -> None:
    """A loss that falls fastest at 1e-3, is smallest at 1e-2 and rises after it."""
    rates = np.logspace(-5, -1, 41)
    losses = 1 - 0.5 / (1 + np.exp(-6 * (np.log10(rates) + 3))) + 20 * np.maximum(0, np.log10(rates) + 2)
    assert choose_rate(rates.tolist(), losses.tolist()) == pytest.approx(1e-2 / 3, rel=0.2)
    assert choose_rate([1e-5, 2e-5], [1.0, 1.0]) == 1e-5


def test_a_head_on_frozen_features_is_logistic_regression(model: Path) -> None:  # noqa: F811
    """Against scikit-learn on features taken with transformers alone."""
    import torch
    from sklearn.linear_model import LogisticRegression

    rows = make_rows(60)
    place = bench(model, rows)
    candidate = Candidate(Settings(), "features", 1.0)
    run = trained(place, candidate, place.rows, 1, 16, 0, 1)
    with run:
        logits, _ = run.evaluate(place.rows)
    encoder = place.base.model.base_model
    with torch.no_grad():
        inputs = place.base.tokenizer(list(rows.texts), padding=True, return_tensors="pt")
        found = encoder(**inputs).pooler_output.double().numpy()
    scaled = (found - found.mean(axis=0)) / (found.std(axis=0) + 1e-6)
    solver = LogisticRegression(C=1.0, max_iter=1000).fit(scaled, [row.target for row in place.rows])
    # float32 features, and weights divided by small spreads.
    assert logits[:, 1] - logits[:, 0] == pytest.approx(solver.decision_function(scaled), abs=1e-3)


def test_trials_are_judged_on_rows_they_did_not_learn(model: Path) -> None:  # noqa: F811
    """Random labels: what learns them by heart is right half the time out of fold."""
    generator = np.random.default_rng(0)
    rows = make_rows(600)  # one split
    noise = Examples(rows.texts, tuple(str(label) for label in generator.permutation([0, 1] * 300)))
    place = bench(model, noise)
    folds = make_folds([row.target for row in place.rows], 0)
    trial = run_trial(
        place, Candidate(Settings(learning_rate=1e-2)), folds, stage="x", steps=60, batch_size=16, seed=0, threads=1
    )
    assert len(trial.right) == 120
    # Of 120 rows, a share of 0.5 has a standard error of 0.046.
    assert 0.3 < trial.accuracy < 0.7


def test_a_setting_is_taken_only_where_it_is_better_than_chance() -> None:
    def trial(right: list[float]) -> Trial:
        return Trial(Candidate(Settings()), "x", 1, tuple(range(100)), np.array(right), np.zeros(len(right)), 1.0, 1)

    best = trial([1.0] * 50 + [0.0] * 50)
    assert clearly_better(trial([1.0] * 60 + [0.0] * 40), best)
    assert not clearly_better(best, best)
    assert not clearly_better(trial([0.0] * 30 + [1.0] * 51 + [0.0] * 19), best)


def test_trials_are_compared_on_the_rows_that_both_were_judged_on(model: Path) -> None:  # noqa: F811
    place = bench(model, make_rows(24))
    folds = make_folds([row.target for row in place.rows], 0)
    head = Candidate(Settings("head-only"), "features", 0.1)
    options: dict[str, Any] = {"stage": "x", "steps": 1, "batch_size": 8, "seed": 0, "threads": 1}
    whole = run_trial(place, head, folds, **options)
    late = run_trial(place, head, folds, until=0.0, **options)
    assert (whole.folds, late.folds) == (8, 1)  # one fold, however late
    assert late.places == tuple(folds[0][1]) != whole.places == tuple(range(24))
    shared = np.array([whole.right[list(whole.places).index(each)] for each in late.places])
    assert late.minus(whole).estimate == pytest.approx((late.right - shared).mean())
    assert whole.minus(late).estimate == pytest.approx(-(late.right - shared).mean())


@pytest.mark.parametrize(("worse_by", "taken"), [(0, True), (4, True), (40, False)])
def test_a_preferred_setting_is_taken_unless_it_is_shown_to_be_worse(
    model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    worse_by: int,
    taken: bool,
) -> None:
    from edgepeft.train import trials

    search = Search(bench(model, make_rows(24)), 60.0, 8, 0, 1, lambda message: None)
    places = np.arange(100)
    best = Trial(Candidate(Settings()), "x", 1, tuple(range(100)), (places < 90) * 1.0, np.ones(100), 1.0, 1)
    search.best = best
    untimely: list[float] = []

    def judged(*_: Any, until: float, **__: Any) -> Trial:
        untimely.append(until)
        right = (places >= 10 + worse_by) * 1.0
        return Trial(Candidate(Settings("dora")), "y", 1, best.places, right, np.ones(100), 1.0, 1)

    monkeypatch.setattr(trials, "run_trial", judged)
    search.prefer("few labels", Candidate(Settings("dora")), 1)
    assert (search.best is not best) == taken
    assert search.ends - 60 < untimely[0] < search.ends - 29  # half of the time is left to others
    search.ends = 0.0
    search.prefer("few labels", Candidate(Settings("dora")), 7)
    assert len(untimely) == 1
    assert search.left == [f"{Settings('dora').describe()} (7 steps)"]


@pytest.mark.parametrize("few", [True, False], ids=["8-a-class", "enough"])
def test_a_search_ends_with_an_adapter(model: Path, tmp_path: Path, few: bool) -> None:  # noqa: F811
    from edgepeft import runtime
    from edgepeft.pipeline import export

    rows, held = make_rows(16 if few else 520), make_rows(60, seed=5)
    found = tune(model, rows, tmp_path / "a", budget_s=4 if few else 6, threads=1, validation=held)
    stages = [row.stage for row in found.tried]
    assert stages[0] == "frozen features"
    assert "learning rate" in stages or found.left
    assert sum(row.change is None for row in found.tried) == 1
    assert found.adapter.validation_rows == 60
    record = json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())
    assert [row["what"] for row in record["tuning"]] == [row.what for row in found.tried]
    assert record["arguments"]["chosen"] == found.chosen
    export(model, {"mine": tmp_path / "a"}, tmp_path / "b")
    answers = runtime.open(tmp_path / "b").adapter("mine").predict(list(held.texts))
    right = sum(answer.label == label for answer, label in zip(answers, held.labels or (), strict=True))
    # float32 against float32 of another order: a row within 1e-6 of even may fall to either side.
    assert abs(right - found.adapter.after.accuracy * 60) <= 1


def test_tune_on_the_command_line(model: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = make_rows(24)
    pairs = zip(rows.texts, rows.labels or (), strict=True)
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs)
    )
    call = [
        "tune",
        "--model",
        str(model),
        "--data",
        str(tmp_path / "d.jsonl"),
        "--threads",
        "1",
        "--out",
        str(tmp_path / "a"),
    ]
    done = CliRunner().invoke(main, [*call, "--budget", "1s"])
    assert done.exit_code in {0, 1}, done.output
    assert "What was tried" in done.stdout
    assert "not tried within the budget" in done.stdout
    assert "frozen features" in done.stdout
    assert (tmp_path / "a" / "adapter_config.json").is_file()
    assert CliRunner().invoke(main, [*call, "--budget", "soon"]).exit_code == 2


def test_what_a_search_refuses(tmp_path: Path) -> None:
    assert (parse_seconds("90s"), parse_seconds("1.5 min"), parse_seconds("2h"), parse_seconds("5")) == (
        90,
        90,
        7200,
        5,
    )
    with pytest.raises(InputError, match="expected a time"):
        parse_seconds("0")
    with pytest.raises(DataError, match=r"label\(s\) \['y'\] have fewer than 4 rows"):
        tune("none", Examples(tuple("abcdefgh"), (*"xxxxx", *"yyy")), tmp_path / "a")
    with pytest.raises(DataError, match="have the label 'x'"):
        tune("none", Examples(tuple("abcd"), tuple("xxxx")), tmp_path / "a")
