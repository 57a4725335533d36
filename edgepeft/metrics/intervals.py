"""Intervals and tests of quality numbers: proportions, resampled scores, differences on the same rows and on others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

#: How often rows are drawn again for an interval. The ends of a 95 % interval are then the 25th and 975th of the draws, the least
#: that Efron and Tibshirani (1993, section 13.3) give for percentile intervals.
RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """An estimate with its lower and upper confidence bounds."""

    estimate: float
    lower: float
    upper: float
    confidence: float


def wilson(hits: int, total: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927; two-sided)."""
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"wilson needs 0 <= hits <= total and total > 0, got {hits} of {total}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = hits / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), confidence)


def mcnemar(only_baseline: int, only_candidate: int) -> float:
    """Exact two-sided McNemar p-value (binomial with 1/2 on the discordant rows; McNemar 1947).

    ``only_baseline`` rows were right in the baseline alone, ``only_candidate`` rows in the candidate alone.
    """
    n = only_baseline + only_candidate
    term, tail = 1, 1
    for i in range(min(only_baseline, only_candidate)):
        term = term * (n - i) // (i + 1)  # C(n, i + 1), exact in integers
        tail += term
    return min(1.0, 2 * tail / 2**n)


def paired_drop(baseline: Sequence[bool], candidate: Sequence[bool], confidence: float = 0.95) -> Interval:
    """Accuracy of the baseline minus that of the candidate on the same rows, with an adjusted Wald interval.

    Bonett and Price (2012): one row is added to each discordant count, which keeps the coverage for small counts
    and leaves an honest width where no row differs.
    """
    rows = len(baseline)
    lost = sum(b and not c for b, c in zip(baseline, candidate, strict=True))
    won = sum(c and not b for b, c in zip(baseline, candidate, strict=True))
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p_lost, p_won = (lost + 1) / (rows + 2), (won + 1) / (rows + 2)
    half = z * math.sqrt((p_lost + p_won - (p_lost - p_won) ** 2) / (rows + 2))
    centre = p_lost - p_won
    return Interval((lost - won) / rows, centre - half, centre + half, confidence)


def bootstrap_drop(
    baseline: Sequence[bool],
    candidate: Sequence[bool],
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """As :func:`paired_drop`, by resampling rows (percentile bootstrap: Efron and Tibshirani 1993, chapter 13)."""
    drops = np.asarray(baseline, dtype=np.float64) - np.asarray(candidate, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(0, len(drops), size=(resamples, len(drops)))
    lower, upper = np.quantile(drops[rows].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(drops.mean()), float(lower), float(upper), confidence)


def resampled_rows(rows: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Positions ``[rows]`` drawn with replacement, ``resamples`` times; the same seed gives the same draws, so they pair."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield generator.integers(0, rows, rows)


def percentile_interval(estimate: float, draws: np.ndarray, confidence: float = 0.95) -> Interval:
    """The percentile interval of resampled scores ``[resamples]``; draws that are no numbers (a constant sample) are left out."""
    kept = draws[np.isfinite(draws)]
    if not len(kept) or not math.isfinite(estimate):
        return Interval(estimate, math.nan, math.nan, confidence)
    lower, upper = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(lower), float(upper), confidence)


def newcombe_drop(hits: int, total: int, other_hits: int, other_total: int, confidence: float = 0.95) -> Interval:
    """A proportion minus another on other rows, by Newcombe's hybrid score interval (1998, method 10).

    Args:
        hits: Right rows of the first.
        total: Its rows.
        other_hits: Right rows of the second.
        other_total: Its rows.
        confidence: Of the interval, two-sided.

    Example:
        >>> drop = newcombe_drop(56, 70, 48, 80)
        >>> f"{drop.estimate:.3f} {drop.lower:.4f} {drop.upper:.4f}"
        '0.200 0.0524 0.3339'
    """
    one, other = wilson(hits, total, confidence), wilson(other_hits, other_total, confidence)
    drop = one.estimate - other.estimate
    lower = drop - math.hypot(one.estimate - one.lower, other.upper - other.estimate)
    upper = drop + math.hypot(one.upper - one.estimate, other.estimate - other.lower)
    return Interval(drop, lower, upper, confidence)


def sign_p_value(draws: np.ndarray) -> float:
    """The two-sided p-value of resampled differences: twice the share on the other side of 0 (Efron and Tibshirani, chapter 15).

    One draw is added to both sides, so that no finite number of draws gives 0.
    """
    kept = draws[np.isfinite(draws)]
    if not len(kept):
        return 1.0
    below, above = int((kept <= 0).sum()), int((kept >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (len(kept) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, step by step (Holm 1979): below alpha, the family's error stays below alpha.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def ratio_of_sums(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float | None]:
    """Sum over count, and the standard error of this ratio of two sums over groups (Cochran 1977, section 6.5)."""
    ratio = float(sums.sum() / counts.sum())
    groups = len(sums)
    if groups < 2:
        return ratio, None
    residuals = sums - ratio * counts
    return ratio, float(np.sqrt(groups / (groups - 1) * (residuals**2).sum()) / counts.sum())
