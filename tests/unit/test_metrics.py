"""Metrics against the libraries' own corpus scores, and intervals against published examples and by simulation. Seeds are fixed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgepeft.metrics import METRICS, Measured, Scored, compare, measure, measuring
from edgepeft.metrics.intervals import holm, newcombe_drop, percentile_interval, resampled_rows, sign_p_value
from edgepeft.metrics.scores import word_errors


def scored(kind: Any, labels: Any, outputs: Any, variant: str = "fp32") -> Scored:
    return Scored("a", variant, "rows.csv", kind, labels, outputs)


def by_name(found: tuple[Measured, ...]) -> dict[str, Measured]:
    return {each.metric.name: each for each in found}


def lists(*rows: Any) -> np.ndarray:
    found = np.empty(len(rows), dtype=object)
    found[:] = [list(row) for row in rows]
    return found


def classes(rows: int, right: float, seed: int, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities of which a share ``right`` is right."""
    rng = np.random.default_rng(seed)
    expected = rng.integers(0, labels, rows)
    chosen = np.where(rng.random(rows) < right, expected, (expected + 1) % labels)
    outputs = rng.dirichlet(np.ones(labels), rows)
    outputs[np.arange(rows), chosen] += 1
    return expected, outputs / outputs.sum(axis=1, keepdims=True)


def test_classes_equal_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    labels, outputs = classes(300, 0.8, seed=1)
    found, chosen = by_name(measure(scored("label", labels, outputs))), outputs.argmax(axis=1)
    assert found["accuracy"].value == accuracy_score(labels, chosen)
    assert found["macro_f1"].value == pytest.approx(f1_score(labels, chosen, average="macro"), abs=1e-12)
    assert found["mcc"].value == pytest.approx(matthews_corrcoef(labels, chosen), abs=1e-12)
    assert found["accuracy"].metric.method == "Wilson"
    for each in found.values():
        assert each.interval.lower < each.value < each.interval.upper or each.metric.name == "ece"


def test_calibration_error_of_known_confidence() -> None:
    # 100 rows sure by 0.8 of which 60 are right, 100 sure by 0.6 of which 60 are: (0.2 + 0) / 2.
    confidence = np.repeat([0.8, 0.6], 100)
    outputs = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.tile(np.repeat([0, 1], [60, 40]), 2)
    assert by_name(measure(scored("label", labels, outputs)))["ece"].value == pytest.approx(0.1, abs=1e-12)


def test_rows_that_are_not_finite_are_wrong() -> None:
    from sklearn.metrics import matthews_corrcoef

    outputs = np.array([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8], [0.1, 0.9]])
    found = by_name(measure(scored("label", np.array([0, 0, 1, 1]), outputs)))
    assert found["accuracy"].value == 0.75
    assert found["macro_f1"].value == pytest.approx(
        (2 / 3 + 1) / 2
    )  # class 0: recall 1/2; no third class is averaged in
    # As scikit-learn has it with the unanswered row as a class of its own.
    assert found["mcc"].value == pytest.approx(matthews_corrcoef([0, 0, 1, 1], [0, -1, 1, 1]), abs=1e-12)


def test_sets_and_numbers() -> None:
    from scipy.stats import pearsonr, spearmanr

    sets = by_name(measure(scored("labels", np.array([[1, 0], [1, 1]]), np.array([[0.9, 0.2], [0.7, 0.4]]))))
    assert sets["accuracy"].value == 0.5
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(80, 1))
    outputs = labels + rng.normal(size=(80, 1))
    found = by_name(measure(scored("numbers", labels, outputs)))
    assert found["pearson"].value == pytest.approx(pearsonr(labels[:, 0], outputs[:, 0]).statistic, abs=1e-12)
    assert found["spearman"].value == pytest.approx(spearmanr(labels[:, 0], outputs[:, 0]).statistic, abs=1e-12)
    assert found["mean_error"].value == pytest.approx(np.abs(labels - outputs).mean(), abs=1e-12)
    constant = by_name(measure(scored("numbers", labels, np.zeros_like(labels))))
    assert math.isnan(constant["pearson"].value)


def test_rankings_equal_scikit_learn_and_skip_queries_without_an_order() -> None:
    from sklearn.metrics import average_precision_score, ndcg_score

    labels, outputs = lists([2, 0, 1], [0, 0], [1, 0]), lists([0.1, 0.9, 0.5], [0.3, 0.2], [0.8, 0.1])
    found = by_name(measure(scored("ranking", labels, outputs)))
    assert found["ndcg"].value == pytest.approx((ndcg_score([[2, 0, 1]], [[0.1, 0.9, 0.5]]) + 1) / 2)
    assert found["map"].value == pytest.approx((average_precision_score([1, 0, 1], [0.1, 0.9, 0.5]) + 1) / 2)


def test_entities_equal_seqeval() -> None:
    from seqeval.metrics import f1_score

    rng = np.random.default_rng(3)
    tags = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    expected = [[tags[i] for i in rng.integers(0, 5, rng.integers(3, 9))] for _ in range(40)]
    answered = [[t if rng.random() < 0.7 else "O" for t in row] for row in expected]
    found = by_name(measure(scored("tags", lists(*expected), lists(*answered))))
    assert found["entity_f1"].value == pytest.approx(f1_score(expected, answered), abs=1e-12)
    assert found["entity_f1"].interval.lower < found["entity_f1"].value < found["entity_f1"].interval.upper


def test_texts_equal_sacrebleu() -> None:
    from sacrebleu.metrics import CHRF

    references = ["the cat sits", "a dog", "no", "yes it is"]
    answers = ["the cat sat", "a dog ", "yes", "yes it was"]
    found = by_name(measure(scored("text", np.array(references, object), np.array(answers, object))))
    assert found["chrf"].value == pytest.approx(CHRF().corpus_score(answers, [references]).score / 100, abs=1e-12)
    assert found["exact_match"].value == 0.25


def test_word_errors_equal_jiwer_and_a_table_by_hand() -> None:
    import jiwer

    rng = np.random.default_rng(5)
    words = ["the", "cat", "sat", "on", "a", "mat", "."]
    references = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(60)]
    answers = [
        " ".join(w for w in text.split() if rng.random() < 0.8) + " more" * int(rng.integers(0, 2))
        for text in references
    ]
    found = by_name(measure(scored("text", np.array(references, object), np.array(answers, object))))["wer"]
    assert found.value == pytest.approx(jiwer.wer(references, answers), abs=1e-12)
    assert found.interval.lower < found.value < found.interval.upper
    # Of four words one is replaced, one left out; of two none is wrong and three are put in; an empty reference has none.
    by_hand = word_errors(
        np.array(["the cat sat down", "a mat", ""], object),
        np.array(["the dog sat", "a mat and two more", "no"], object),
    )
    assert by_hand.tolist() == [[2, 4], [3, 2], [1, 0]]
    assert found.metric.better == "lower"


def test_likelihoods_and_their_comparison_with_fp32() -> None:
    sums = np.array([[4.0, 2, 0.2, 2], [9.0, 3, 0.3, 2]])
    assert set(by_name(measure(scored("likelihood", np.zeros(2), sums)))) == {"perplexity"}, (
        "fp32 is not compared with itself"
    )
    found = by_name(measure(scored("likelihood", np.zeros(2), sums, "int8")))
    assert found["perplexity"].value == pytest.approx(math.exp(13 / 5))
    assert (found["kl"].value, found["top_token"].value) == pytest.approx((0.1, 0.8))


@pytest.mark.parametrize(("lost", "verdict"), [(20, "worse"), (2, "no difference shown")])
def test_a_point_lost_on_2000_rows_is_found_and_a_tenth_is_not_called(lost: int, verdict: str) -> None:
    labels, outputs = classes(2000, 0.9, seed=4)
    worse = outputs.copy()
    right = np.flatnonzero(outputs.argmax(axis=1) == labels)[:lost]
    worse[right] = np.roll(outputs[right], 1, axis=1)
    runs = [scored("label", labels, outputs), scored("label", labels, worse, "int8")]
    found = {c.metric: c for c in compare([each for run in runs for each in measure(run)], "fp32")}
    accuracy = found["accuracy"]
    assert accuracy.change.estimate == pytest.approx(-lost / 2000)
    assert accuracy.change.lower < -lost / 2000 < accuracy.change.upper
    assert accuracy.verdict() == verdict
    assert accuracy.corrected >= accuracy.p_value
    assert found["macro_f1"].verdict() == verdict
    assert found["macro_f1"].change.lower <= found["macro_f1"].change.estimate <= found["macro_f1"].change.upper


def test_the_same_answers_are_no_difference_in_any_metric() -> None:
    labels, outputs = classes(100, 0.7, seed=5)
    runs = [scored("label", labels, outputs), scored("label", labels, outputs.copy(), "int8")]
    for each in compare([m for run in runs for m in measure(run)], "fp32"):
        assert (each.change.estimate, each.verdict(), each.p_value) == (0, "no difference shown", 1.0)


def test_intervals_equal_published_ones() -> None:
    # Newcombe (1998), table II, cases (a) and (c), method 10.
    first, second = newcombe_drop(56, 70, 48, 80), newcombe_drop(9, 10, 3, 10)
    assert (first.lower, first.upper) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert (second.lower, second.upper) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    # Holm: 3 * 0.01; 2 * 0.03; then not below the step before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_a_bootstrap_interval_covers_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).normal(1.0, 1.0, 60)
        draws = np.array([sample[rows].mean() for rows in resampled_rows(60, resamples=400, seed=seed)])
        interval = percentile_interval(float(sample.mean()), draws)
        covered += interval.lower <= 1.0 <= interval.upper
    assert 180 <= covered <= 199  # 95 % of 200 is 190; the standard error is 3
    assert sign_p_value(np.array([0.1] * 999)) == pytest.approx(2 / 1000)


def test_metrics_whose_package_is_missing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "find_spec", lambda name: None)
    words = lists(["B-PER", "O"], ["O", "O"])
    assert [each.metric.name for each in measure(scored("tags", words, words))] == ["tag_accuracy"]
    assert measuring.missing_extras(["tags", "label"]) == ("entity F1",)


def test_every_kind_has_a_metric_that_needs_nothing_first_but_those_of_order() -> None:
    kinds = {kind for metric in METRICS for kind in metric.kinds}
    first = {kind: next(metric for metric in METRICS if kind in metric.kinds) for kind in kinds}
    assert {kind for kind, metric in first.items() if metric.needs} == {"similarity", "ranking"}
