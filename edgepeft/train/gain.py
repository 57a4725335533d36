"""What a training run gained over the base, on the same rows: with its interval, and called a gain only beyond it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..metrics.intervals import Interval, paired_drop, percentile_interval, resampled_rows

Verdict = Literal["better", "worse", "no difference shown"]

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gain:
    """A score after training minus the same before it, on the same rows; ``lower`` and ``upper`` are its 95 % interval."""

    metric: str
    better: Literal["higher", "lower"]
    estimate: float
    lower: float
    upper: float

    @property
    def verdict(self) -> Verdict:
        """``better`` or ``worse`` where the interval leaves out 0."""
        if self.lower <= 0 <= self.upper or not np.isfinite([self.lower, self.upper]).all():
            return "no difference shown"
        return "better" if (self.estimate > 0) == (self.better == "higher") else "worse"

    def __str__(self) -> str:
        """As it is printed: change, interval, verdict."""
        return (
            f"{self.metric} {self.estimate:+.3f}, 95 % interval {self.lower:+.3f} to {self.upper:+.3f}: {self.verdict}"
        )


def paired_gain(before: npt.NDArray[np.floating], after: npt.NDArray[np.floating], metric: str) -> Gain:
    """The gain of scores ``[rows]`` of the same rows: shares of right rows (``accuracy``), or errors (``mean_error``)."""
    change = paired_change(before, after, metric)
    return Gain(
        metric,
        "lower" if metric == "mean_error" else "higher",
        change.estimate,
        change.lower,
        change.upper,
    )


def paired_change(before: npt.NDArray[np.floating], after: npt.NDArray[np.floating], metric: str) -> Interval:
    """``after`` minus ``before``, means of ``[rows]``: by Bonett and Price for right rows, else by the paired bootstrap."""
    if metric == "accuracy":
        drop = paired_drop((before > 0.5).tolist(), (after > 0.5).tolist(), _CONFIDENCE)
        return Interval(-drop.estimate, -drop.upper, -drop.lower, _CONFIDENCE)
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    draws = np.array([differences[rows].mean() for rows in resampled_rows(len(differences))])
    return percentile_interval(float(differences.mean()), draws, _CONFIDENCE)


def likelihood_gain(nll: float, standard_error: float | None) -> Gain:
    """The gain of a language model in nats a token; without a standard error nothing is shown."""
    half = float("inf") if standard_error is None else 1.96 * standard_error
    return Gain("nats a token", "lower", nll, nll - half, nll + half)


def majority_warning(right: npt.NDArray[np.floating], train_labels: Sequence[str], held: Sequence[str]) -> str | None:
    """What to say where ``right`` ``[rows]`` is not shown to beat the answer that is most frequent in training."""
    common = Counter(train_labels).most_common(1)[0][0]
    always = np.array([label == common for label in held], dtype=np.float64)
    change = paired_change(always, right, "accuracy")
    if change.lower > 0:
        return None
    return (
        f"on {len(right)} validation rows the adapter (accuracy {right.mean():.3f}) is not shown to be better than always "
        f"answering {common!r} ({always.mean():.3f}): {change.estimate:+.3f}, 95 % interval {change.lower:+.3f} to "
        f"{change.upper:+.3f}. More rows, more epochs or another learning rate may help; so may labels that the texts decide"
    )


def gain_warning(gain: Gain, rows: int) -> str | None:
    """What to say of a gain that is none."""
    if gain.verdict == "better":
        return None
    interval = f"{gain.metric} {gain.estimate:+.3f}, 95 % interval {gain.lower:+.3f} to {gain.upper:+.3f}"
    if gain.verdict == "worse":
        return (
            f"training made it worse than the base ({interval}). The adapter was written all the same; lower the learning rate, "
            "look at the labels, or train on more rows before it is used"
        )
    return (
        f"no gain over the base is shown on {rows} validation rows ({interval}); the change lies within the noise. "
        "More validation rows make the interval narrower"
    )
