"""The statistics against scipy, which the base install is too small for (its wheel alone takes 35 MB, 110 MB unpacked).

``check`` runs on devices, so the package carries the two distributions it needs; here they are held against the reference.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgepeft.bench.stats import mcnemar, t_interval, t_quantile, t_tail, trimmed, wilson

DEGREES = st.floats(1.0, 500.0)


@given(st.floats(1e-12, 0.49), DEGREES)
def test_t_quantile(tail: float, df: float) -> None:
    # Bisection ends at 1e-12 of the value; scipy's own inverse is good to some 1e-10 in the far tails.
    assert t_quantile(tail, df) == pytest.approx(float(stats.t.isf(tail, df)), rel=1e-8)


@given(st.floats(0.0, 60.0), DEGREES)
def test_t_tail(t: float, df: float) -> None:
    assert t_tail(t, df) == pytest.approx(float(stats.t.sf(t, df)), rel=1e-9, abs=1e-300)


@given(st.integers(1, 5000), st.floats(0.0, 1.0), st.sampled_from([0.8, 0.95, 0.999]))
def test_wilson(total: int, share: float, confidence: float) -> None:
    hits = round(share * total)
    mine = wilson(hits, total, confidence)
    theirs = stats.binomtest(hits, total).proportion_ci(confidence, method="wilson")
    assert (mine.lower, mine.upper) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    expected = 1.0 if lost + won == 0 else stats.binomtest(lost, lost + won).pvalue
    assert mcnemar(lost, won) == pytest.approx(float(expected), rel=1e-9)


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_intervals_of_means(first: int, second: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.0, 1.0, first), rng.normal(0.3, 2.0, second)
    mine = t_interval(a.tolist())
    theirs = stats.ttest_1samp(a, 0.0).confidence_interval(0.95)
    assert (mine.lower, mine.upper) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-12)
    # scipy's t-test of trimmed means is Yuen's: the same estimates, errors and degrees of freedom.
    one, other = trimmed(a.tolist()), trimmed(b.tolist())
    yuen = stats.ttest_ind(b, a, equal_var=False, trim=0.2)
    error = math.hypot(one.error, other.error)
    assert (other.estimate - one.estimate) / error == pytest.approx(yuen.statistic, rel=1e-8, abs=1e-10)
    df = error**4 / (one.error**4 / one.df + other.error**4 / other.df)
    assert df == pytest.approx(yuen.df, rel=1e-8)
