"""Brier scores, the temperature that mends confidence, and a classifier's calibration before and after training."""

from __future__ import annotations

import numpy as np
import pytest

from edgepeft.metrics.calibration import HIGHEST, LOWEST, brier_scores, calibrating_temperature, probabilities_of
from edgepeft.metrics.scores import calibration_error_of, calibration_gaps
from edgepeft.train.calibration import calibration_of


def drawn(rows: int, temperature: float, seed: int = 0, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from what they say once divided by ``temperature``."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3, (rows, labels))
    chances = probabilities_of(logits, temperature)
    return logits, (chances.cumsum(axis=1) > generator.random((rows, 1))).argmax(axis=1)


def test_brier_scores_by_hand_and_by_scikit_learn() -> None:
    from sklearn.metrics import brier_score_loss

    found = brier_scores(np.array([0, 1, 2]), np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.2, 0.6]]))
    assert found == pytest.approx([0.0, 0.5, 0.24])
    logits, labels = drawn(200, 1.0, labels=2)
    chances = probabilities_of(logits)
    # Of two labels scikit-learn counts one of the two equal squares.
    assert brier_scores(labels, chances).mean() == pytest.approx(2 * brier_score_loss(labels, chances[:, 1]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_with_which_labels_were_drawn_is_found(temperature: float) -> None:
    logits, labels = drawn(20_000, temperature)
    found = calibrating_temperature(labels, logits)
    assert found == pytest.approx(temperature, rel=0.05)  # 20,000 labels leave some 1.5 %

    def likelihood(at: float) -> float:
        return float(np.log(probabilities_of(logits, at)[np.arange(len(labels)), labels]).mean())

    # It is the top: a step to either side is worse.
    assert likelihood(found) > max(likelihood(found * 0.99), likelihood(found * 1.01))


def test_temperatures_have_ends() -> None:
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert calibrating_temperature(np.array([0, 1]), sure) == pytest.approx(LOWEST)
    assert calibrating_temperature(np.array([1, 0]), sure) == pytest.approx(HIGHEST)


def test_what_a_training_did_to_confidence() -> None:
    """Before nothing is known; after, logits are three times too large: surer than right by some tenths, and mended by 3."""
    logits, labels = drawn(1500, 3.0, seed=2)
    found = calibration_of(labels.tolist(), np.zeros((1500, 3)), logits)
    assert found is not None
    chances = probabilities_of(logits)
    assert found.error_after == pytest.approx(calibration_error_of(calibration_gaps(labels, chances).sum(axis=0)))
    assert found.brier_before == pytest.approx(2 / 3)
    assert found.brier_change.estimate == pytest.approx(found.brier_after - found.brier_before)
    assert found.error_change.lower < found.error_change.estimate < found.error_change.upper
    assert found.temperature == pytest.approx(3.0, rel=0.15)  # 1,500 labels leave some 5 %
    assert found.error_after > 0.15
    assert found.error_mended < 0.05  # what 1,500 rows leave of a classifier that is right as often as it says
    assert sum(each.rows for each in found.bins) == 1500
    assert sum(each.rows * abs(each.right - each.confidence) for each in found.bins) / 1500 == pytest.approx(
        found.error_after
    )


def test_labels_in_turns_do_not_mislead_the_halves() -> None:
    """Rows of files often alternate: even and odd ones would be two classes."""
    generator = np.random.default_rng(1)
    labels = np.arange(400) % 2
    logits = generator.normal(0, 1, (400, 2)) + 2 * np.eye(2)[labels]
    found = calibration_of(labels.tolist(), logits, logits)
    assert found is not None
    assert found.error_mended < 0.1
    assert (found.brier_change.estimate, found.error_change.upper) == (0, 0)


def test_where_there_is_nothing_to_tell() -> None:
    logits = np.zeros((4, 2))
    assert calibration_of([0, 1, 0], logits[:3], logits[:3]) is None
    assert calibration_of([0, 1, 0, 1], logits, np.full((4, 2), np.nan)) is None
    assert calibration_of([0, 1, 0, 1], logits, logits) is not None
