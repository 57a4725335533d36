"""Interleaved A B B A rounds of fresh processes, until every case is decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from time import monotonic

from ..report.gate import Gate, Verdict
from ..report.partial import Keep, keep_nothing
from ..targets import CheckRules
from ..worker.job import Case, Job, Model, Sampling, WorkerResult
from ..worker.process import Runner
from .measure import Plan, Progress
from .result import case_key, process_median
from .stats import Interval, judge, looks, ratio_bounds, rounds_needed

#: Swaps timed in each process of the first round, for the candidate's budgets.
_SWAPS = 200

_Key = tuple[str, Case]


class CaseCheck(Model):
    """Latency of the candidate over that of the baseline for one case.

    ``lower`` and ``upper`` bound the ratio as :func:`edgepeft.bench.stats.ratio_bounds` says; ``None`` where there
    were too few rounds for a bound.
    """

    variant: str
    adapter: str | None
    shape: str
    baseline_p50_ms: float
    candidate_p50_ms: float
    ratio: float
    lower: float | None
    upper: float | None
    #: A B B A rounds, or processes of the candidate where the baseline is a saved report.
    replicates: int
    verdict: Verdict
    #: The smallest ratio that these replicates would have called a failure; ``None`` without an interval.
    detectable: float | None = None
    #: Of an undecided case: rounds in all that would decide it, were they as those so far; ``None`` where it is not known.
    needed: int | None = None
    #: Of an undecided case: what would decide it.
    advice: str = ""

    def gate(self, rules: CheckRules) -> Gate:
        """The case as a gate on the ratio."""
        bounds = "too few rounds for an interval"
        if self.lower is not None and self.upper is not None:
            bounds = f"interval {self.lower:.3f} to {self.upper:.3f} from {self.replicates} replicates"
        if self.verdict is Verdict.INCONCLUSIVE and self.detectable is not None:
            bounds += f"; the smallest slowdown that would have failed is {self.detectable - 1:.1%}"
            if self.needed is not None:
                bounds += f", {self.needed - self.replicates} more rounds like these would decide it"
            if self.advice:
                bounds += f"; what would decide it: {self.advice}"
        return Gate.decided(
            name=f"latency ratio {case_key(self.variant, self.adapter, self.shape)}",
            verdict=self.verdict,
            value=self.ratio,
            limit=1.0 + rules.latency_tolerance,
            unit="ratio",
            detail=f"{self.candidate_p50_ms:.3g} ms over {self.baseline_p50_ms:.3g} ms, {bounds}",
        )


def case_check(
    key: _Key, baseline_ms: Sequence[float], candidate_ms: Sequence[float], log_ratio: float, bounds: Interval | None,
    replicates: int, verdict: Verdict, *, limit: float,
) -> CaseCheck:  # fmt: skip
    """A :class:`CaseCheck` from process medians and a mean log-ratio with its bounds; ``limit`` is the log-ratio allowed."""
    variant, case = key
    return CaseCheck(
        variant=variant,
        adapter=case.adapter,
        shape=case.label,
        baseline_p50_ms=median(baseline_ms),
        candidate_p50_ms=median(candidate_ms),
        ratio=math.exp(log_ratio),
        lower=None if bounds is None else math.exp(bounds.lower),
        # A bound from a handful of wild values can be too large for a float; it then bounds nothing.
        upper=None if bounds is None else _ratio(bounds.upper),
        replicates=replicates,
        verdict=verdict,
        detectable=None if bounds is None else _ratio(limit + bounds.estimate - bounds.lower),
    )


def _ratio(log_ratio: float) -> float | None:
    """The ratio, ``None`` where it is too large for a float and so says nothing."""
    return None if log_ratio > 700 else math.exp(log_ratio)


#: The candidate's runs by variant, and each case compared.
Checked = tuple[dict[str, list[WorkerResult]], tuple[CaseCheck, ...]]


class _CaseState:
    """The process medians of one case so far, and its log-ratio for each round."""

    def __init__(self) -> None:
        self.baseline_ms: list[float] = []
        self.candidate_ms: list[float] = []
        self.log_ratios: list[float] = []
        self.bounds: Interval | None = None
        self.verdict = Verdict.INCONCLUSIVE
        self.look = 1

    def check(self, key: _Key, rules: CheckRules) -> CaseCheck:
        """The case as it stands."""
        limit = math.log1p(rules.latency_tolerance)
        found = case_check(
            key, self.baseline_ms, self.candidate_ms, fmean(self.log_ratios), self.bounds, len(self.log_ratios), self.verdict,
            limit=limit,
        )  # fmt: skip
        if self.verdict is not Verdict.INCONCLUSIVE or self.bounds is None:
            return found
        needed = rounds_needed(self.log_ratios, limit, look=self.look, confidence=rules.confidence)
        advice = "a quieter machine" if needed is None else "a higher --budget-s"
        return found.model_copy(update={"needed": needed, "advice": advice})


#: More rounds than this are bounded by time alone.
UNBOUNDED = 10_000


def open_total(done: int, total: int, seconds: float, rules: CheckRules) -> tuple[int, int]:
    """How far a check is: processes of the most that there may be, or where time alone ends it seconds of those there are."""
    if rules.max_rounds < UNBOUNDED:
        return done, total
    whole = max(1, math.ceil(rules.max_seconds))
    return min(int(seconds), whole), whole


def interleave(
    candidate: Path,
    baseline: Path,
    plan: Plan,
    rules: CheckRules,
    sampling: Sampling,
    runner: Runner,
    progress: Progress,
    keep: Keep = keep_nothing,
) -> Checked:
    """The candidate's runs by variant, and a :class:`CaseCheck` for every case of ``plan``.

    A round runs four fresh processes for each variant, A B B A and in the next round B A A B, and gives one log-ratio
    a case: mean of the candidate's log medians minus mean of the baseline's, in which a linear drift of the machine
    cancels. After the rounds that :func:`edgepeft.bench.stats.looks` names the cases are judged (the bounds pay for each
    look); a decided case is measured no further. Rounds end when all are decided, at ``rules.max_rounds`` or after
    ``rules.max_seconds``. ``keep`` is given, after each round, what makes the same of all rounds so far.
    """
    states: dict[_Key, _CaseState] = {(variant, case): _CaseState() for variant in plan.variants for case in plan.cases}
    runs: dict[str, list[WorkerResult]] = {variant: [] for variant in plan.variants}
    limit, start, done = math.log1p(rules.latency_tolerance), monotonic(), 0
    total = 4 * len(plan.variants) * rules.max_rounds
    due = looks(rules.min_rounds, rules.max_rounds)
    for number in range(1, rules.max_rounds + 1):
        still_open = {key: state for key, state in states.items() if state.verdict is Verdict.INCONCLUSIVE}
        for variant in dict.fromkeys(variant for variant, _ in still_open):
            cases = tuple(case for v, case in still_open if v == variant)
            results: dict[str, list[WorkerResult]] = {"A": [], "B": []}
            for side in "ABBA" if number % 2 else "BAAB":
                said = f"{variant}, round {number}, {len(still_open)} of {len(states)} cases open"
                progress(*open_total(done, total, monotonic() - start, rules), said)
                folder = baseline if side == "A" else candidate
                job = Job(bundle=str(folder), variant=variant, threads=plan.threads, cases=cases, sampling=sampling,
                          swaps=_SWAPS if number == 1 and side == "B" else 0)  # fmt: skip
                results[side].append(runner(job))
                done += 1
            runs[variant] += results["B"]
            for case in cases:
                _add_round(states[variant, case], case, results["A"], results["B"])
        keep(lambda: (runs, tuple(state.check(key, rules) for key, state in states.items())))
        late = monotonic() - start > rules.max_seconds
        if number >= 2 and (number in due or late):
            look = 1 + sum(other < number for other in due)
            for state in still_open.values():
                state.look = look
                state.bounds = ratio_bounds(state.log_ratios, cases=len(states), look=look, confidence=rules.confidence)
                # With fewer rounds than the least, an interval is shown but nothing is decided by it.
                if number >= rules.min_rounds:
                    state.verdict = judge(state.bounds, limit)
        if late or all(state.verdict is not Verdict.INCONCLUSIVE for state in states.values()):
            break
    _, total = open_total(total, total, 0, rules)
    progress(total, total, "done")
    return runs, tuple(state.check(key, rules) for key, state in states.items())


def _add_round(state: _CaseState, case: Case, a: Sequence[WorkerResult], b: Sequence[WorkerResult]) -> None:
    baseline, candidate = (
        [process_median(samples) for run in runs for samples in run.cases if samples.case == case] for runs in (a, b)
    )
    state.baseline_ms += baseline
    state.candidate_ms += candidate
    state.log_ratios.append(fmean(map(math.log, candidate)) - fmean(map(math.log, baseline)))
