"""Statistics against printed tables and by simulation. All seeds are fixed: these tests cannot flake."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgepeft.bench.stats import (
    bootstrap_drop,
    judge,
    looks,
    mcnemar,
    paired_drop,
    percentile,
    ratio_bounds,
    rounds_needed,
    session_bounds,
    session_limit,
    spent,
    t_interval,
    t_quantile,
    t_tail,
    trimmed,
    wilson,
)
from edgepeft.report.gate import Verdict

# Two-sided 95 %, 99 % and 99.9 % critical values as every printed t table has them, to three decimals.
TABLE = {
    1: (12.706, 63.657, 636.619),
    2: (4.303, 9.925, 31.599),
    3: (3.182, 5.841, 12.924),
    5: (2.571, 4.032, 6.869),
    10: (2.228, 3.169, 4.587),
    30: (2.042, 2.750, 3.646),
    120: (1.980, 2.617, 3.373),
}


@pytest.mark.parametrize("df", TABLE)
def test_t_quantile_equals_the_table(df: int) -> None:
    found = [t_quantile(tail, df) for tail in (0.025, 0.005, 0.0005)]
    assert found == pytest.approx(TABLE[df], abs=5.1e-4)  # the table is rounded to three decimals


@pytest.mark.parametrize("df", [1, 2.5, 7, 400])
@pytest.mark.parametrize("tail", [0.4, 0.01, 1e-6, 1e-10])
def test_t_quantile_inverts_the_tail(df: float, tail: float) -> None:
    assert t_tail(t_quantile(tail, df), df) == pytest.approx(tail, rel=1e-7)


def test_t_quantile_closed_form_with_two_degrees() -> None:
    p = 1 - 0.003  # t = (2 p - 1) / sqrt(2 p (1 - p)) for df = 2
    assert t_quantile(0.003, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-9)
    with pytest.raises(ValueError, match=r"0 < tail < 0\.5"):
        t_quantile(0.5, 3)


def test_interval_covers_the_true_ratio_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    truth, trials = math.log(1.1), 2000
    intervals = [t_interval(rng.normal(truth, 0.05, 5).tolist()) for _ in range(trials)]
    covered = sum(i.lower <= truth <= i.upper for i in intervals) / trials
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors of 2000 trials


def drifting(rng: np.random.Generator, count: int) -> np.ndarray:
    """Log noise of a shared machine: a slow AR(1) drift, process noise, and a busy neighbour for some stretches."""
    slow, level, busy, values = 0.0, 0.03, False, []
    for _ in range(count):
        slow = 0.9 * slow + rng.normal(0, level)
        busy = rng.random() < (0.8 if busy else 0.05)
        values.append(slow + rng.normal(0, 0.02) + (rng.uniform(0.1, 0.6) if busy else 0.0))
    return np.array(values)


def abba(noise: np.ndarray, effect: float) -> list[float]:
    """Log-ratios of A B B A / B A A B rounds under ``noise``, the candidate slower by ``effect``."""
    rounds = noise.reshape(-1, 4)
    signs = np.array([[-1, 1, 1, -1], [1, -1, -1, 1]] * (len(rounds) // 2 + 1))[: len(rounds)]
    return [float((row * sign).sum() / 2 + effect) for row, sign in zip(rounds, signs, strict=True)]


def sequential(rng: np.random.Generator, effect: float, cases: int = 1) -> Verdict:
    """One check: up to 12 rounds, judged as ``check`` does."""
    ratios = abba(drifting(rng, 48), effect)
    for look, rounds in enumerate(looks(4, 12), 1):
        verdict = judge(ratio_bounds(ratios[:rounds], cases=cases, look=look), math.log1p(0.10))
        if verdict is not Verdict.INCONCLUSIVE:
            return verdict
    return Verdict.INCONCLUSIVE


def test_a_bundle_against_itself_never_fails_on_a_drifting_machine() -> None:
    rng = np.random.default_rng(2)
    verdicts = [sequential(rng, effect=0.0) for _ in range(1000)]
    assert verdicts.count(Verdict.FAIL) == 0
    assert verdicts.count(Verdict.PASS) > 200  # and it is not for want of power


def test_an_effect_at_the_limit_is_failed_no_more_often_than_promised() -> None:
    rng = np.random.default_rng(3)
    verdicts = [sequential(rng, effect=math.log1p(0.10)) for _ in range(2000)]
    # Each side may err 2.5 % over all looks; 3.5 standard errors of 2000 trials are 1.2 %.
    assert verdicts.count(Verdict.FAIL) / 2000 < 0.037
    assert verdicts.count(Verdict.PASS) / 2000 < 0.037


def test_twice_the_work_fails_on_a_drifting_machine() -> None:
    rng = np.random.default_rng(4)
    verdicts = [sequential(rng, effect=math.log(2.0)) for _ in range(300)]
    assert verdicts.count(Verdict.PASS) == 0
    assert verdicts.count(Verdict.FAIL) > 270


def test_looks_never_spend_more_than_alpha() -> None:
    assert sum(spent(0.05, look) for look in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)


def test_looks() -> None:
    assert looks(4, 12) == (4, 6, 9, 12)
    assert looks(3, 3) == (3,)
    assert looks(4, 5) == (4, 5)


def test_cases_widen_the_lower_bound_only() -> None:
    ratios = [0.01, 0.02, 0.0, 0.03]
    one, many = ratio_bounds(ratios, cases=1), ratio_bounds(ratios, cases=12)
    assert many.upper == one.upper
    assert many.lower < one.lower


def test_percentiles_need_samples() -> None:
    assert percentile([1.0] * 5, 50) is None
    assert percentile([1.0, 2, 3, 4, 5, 6], 50) == 3.5
    assert percentile([1.0] * 99, 95) is None
    assert percentile(list(map(float, range(101))), 95) == 95.0
    assert percentile([1.0] * 999, 99) is None
    assert percentile([1.0] * 1000, 99) == 1.0


def test_wilson_equals_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3: 81/263 and 15/148, to four decimals.
    for hits, total, lower, upper in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = wilson(hits, total)
        assert (found.lower, found.upper) == pytest.approx((lower, upper), abs=5.1e-5)
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(0, 0)


def test_mcnemar_is_the_exact_binomial() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(5, 1) == mcnemar(1, 5)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(4000, 6000) < 1e-80  # exact integers: no overflow, no underflow to zero


def test_paired_drop_counts_rows_and_keeps_a_width_where_none_differs() -> None:
    before = [True] * 80 + [False] * 20
    after = [True] * 75 + [False] * 5 + [True] * 2 + [False] * 18
    drop = paired_drop(before, after)
    assert drop.estimate == pytest.approx(0.03)
    assert drop.lower < 0.03 < drop.upper
    same = paired_drop(before, before)
    assert same.estimate == 0.0
    assert same.upper > 0.01


def test_paired_drop_covers_and_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(5)
    truth, covered = 0.05, 0
    for _ in range(1000):
        kind = rng.choice(3, size=300, p=[0.08, 0.03, 0.89])  # lost, won, both right
        before, after = kind != 1, kind != 0
        interval = paired_drop(before.tolist(), after.tolist())
        covered += interval.lower <= truth <= interval.upper
    assert covered / 1000 == pytest.approx(0.95, abs=0.025)
    boot = bootstrap_drop(before.tolist(), after.tolist())
    # The two methods differ by the rows that the adjusted interval adds: under a point at 300 rows.
    assert (boot.lower, boot.upper) == pytest.approx((interval.lower, interval.upper), abs=0.01)


def test_session_bounds_by_hand() -> None:
    # Sessions' means 1, 2, 3 (variance 1), report 0 and 2 (mean 1, variance 2): 1 * (1 + 1/3) + 2 / 2 = 7/3, on
    # (7/3)^2 / ((4/3)^2 / 2 + 1^2 / 1) = 2.882 degrees of freedom.
    found = session_bounds([[0.0, 2.0]], [[0.5, 1.5], [2.0], [3.0, 3.0]], drift=0.1, cases=1)
    half = t_quantile(spent(0.025, 1), (7 / 3) ** 2 / ((4 / 3) ** 2 / 2 + 1)) * math.sqrt(7 / 3)
    assert found.estimate == pytest.approx(1.0)
    assert (found.lower, found.upper) == pytest.approx((1 - half, 1 + half))
    # Quiet sessions do not talk the assumed drift away.
    quiet = session_bounds([[0.0, 0.0]], [[0.0]] * 50, drift=0.02, cases=1)
    assert quiet.upper == pytest.approx(t_quantile(spent(0.025, 1), 1e6) * 0.02 * math.sqrt(1 + 1 / 50))
    assert session_limit([[0.0, 0.0]], drift=0.02, look=1) < quiet.upper


def test_session_bounds_keep_their_error_where_sessions_differ_as_assumed() -> None:
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(1000):

        def session(processes: int) -> list[float]:
            return (rng.normal(0, 0.02) + rng.normal(0, 0.01, processes)).tolist()

        found = session_bounds([session(6)], [session(2) for _ in range(3)], drift=0.02, cases=1)
        wrong += found.lower > 0
    assert wrong <= 20  # at most 1.25 % by the first look's alpha, and three standard errors


def test_several_saved_sessions_are_a_better_baseline() -> None:
    rng, wrong, one, many = np.random.default_rng(2), 0, 0.0, 0.0

    def session(processes: int) -> list[float]:
        return (rng.normal(0, 0.02) + rng.normal(0, 0.01, processes)).tolist()

    for _ in range(500):
        mine = [session(2) for _ in range(3)]
        found = session_bounds([session(3) for _ in range(10)], mine, drift=0.02, cases=1)
        wrong += found.lower > 0
        many += found.upper - found.lower
        alone = session_bounds([session(3)], mine, drift=0.02, cases=1)
        one += alone.upper - alone.lower
    assert wrong <= 14  # 1.25 % and three standard errors
    assert many < 0.75 * one


def test_rounds_needed_are_those_that_decide() -> None:
    rng = np.random.default_rng(1)
    logs = rng.normal(0.05, 0.05, 8).tolist()
    needed = rounds_needed(logs, 0.0953, look=1)
    assert needed is not None
    assert needed > 8
    away, spread = abs(0.0953 - np.mean(logs)), np.std(logs, ddof=1)
    assert t_quantile(spent(0.025, 2), needed - 1) * spread / math.sqrt(needed) < away
    assert rounds_needed([0.0, 1e-9], 5e-10, look=1) is None, "on the limit nothing decides"


def test_trimmed_means_by_hand() -> None:
    # Of ten values two at each end are left out: 3 … 8 stay; winsorized 3 3 3 4 5 6 7 8 8 8 have the variance 4.72222.
    found = trimmed([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1000.0])
    assert (found.estimate, found.df) == (5.5, 5)
    assert found.error == pytest.approx(math.sqrt(9 * 4.7222222 / (6 * 5)))
    assert trimmed([1.0, 2.0, 6.0]).estimate == 3.0


def test_a_burst_does_not_move_the_baseline() -> None:
    quiet, mine = [0.0, 0.01, -0.01, 0.0, 0.01] * 2, [[0.0, 0.01]] * 6
    burst = [*quiet[:-1], 0.4]
    plain, wild = (session_bounds([baseline], mine, drift=0.02, cases=1) for baseline in (quiet, burst))
    assert abs(plain.estimate - wild.estimate) < 0.005
    assert wild.upper - wild.lower < 1.2 * (plain.upper - plain.lower)
