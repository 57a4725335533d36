"""``edgepeft tune`` on a tiny BERT: folds, the range test, heads on features, contrast, and a whole search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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
from edgepeft.train.complexity import judge_complexity
from edgepeft.train.expected_gain import ExpectedGain
from edgepeft.train.folds import make_folds
from edgepeft.train.methods import Settings
from edgepeft.train.range_test import choose_rate
from edgepeft.train.source import load_rows
from edgepeft.train.steps import NotFiniteLossError, Run
from edgepeft.train.trials import Candidate, Trial, run_trial, trained
from edgepeft.train.tune import tune
from edgepeft.train.tune_search import Search, clearly_better
from edgepeft.train.tune_stages import contrast_stage, taught_by_contrast
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


@pytest.mark.parametrize("texts", [11, 600], ids=["folds", "one-split"])
def test_rows_of_one_text_stay_on_one_side_of_a_fold(texts: int) -> None:
    """A row that was learnt would judge itself. Where no text comes twice, folds are those without keys."""
    keys = [*range(texts), *range(0, texts, 2), *range(0, texts, 4)]
    targets = [key % 2 if texts > 50 else (key + key // 2) % 2 for key in keys]
    for train, held in make_folds(targets, 1, keys):
        assert sorted(train + held) == list(range(len(keys)))
        assert not {keys[place] for place in train} & {keys[place] for place in held}
        assert {targets[place] for place in train} == {targets[place] for place in held} == {0, 1}
    assert make_folds(targets, 1, range(len(targets))) == make_folds(targets, 1)


def test_a_label_needs_four_different_texts() -> None:
    rows = Examples(("w", "x", "y", "z", "u", "U ", "u", "v", "t"), tuple("aaaabbbbb"))
    with pytest.raises(DataError, match=r"label\(s\) \['b'\] have fewer than 4 distinct rows"):
        load_rows(rows, None, text="text", label="label", pair=None)


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
    late = run_trial(place, head, folds, goes_on=lambda seconds: seconds < 0, **options)
    assert (whole.folds, late.folds) == (8, 1)  # one fold, however late
    assert late.places == tuple(folds[0][1]) != whole.places == tuple(range(24))
    shared = np.array([whole.right[list(whole.places).index(each)] for each in late.places])
    assert late.minus(whole).estimate == pytest.approx((late.right - shared).mean())
    assert whole.minus(late).estimate == pytest.approx(-(late.right - shared).mean())


def in_a_row(right: Any, *, kind: Any = "fine-tune", steps: int = 9, seconds: float = 1.0, folds: int = 1) -> Trial:
    right = np.asarray(right, float)
    candidate = Candidate(Settings(), kind)
    return Trial(candidate, "x", steps, tuple(range(len(right))), right, np.ones(len(right)), seconds, folds)


def test_few_judgements_leave_what_was_measured_elsewhere() -> None:
    """By the formula, with numbers by hand: variance (0 + 4 / 4) / (4 + 4) of four rows that agree."""
    expected = ExpectedGain(0.05, 0.1)
    assert expected.after(np.array([])) == 0.05
    assert expected.after(-np.ones(4)) == pytest.approx((-1 * 4 * 8 + 0.05 * 100) / (4 * 8 + 100))
    assert expected.reversed.after(np.ones(4)) == pytest.approx(-expected.after(-np.ones(4)))
    many = np.tile([-1.0, 0.0, 0.0, 0.0], 1000)
    assert expected.after(many) == pytest.approx(-0.25, abs=0.01)
    assert ExpectedGain(0.05, 0.001).after(many[:40]) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("labels", "gain", "later"),
    [(1, 0.015, 0.015), (7, 0.015, 0.015), (8, 0.05, 0.05), (16, 0.055, 0.055), (64, 0.075, 0.075), (65, 0.075, 0.03)],
)
def test_what_contrast_is_expected_to_gain_depends_on_the_labels(labels: int, gain: float, later: float) -> None:
    asked: list[tuple[ExpectedGain, ExpectedGain]] = []
    search: Any = SimpleNamespace(
        bench=SimpleNamespace(width=384), folds=[([1, 2], [3])], prefer=lambda *given: asked.append(given[-2:])
    )
    assert contrast_stage(search, None, labels) == []
    assert tuple(each.mean for each in asked[0]) == (gain, later)


@pytest.mark.parametrize(
    ("labels", "width", "rows", "steps", "rate"),
    [
        (1, 384, 12, 40, 3e-4),
        (31, 384, 48, 40, 3e-4),
        (32, 384, 48, 12, 1.8e-3),
        (64, 768, 192, 12, 1.1e-3),
        (400, 384, 640, 40, 1.8e-3),
        (9, 384, 1600, 100, 3e-4),  # many labels
        (9000, 384, 14_400, 200, 1.8e-3),
    ],
)
def test_few_labels_have_more_steps_at_a_lower_rate(
    labels: int, width: int, rows: int, steps: int, rate: float
) -> None:
    """The whole rate by hand: 5e-4 (2000 / 384)^0.781 = 1.81e-3, for 768 1.06e-3. Two epochs where that is more."""
    candidate, made = taught_by_contrast("keys", width, labels, rows)
    assert (made, candidate.settings.rate, candidate.settings.method) == (steps, rate, "dora")
    assert taught_by_contrast(None, width, labels, rows)[0].settings.method == "lora"


@pytest.mark.parametrize(("worse_by", "taken"), [(0, True), (3, True), (40, False)])
def test_a_setting_that_is_expected_to_gain_is_taken_unless_judgements_outweigh_it(
    model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    worse_by: int,
    taken: bool,
) -> None:
    from edgepeft.train import trials

    search = Search(bench(model, make_rows(24)), 60.0, 8, 0, 1, lambda message: None)
    places = np.arange(100)
    best = search.best = in_a_row(places < 90, kind="features")
    judged = in_a_row(places >= 10 + worse_by, kind="contrast")
    asked: list[Any] = []

    def run_trial(*_: Any, goes_on: Any, **__: Any) -> Trial:
        asked.append(goes_on)
        return judged

    monkeypatch.setattr(trials, "run_trial", run_trial)
    monkeypatch.setattr(trials, "step_seconds", lambda *_: 1 / 9)
    search.prefer("contrast", judged.candidate, 9, ExpectedGain(0.04, 0.05))
    assert (search.best is not best) == taken
    # Half of a minute is left to others, and a fold more is followed by the training on 24 rows in place of 18: a third more steps,
    # each over all rows.
    assert [asked[0](seconds) for seconds in (0.1, 10, 11.5, 40)] == [True, True, False, False]
    # The winner's training, nine steps on a fold at a ninth of a second, is not there to be used up.
    assert search.time_left() == search.time_left(57) is True
    assert search.time_left(59) is not taken
    search.ends = 0.0
    search.prefer("contrast", judged.candidate, 7, ExpectedGain(0.04, 0.05))
    assert len(asked) == 1
    assert search.left == [f"{judged.candidate.describe()} (7 steps)"]


def test_what_training_on_all_rows_takes(model: Path) -> None:  # noqa: F811
    """Of 64 rows folds have 48: contrast makes a third more steps, of 32 rows in place of 24; fine-tuning those of eight."""
    search = Search(bench(model, make_rows(64)), 60.0, 8, 0, 1, lambda message: None)
    assert len(search.folds[0][0]) == 48
    assert search.whole("contrast") == pytest.approx(4 / 3 * 32 / 24)
    assert search.whole("fine-tune") == pytest.approx(4 / 3)


@pytest.mark.parametrize(("step_s", "steps"), [(0.1, 40), (1.0, 19), (1.4, 13), (1.6, None), (100.0, None)])
def test_a_setting_gets_the_steps_that_there_is_time_for(
    model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    step_s: float,
    steps: int | None,
) -> None:
    """Of a minute nine tenths; on all rows a third more steps with a third more rows in each: 54 / (1 + 16 / 9) / step_s."""
    from edgepeft.train import trials

    search = Search(bench(model, make_rows(24)), 60.0, 8, 0, 1, lambda message: None)
    asked: list[int] = []
    settings = Settings(learning_rate=1e-3)

    def run_trial(_: Any, candidate: Candidate, *__: Any, steps: int, **___: Any) -> Trial:
        asked.append(steps)
        assert candidate.settings.rate == pytest.approx(1e-3 * 40 / steps, rel=0.05)  # two digits of it
        return in_a_row([1.0], kind="contrast", steps=steps)

    monkeypatch.setattr(trials, "run_trial", run_trial)
    monkeypatch.setattr(trials, "step_seconds", lambda *_: step_s)
    search.prefer("contrast", Candidate(settings, "contrast"), 40, ExpectedGain(0.04, 0.05))
    assert asked == ([] if steps is None else [steps])
    assert len(search.left) == (steps is None)
    assert (search.best is None) == (steps is None)
    late = Search(search.bench, 0.0, 8, 0, 1, lambda message: None)
    late.prefer("contrast", Candidate(settings, "contrast"), 40, ExpectedGain(0.04, 0.05))
    assert len(late.left) == 1
    assert late.trials == []


@pytest.mark.parametrize(
    ("better_by", "kind", "taken"), [(10, "fine-tune", False), (25, "fine-tune", True), (10, "contrast", True)]
)
def test_what_comes_later_has_to_overcome_what_was_expected(
    model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    better_by: int,
    kind: str,
    taken: bool,
) -> None:
    """Ten of 100 rows more are enough among settings of a kind, not against what gained elsewhere."""
    from edgepeft.train import trials

    search = Search(bench(model, make_rows(24)), 60.0, 8, 0, 1, lambda message: None)
    places = np.arange(100)
    tried = iter([in_a_row(places < 60, kind="contrast"), in_a_row(places >= 40 - better_by, kind=kind)])
    monkeypatch.setattr(trials, "run_trial", lambda *_, **__: next(tried))
    monkeypatch.setattr(trials, "step_seconds", lambda *_: 0.1)
    search.prefer("contrast", Candidate(Settings(), "contrast"), 9, ExpectedGain(0.04, 0.05))
    first = search.best
    search.stage("learning rate", [Candidate(Settings(), kind)])  # type: ignore[arg-type] # one of its kinds
    assert (search.best is not first) == taken


@pytest.mark.parametrize(("later", "taken"), [(None, False), (ExpectedGain(0.0, 0.05), True)])
def test_what_comes_later_may_have_less_to_overcome(
    model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    later: ExpectedGain | None,
    taken: bool,
) -> None:
    """Ten of 100 rows more, as above; and what is of the kind of contrast is tried with its steps, also in a first round."""
    from edgepeft.train import trials

    search = Search(bench(model, make_rows(24)), 60.0, 8, 0, 1, lambda message: None)
    places = np.arange(100)
    steps: list[int] = []

    def run_trial(_: Any, candidate: Candidate, *__: Any, **given: Any) -> Trial:
        steps.append(given["steps"])
        return in_a_row(places >= 30 if candidate.kind == "fine-tune" else places < 60, kind=candidate.kind)

    monkeypatch.setattr(trials, "run_trial", run_trial)
    monkeypatch.setattr(trials, "step_seconds", lambda *_: 0.1)
    search.prefer("contrast", Candidate(Settings(), "contrast"), 9, ExpectedGain(0.04, 0.05), later)
    first = search.best
    search.stage("learning rate", [Candidate(Settings())])
    assert (search.best is not first) == taken
    search.stage("rank", [Candidate(Settings(rank=rank), "contrast") for rank in (1, 2, 3)])
    assert steps == [9, search.steps, 3, 3, 3, 9, 9]
    assert [trial.first_round for trial in search.trials] == [False, False, True, True, True, False, False]


def test_of_settings_that_are_alike_the_first_wins(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """In a first round the last one looks best; with all steps a row of a hundred does not tell."""
    from edgepeft.train import trials

    search = Search(bench(model, make_rows(24)), 60.0, 8, 0, 1, lambda message: None)
    places = np.arange(100)
    first_round = {1e-4: places < 60, 1e-3: places < 50, 1e-2: places < 70}
    whole = {1e-4: places < 60, 1e-2: (places < 56) | (places >= 95)}  # five won, four lost

    def run_trial(_: Any, candidate: Candidate, *__: Any, steps: int, **___: Any) -> Trial:
        rate = candidate.settings.rate
        right = first_round[rate] if steps == search.short else whole[rate]
        return replace(in_a_row(right, steps=steps), candidate=candidate)

    monkeypatch.setattr(trials, "run_trial", run_trial)
    search.stage("learning rate", [Candidate(Settings(learning_rate=rate)) for rate in first_round])
    assert [trial.candidate.settings.rate for trial in search.trials] == [1e-4, 1e-3, 1e-2, 1e-4, 1e-2]
    assert search.best is search.trials[3]


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
    assert all((row["steps"] == 0) == row["what"].startswith("head on frozen features") for row in record["tuning"])
    assert record["arguments"]["chosen"] == found.chosen
    export(model, {"mine": tmp_path / "a"}, tmp_path / "b")
    answers = runtime.open(tmp_path / "b").adapter("mine").predict(list(held.texts))
    right = sum(answer.label == label for answer, label in zip(answers, held.labels or (), strict=True))
    # float32 against float32 of another order: a row within 1e-6 of even may fall to either side.
    assert abs(right - found.adapter.after.accuracy * 60) <= 1


def test_what_settings_add_to_a_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Counted by hand over two blocks: a rank costs 1, a slot 10, a gain 100 more."""
    from edgepeft.targets import load_target
    from edgepeft.train import tune_cost
    from edgepeft.train.allocation import SiteCost

    asked: list[Any] = []

    def costs(widths: Any, target: Any, *, gain: bool) -> Any:
        asked.append((list(widths), gain))
        return {pair: SiteCost(1.0, 110.0 if gain else 10.0) for pair in asked[-1][0]}

    monkeypatch.setattr(tune_cost, "measure_rank_costs", costs)
    mine = tune_cost.TargetCosts(bench(model, make_rows(40)), load_target("linux-x64-cpu"), 0)
    attention = ("query", "value")
    assert mine.of(Candidate(Settings(rank=8, targets=attention))) == 4 * 18
    assert asked == [([(32, 32)], False)]
    assert mine.of(Candidate(Settings(rank=2, targets="all-linear"))) == 13 * 12
    assert asked[1:] == [([(32, 64), (64, 32)], False)]  # what is known is not measured again
    assert mine.of(Candidate(Settings("dora", rank=8, targets=attention))) == 4 * 118
    assert mine.of(Candidate(Settings("ln"))) == mine.of(Candidate(Settings("head-only"), "features")) == 0
    assert len(asked) == 3


class Costs:
    """Each rank costs a millisecond."""

    target = type("Target", (), {"name": "mine"})

    def of(self, candidate: Candidate) -> float:
        return float(candidate.settings.rank)


def test_of_settings_that_are_alike_the_cheapest_is_taken(model: Path) -> None:  # noqa: F811
    from edgepeft.train.tune_cost import prefer_cheaper

    def trial(right: list[float], rank: int, *, first_round: bool = False) -> Trial:
        made = in_a_row(right)
        return replace(made, candidate=Candidate(Settings(rank=rank)), first_round=first_round)

    trials = [
        trial([1.0] * 62 + [0.0] * 38, 32),
        trial([0.0] * 5 + [1.0] * 61 + [0.0] * 34, 8),  # four rows won, five lost: alike
        trial([0.0] * 30 + [1.0] * 32 + [0.0] * 38, 2),  # clearly worse
        trial([1.0] * 62 + [0.0] * 38, 1, first_round=True),
    ]
    found = Search(bench(model, make_rows(24)), 60.0, 8, 0, 1, lambda message: None)
    found.trials, found.best = trials, trials[0]
    said = prefer_cheaper(found, Costs())  # type: ignore[arg-type] # as much of them as is asked
    assert found.best is trials[1]
    assert said is not None
    assert "it adds 8.000 ms to a run on mine, the least of 2 settings that are alike" in said
    assert "accuracy 0.620, adds 32.000 ms" in said


def test_a_cheaper_setting_than_one_that_is_expected_to_gain_has_to_overcome_that(
    model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A head that costs less is as good on 20 rows, which does not outweigh that more was expected of the other."""
    from edgepeft.train import trials
    from edgepeft.train.tune_cost import prefer_cheaper

    search = Search(bench(model, make_rows(24)), 60.0, 8, 0, 1, lambda message: None)
    right = np.arange(20) < 15
    head = replace(in_a_row(right, kind="features", steps=40), candidate=Candidate(Settings(rank=1), "features"))
    taught = replace(in_a_row(right, kind="contrast", steps=12), candidate=Candidate(Settings(rank=8), "contrast"))
    monkeypatch.setattr(trials, "run_trial", lambda *_, **__: taught)
    monkeypatch.setattr(trials, "step_seconds", lambda *_: 0.1)
    for gain, wins in ((0.05, "contrast"), (-0.05, "features")):
        search.trials, search.best = [head], head
        search.prefer("contrast", taught.candidate, 12, ExpectedGain(abs(gain), 0.05))
        assert search.best.candidate.kind == "contrast"
        search._expected = ExpectedGain(gain, 0.05)
        prefer_cheaper(search, Costs())  # type: ignore[arg-type] # as much of them as is asked
        assert search.best.candidate.kind == wins


def test_what_was_expected_of_one_is_not_expected_of_what_beat_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from edgepeft.train import trials

    search = Search(bench(model, make_rows(24)), 60.0, 8, 0, 1, lambda message: None)
    places = np.arange(100)
    tried = iter(
        [in_a_row(places < 50, kind="contrast"), in_a_row(places < 90), in_a_row(places < 92, kind="contrast")]
    )
    monkeypatch.setattr(trials, "run_trial", lambda *_, **__: next(tried))
    monkeypatch.setattr(trials, "step_seconds", lambda *_: 0.1)
    search.prefer("contrast", Candidate(Settings(), "contrast"), 9, ExpectedGain(0.2, 0.01))
    search.stage("learning rate", [Candidate(Settings())])
    assert search.best is not None
    assert search.best.candidate.kind == "contrast"  # a fifth more was expected, and is not outweighed
    search._expected = ExpectedGain(0.05, 0.05)
    tried = iter([in_a_row(places < 90), in_a_row(places < 92, kind="contrast")])
    search.stage("learning rate", [Candidate(Settings())])
    assert search.best.candidate.kind == "fine-tune"
    search.stage("method", [Candidate(Settings(), "contrast")])
    assert search.best.accuracy == 0.92  # two rows more and none less


def test_tune_for_a_target(model: Path, tmp_path: Path) -> None:  # noqa: F811
    from edgepeft.targets import load_target

    here = load_target("linux-x64-cpu")
    if here.here() is not None:
        pytest.skip("milliseconds of this machine")
    found = tune(model, make_rows(24), tmp_path / "a", budget_s=2, threads=1, target=here)
    assert all(row.added_ms is not None and row.added_ms >= 0 for row in found.tried)
    assert "ms to a run on linux-x64-cpu" in found.why
    record = json.loads((tmp_path / "a" / ADAPTER_FILE).read_text())
    assert record["arguments"]["target"] == "linux-x64-cpu"
    assert [row["added_ms"] for row in record["tuning"]] == [row.added_ms for row in found.tried]
    with pytest.raises(InputError, match="milliseconds of web-wasm: it is executed by web"):
        tune(model, make_rows(24), tmp_path / "b", target=load_target("web-wasm"))


def test_losses_that_are_no_numbers_lose(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever takes steps fails; the head on frozen features takes none. Where even that fails at the end, it is said."""

    def no_number(*_: Any) -> Any:
        raise NotFiniteLossError("the training loss became nan at step 1")

    monkeypatch.setattr(Run, "advance", no_number)
    monkeypatch.setattr("edgepeft.train.folds._MOST_TRAININGS", 4)
    monkeypatch.setattr("edgepeft.train.tune.contrast_stage", lambda *_: [])  # two candidates are enough
    monkeypatch.setattr(
        "edgepeft.train.tune.wider_stages",
        lambda search, *_: search.stage("learning rate", [Candidate(Settings(learning_rate=r)) for r in (1e-3, 1e-2)]),
    )
    found = tune(model, make_rows(16), tmp_path / "a", budget_s=600, threads=1)
    assert found.chosen.startswith("head on frozen features")
    lost = [row for row in found.tried if "frozen features" not in row.what]
    assert len(lost) == 2
    assert {(row.accuracy.estimate, row.loss) for row in lost} == {(0.0, float("inf"))}
    monkeypatch.setattr("edgepeft.train.trials.trained", no_number)
    with pytest.raises(InputError, match=r"head on frozen features.*the best that was tried: .* became nan at step 1"):
        tune(model, make_rows(16), tmp_path / "b", budget_s=0.1, threads=1)
    assert not (tmp_path / "b").exists()


def test_memory_that_runs_out_in_a_search_says_what_to_lower(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Run, "advance", full)
    monkeypatch.setattr("edgepeft.train.folds._MOST_TRAININGS", 4)
    monkeypatch.setattr("edgepeft.train.tune.frozen_stage", lambda *_: [])  # takes no steps
    for call in (lambda: tune(model, make_rows(16), tmp_path / "a"), lambda: judge_complexity(model, make_rows(16))):
        with pytest.raises(
            InputError, match=r"memory ran out in training .* Lower --batch-size \(16\) or --max-length"
        ):
            call()


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
    assert "What was tried, out of fold: the chosen one on " in done.stdout
    assert "not tried within the budget" in done.stdout
    assert "frozen features" in done.stdout
    assert (tmp_path / "a" / "adapter_config.json").is_file()
    assert CliRunner().invoke(main, [*call, "--budget", "soon"]).exit_code == 2
    assert CliRunner().invoke(main, [*call, "--target", "android-qnn"]).exit_code == 2
    assert CliRunner().invoke(main, [*call, "--target", "no-such"]).exit_code == 2


def test_what_a_search_refuses(tmp_path: Path) -> None:
    assert (parse_seconds("90s"), parse_seconds("1.5 min"), parse_seconds("2h"), parse_seconds("5")) == (
        90,
        90,
        7200,
        5,
    )
    with pytest.raises(InputError, match="expected a time"):
        parse_seconds("0")
    with pytest.raises(DataError, match=r"label\(s\) \['y'\] have fewer than 4 distinct rows"):
        tune("none", Examples(tuple("abcdefgh"), (*"xxxxx", *"yyy")), tmp_path / "a")
    with pytest.raises(DataError, match="have the label 'x'"):
        tune("none", Examples(tuple("abcd"), tuple("xxxx")), tmp_path / "a")


def test_contrast_where_keys_are_no_layer_of_their_own(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ModernBERT makes queries, keys and values at once: LoRA takes the place of DoRA from even attention."""
    import torch
    from transformers import AutoTokenizer, ModernBertConfig, ModernBertModel

    base, rows = tmp_path / "base", make_rows(16)
    words = AutoTokenizer.from_pretrained(model)
    words.save_pretrained(base)
    config = ModernBertConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.cls_token_id,
        eos_token_id=words.sep_token_id,
        cls_token_id=words.cls_token_id,
        sep_token_id=words.sep_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ModernBertModel(config).save_pretrained(base)
    monkeypatch.setattr("edgepeft.train.folds._MOST_TRAININGS", 4)
    monkeypatch.setattr("edgepeft.train.tune.wider_stages", lambda *_: None)
    said: list[str] = []
    found = tune(base, rows, tmp_path / "a", budget_s=600, threads=1, announce=said.append)
    assert not [warning for warning in found.warnings if "was not tried" in warning]
    taught = [row.what for row in found.tried if row.stage == "contrast"]
    assert len(taught) == 1
    assert taught[0].startswith("contrast, then head: lora r=8 all-linear")
    assert not any("even attention" in row.what for row in found.tried)
    assert any(line.startswith("contrast: ") for line in said)
    assert "contrast" in found.chosen or "features" in found.chosen
    assert found.adapter.labels == ("down", "up")
