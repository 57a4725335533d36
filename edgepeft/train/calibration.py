"""Whether a trained classifier's confidence can be believed, before and after: calibration error, Brier score, temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..metrics.calibration import brier_scores, calibrating_temperature, probabilities_of
from ..metrics.forms import Sums
from ..metrics.intervals import Interval, percentile_interval, resampled_rows
from ..metrics.scores import CALIBRATION_BINS, calibration_error_of, calibration_gaps, class_is_right

_CONFIDENCE = 0.95
_ERROR = Sums(calibration_gaps, calibration_error_of)


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of about one confidence: the mean of it, the share that was right, and how many they are."""

    confidence: float
    right: float
    rows: int


@dataclass(frozen=True)
class Calibration:
    """How far confidence is from being right, on ``rows`` validation rows.

    ``error_before`` and ``error_after`` are expected calibration errors (Guo et al. 2017, 15 bins; having few rows alone makes it
    some hundredths), ``brier_before`` and ``brier_after`` mean Brier scores, 0 to 2; both changes have a paired bootstrap interval
    of 95 %. ``temperature`` is what logits are to be divided by to mend it, above 1 for a classifier too sure of itself, and
    ``error_mended`` the calibration error then: each half of the rows is judged at the temperature of the other half.
    """

    rows: int
    error_before: float
    error_after: float
    error_change: Interval
    brier_before: float
    brier_after: float
    brier_change: Interval
    temperature: float
    error_mended: float
    bins: tuple[ReliabilityBin, ...] = ()


def calibration_of(
    labels: Sequence[int], before: npt.NDArray[np.floating], after: npt.NDArray[np.floating], *, seed: int = 0
) -> Calibration | None:
    """The calibration of one classifier before and after training.

    Args:
        labels: Label ids ``[rows]``.
        before: Its logits ``[rows, labels]``.
        after: The same after training.
        seed: Of the two halves that find a temperature for each other.

    Returns:
        ``None`` where there are fewer than four rows, or logits that are no numbers.

    Example:
        >>> found = calibration_of([0, 1] * 50, np.zeros((100, 2)), np.array([[4.0, 0.0], [0.0, 4.0]] * 50))
        >>> round(found.brier_before, 2), round(found.error_after, 3), found.temperature < 1
        (0.5, 0.018, True)
    """
    ids = np.asarray(labels)
    if len(ids) < 4 or not (np.isfinite(before).all() and np.isfinite(after).all()):
        return None
    chances = {name: probabilities_of(logits) for name, logits in (("before", before), ("after", after))}
    brier = {name: brier_scores(ids, mine) for name, mine in chances.items()}
    moved = brier["after"] - brier["before"]
    draws = np.array([moved[rows].mean() for rows in resampled_rows(len(moved))])
    errors = {name: _ERROR.estimate(ids, mine) for name, mine in chances.items()}
    # Both are drawn with the same rows, so their differences are paired.
    error_draws = _ERROR.draws(ids, chances["after"]) - _ERROR.draws(ids, chances["before"])
    return Calibration(
        rows=len(ids),
        error_before=errors["before"],
        error_after=errors["after"],
        error_change=percentile_interval(errors["after"] - errors["before"], error_draws, _CONFIDENCE),
        brier_before=float(brier["before"].mean()),
        brier_after=float(brier["after"].mean()),
        brier_change=percentile_interval(float(moved.mean()), draws, _CONFIDENCE),
        temperature=calibrating_temperature(ids, after),
        error_mended=_mended(ids, after, seed),
        bins=_bins(ids, chances["after"]),
    )


def _mended(labels: npt.NDArray[np.integer], logits: npt.NDArray[np.floating], seed: int) -> float:
    order = np.random.default_rng(seed).permutation(len(labels))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    mended = np.zeros(logits.shape)
    for mine, other in (halves, halves[::-1]):
        mended[mine] = probabilities_of(logits[mine], calibrating_temperature(labels[other], logits[other]))
    return _ERROR.estimate(labels, mended)


def _bins(labels: npt.NDArray[np.integer], chances: npt.NDArray[np.float64]) -> tuple[ReliabilityBin, ...]:
    confidence, right = chances.max(axis=1), class_is_right(labels, chances)
    of_row = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    return tuple(
        ReliabilityBin(
            float(confidence[of_row == each].mean()), float(right[of_row == each].mean()), int((of_row == each).sum())
        )
        for each in np.unique(of_row)
    )
