"""The statistics of a comparison: intervals and verdicts, without scipy.

Throughout, the unit of replication is the fresh process (or the A B B A block of processes), never the iteration:
iterations within one process share its memory layout, its clock and its neighbours, so they are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median, variance

import numpy as np

from ..metrics.intervals import Interval, bootstrap_drop, mcnemar, paired_drop, wilson
from ..report.gate import Verdict
from ..report.gate import judge as judge_bounds

__all__ = [
    "MIN_SAMPLES",
    "Interval",
    "Trimmed",
    "baseline_weight",
    "bootstrap_drop",
    "judge",
    "looks",
    "mcnemar",
    "paired_drop",
    "percentile",
    "ratio_bounds",
    "rounds_needed",
    "session_bounds",
    "session_limit",
    "spent",
    "t_interval",
    "t_quantile",
    "t_tail",
    "trimmed",
    "wilson",
]

#: Samples below which a percentile is not stated. The median from 6: only then does the range of the sample cover the
#: true median with 95 % (1 - 2 * 0.5**n). The tails: about five, and one, samples beyond the value.
MIN_SAMPLES = {50: 6, 95: 100, 99: 1000}


def percentile(samples: Sequence[float], q: int) -> float | None:
    """The ``q``-th percentile (linear interpolation), or ``None`` where the sample cannot support it."""
    if len(samples) < MIN_SAMPLES[q]:
        return None
    return float(np.percentile(np.asarray(samples, dtype=np.float64), q))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method (DLMF 3.10)."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + term / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            return value
    raise ArithmeticError(f"incomplete beta did not converge for a={a}, b={b}, x={x}")


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function I_x(a, b); ``rest`` is 1 - x, which a caller may know more exactly."""
    if x <= 0.0 or rest <= 0.0:
        return 0.0 if x <= 0.0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest))
    # The fraction converges fast on this side only; the symmetry I_x(a, b) = 1 - I_{1-x}(b, a) gives the other.
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, rest) / b


def t_tail(t: float, df: float) -> float:
    """P(T > t) for Student's t with ``df`` degrees of freedom, ``t >= 0`` (DLMF 8.17; Abramowitz and Stegun 26.7.1)."""
    whole = df + t * t
    return 0.5 * _incomplete_beta(df / 2, 0.5, df / whole, t * t / whole)


@lru_cache(maxsize=4096)
def t_quantile(tail: float, df: float) -> float:
    """The t that leaves ``tail`` (0 < tail < 0.5) above it: the inverse of :func:`t_tail`, by bisection to 1e-12."""
    if not 0.0 < tail < 0.5 or df <= 0:
        raise ValueError(f"t_quantile needs 0 < tail < 0.5 and df > 0, got tail={tail}, df={df}")
    low, high = 0.0, 2.0
    while t_tail(high, df) > tail:
        low, high = high, high * 2.0
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if t_tail(middle, df) > tail else (low, middle)
    return 0.5 * (low + high)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of a mean (two-sided; needs two values)."""
    mean, tail = fmean(values), (1.0 - confidence) / 2.0
    half = t_quantile(tail, len(values) - 1) * math.sqrt(variance(values) / len(values))
    return Interval(mean, mean - half, mean + half, confidence)


def spent(alpha: float, look: int) -> float:
    """The part of ``alpha`` that the ``look``-th look at growing data (1-based) may spend.

    ``alpha / (k (k + 1))`` sums to ``alpha`` over all looks, so by the union bound a comparison that stops as soon as
    it is decided keeps its error rate however many rounds it takes (alpha spending: Lan and DeMets 1983).
    """
    return alpha / (look * (look + 1))


def looks(first: int, last: int) -> tuple[int, ...]:
    """The rounds after which a comparison is judged: ``first``, then each half as many again, and ``last``.

    Fewer looks than rounds, because each look spends some of the error rate.
    """
    rounds = [first]
    while rounds[-1] < last:
        rounds.append(min(last, rounds[-1] + (rounds[-1] + 1) // 2))
    return tuple(rounds)


def ratio_bounds(log_ratios: Sequence[float], *, cases: int, look: int = 1, confidence: float = 0.95) -> Interval:
    """Bounds on the mean of paired log-ratios, for one of ``cases`` cases at the ``look``-th look.

    The two bounds are one-sided statements. A check *fails* when any case does, so the lower bound is Bonferroni
    corrected for the number of cases. It *passes* only when every case does, which needs no correction (the
    intersection-union test: Berger 1982), so the upper bound has none. Both are corrected for repeated looks.
    """
    mean = fmean(log_ratios)
    error = math.sqrt(variance(log_ratios) / len(log_ratios))
    return _bounds(mean, error, len(log_ratios) - 1, cases=cases, look=look, confidence=confidence)


def session_bounds(
    baseline: Sequence[Sequence[float]],
    sessions: Sequence[Sequence[float]],
    *,
    drift: float,
    cases: int,
    look: int = 1,
    confidence: float = 0.95,
) -> Interval:
    """As :func:`ratio_bounds`, for the logs of saved sessions and of several sessions of the candidate.

    Processes of one session share the state of the machine, so sessions are the draws, those of the baseline too. They are taken
    to differ by ``drift`` (a standard deviation in log units), or by what they do where that is more. Means are trimmed
    (:func:`trimmed`), since bursts of other work are far from all else. Of several saved sessions the median is the baseline, whose
    variance is pi / 2 times a mean's; of one it is the mean of its processes, with their noise. Degrees of freedom are
    Satterthwaite's; an assumed drift has no sampling error.

    Args:
        baseline: Log medians of the saved processes by session: one of at least two processes, or several.
        sessions: Log medians of the candidate's processes by session, at least two sessions.
        drift: The least standard deviation between sessions.
        cases: How many cases are judged together.
        look: The how manieth look at growing data this is.
        confidence: Of the interval.
    """
    after = trimmed([fmean(session) for session in sessions])
    spread, freedom = after.error**2 * len(sessions), after.df
    noise = squares = 0.0
    if len(baseline) == 1:
        before = trimmed(baseline[0])
        centre, noise = before.estimate, before.error**2
        squares = noise**2 / before.df
    else:
        means = [fmean(session) for session in baseline]
        centre, more = median(means), len(means) - 1
        spread = (spread * freedom + variance(means) * more) / (freedom + more)
        freedom += more
    between = max(drift**2, spread) * (baseline_weight(baseline) + 1 / len(sessions))
    squares += between**2 / freedom if spread > drift**2 else 0.0
    df = (between + noise) ** 2 / squares if squares > 0 else 1e6
    return _bounds(
        after.estimate - centre, math.sqrt(between + noise), df, cases=cases, look=look, confidence=confidence
    )


@dataclass(frozen=True)
class Trimmed:
    """A trimmed mean with its standard error and the degrees of freedom of that."""

    estimate: float
    error: float
    df: float


def trimmed(values: Sequence[float], share: float = 0.2) -> Trimmed:
    """The mean without the ``share`` smallest and largest values each (Tukey and McLaughlin 1963; Yuen 1974).

    Its standard error is that of the winsorized values. Fewer than five values are not trimmed.

    Example:
        >>> trimmed([1.0, 2.0, 3.0, 4.0, 90.0]).estimate
        3.0
    """
    ordered, cut = sorted(values), int(share * len(values))
    kept = ordered[cut : len(ordered) - cut]
    winsorized = [kept[0]] * cut + kept + [kept[-1]] * cut
    left = len(kept)
    error = math.sqrt((len(values) - 1) * variance(winsorized) / (left * (left - 1)))
    return Trimmed(fmean(kept), error, left - 1)


def baseline_weight(baseline: Sequence[Sequence[float]]) -> float:
    """By how much of a session's variance the baseline of these sessions is uncertain."""
    return 1.0 if len(baseline) == 1 else math.pi / 2 / len(baseline)


def session_limit(baseline: Sequence[Sequence[float]], *, drift: float, look: int, confidence: float = 0.95) -> float:
    """Half the width that :func:`session_bounds` keeps however many sessions are measured."""
    alpha = spent((1.0 - confidence) / 2.0, look)
    noise = trimmed(baseline[0]).error ** 2 if len(baseline) == 1 else 0.0
    return t_quantile(alpha, 1e6) * math.sqrt(drift**2 * baseline_weight(baseline) + noise)


def rounds_needed(log_ratios: Sequence[float], limit: float, *, look: int, confidence: float = 0.95) -> int | None:
    """How many rounds would decide a case, were they as those so far; ``None`` beyond 10,000.

    The estimate and the spread of a round are taken as they are, and the bound as it is at the next look.
    """
    away = abs(limit - fmean(log_ratios))
    spread = math.sqrt(variance(log_ratios))
    alpha = spent((1.0 - confidence) / 2.0, look + 1)
    count = len(log_ratios) + 1
    while count <= 10_000:
        if t_quantile(alpha, count - 1) * spread / math.sqrt(count) < away:
            return count
        count += max(1, count // 20)
    return None


def _bounds(mean: float, error: float, df: float, *, cases: int, look: int, confidence: float) -> Interval:
    alpha = spent((1.0 - confidence) / 2.0, look)
    return Interval(
        mean, mean - t_quantile(alpha / cases, df) * error, mean + t_quantile(alpha, df) * error, confidence
    )


def judge(interval: Interval, limit: float) -> Verdict:
    """``pass`` when the whole interval is below ``limit``, ``fail`` when it is above, else ``inconclusive``."""
    return judge_bounds(interval.lower, interval.upper, limit)
