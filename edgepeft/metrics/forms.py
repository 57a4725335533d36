"""The three forms of a metric: a share of right rows, a function of sums over rows, and any function of all rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import Interval, percentile_interval, resampled_rows, wilson


@dataclass(frozen=True)
class Share:
    """The share of rows that are right: Wilson's interval, and McNemar's exact test between two runs of the same rows."""

    #: Of labels and outputs ``[rows, …]``: whether each row is right, ``[rows]``.
    right: Callable[[Any, Any], np.ndarray]

    def estimate(self, labels: Any, outputs: Any) -> float:
        """The score of all rows."""
        return float(np.mean(self.right(labels, outputs)))

    def draws(self, labels: Any, outputs: Any) -> np.ndarray:
        """The score of rows drawn again, ``[resamples]``."""
        right = np.asarray(self.right(labels, outputs), np.float64)
        return np.array([right[rows].mean() for rows in resampled_rows(len(right))])

    def interval(self, labels: Any, outputs: Any, confidence: float, draws: np.ndarray) -> Interval:
        """The score with its interval."""
        right = self.right(labels, outputs)
        return wilson(int(np.sum(right)), len(right), confidence)


@dataclass(frozen=True)
class Sums:
    """A function of sums over rows (a perplexity, an F1 of counts): rows are drawn again without asking the rows anew."""

    #: Of labels and outputs: what each row adds, ``[rows, parts]``.
    parts: Callable[[Any, Any], np.ndarray]
    #: Of the sums ``[parts]``: the score.
    score: Callable[[np.ndarray], float]

    def estimate(self, labels: Any, outputs: Any) -> float:
        """The score of all rows."""
        return float(self.score(np.asarray(self.parts(labels, outputs), np.float64).sum(axis=0)))

    def draws(self, labels: Any, outputs: Any) -> np.ndarray:
        """The score of rows drawn again, ``[resamples]``."""
        parts = np.asarray(self.parts(labels, outputs), np.float64)
        # How often a row was drawn times what it adds: no copy of the rows, which for many of them takes half the time.
        times = (np.bincount(rows, minlength=len(parts)).astype(np.float64) for rows in resampled_rows(len(parts)))
        return np.array([self.score(each @ parts) for each in times])

    def interval(self, labels: Any, outputs: Any, confidence: float, draws: np.ndarray) -> Interval:
        """The score with its interval."""
        return percentile_interval(self.estimate(labels, outputs), draws, confidence)


@dataclass(frozen=True)
class Whole:
    """Any function of all rows."""

    #: Of labels and outputs ``[rows, …]``: the score.
    score: Callable[[Any, Any], float]

    def estimate(self, labels: Any, outputs: Any) -> float:
        """The score of all rows."""
        return float(self.score(labels, outputs))

    def draws(self, labels: Any, outputs: Any) -> np.ndarray:
        """The score of rows drawn again, ``[resamples]``; NaN where a draw has none (one class alone, a constant)."""
        return np.array([self.score(labels[rows], outputs[rows]) for rows in resampled_rows(len(labels))])

    def interval(self, labels: Any, outputs: Any, confidence: float, draws: np.ndarray) -> Interval:
        """The score with its interval."""
        return percentile_interval(self.estimate(labels, outputs), draws, confidence)


Form = Share | Sums | Whole
