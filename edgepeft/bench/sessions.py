"""A bundle against a saved report: sessions of fresh processes until every case is decided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from time import monotonic

from ..errors import InputError
from ..report.gate import Verdict
from ..report.partial import Keep, keep_nothing
from ..targets import CheckRules
from ..worker.job import Case, Host, Sampling, WorkerResult
from ..worker.process import Runner
from .history import LEAST_RUNS, change_points, host_class, last_level, read_runs
from .interleave import CaseCheck, Checked, case_check, open_total
from .measure import Plan, Progress
from .result import BenchResult, BundleFacts, load_bench, process_median
from .stats import Interval, judge, looks, session_bounds, session_limit

#: Standard deviation assumed for the drift of one host from one session to another, in log units; where the sessions of the check
#: itself differ by more, that counts. It widens every comparison with a saved report; interleaved rounds need no such guess.
#: Measured on two quiet virtual cores (benchmarks/noise/quiet-2-cores.json, five minutes): means of 10, 20 and 40 processes differ
#: by 3.4, 3.3 and 3.0 % beyond the noise within them.
SESSION_DRIFT = 0.03
#: Processes of each variant in a session.
PROCESSES = 2
#: Sessions before the first verdict.
FIRST_LOOK = 3
#: Sessions before a slowdown is called one: a burst of other work that lasts as long as the first look must not be.
FAIL_LOOK = 8
#: Sessions for each A B B A round that the rules allow: a round has two processes of the candidate, and so has a session.
_SESSIONS_A_ROUND = 2

_Key = tuple[str, Case]


@dataclass(frozen=True)
class Saved:
    """What was measured before: a report, or the last runs of a history, oldest first."""

    runs: tuple[BenchResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def last(self) -> BenchResult:
        """The newest run."""
        return self.runs[-1]

    def sessions_ms(self, variant: str, case: Case) -> tuple[tuple[float, ...], ...]:
        """Medians of a case's processes by session: of one report those that it was measured in, of several each is one."""
        found = [
            (run.sessions, each.process_p50_ms)
            for run in self.runs
            for each in run.cases
            if (each.variant, each.adapter, each.shape) == (variant, case.adapter, case.label)
        ]
        if len(found) != 1:
            return tuple(processes for _, processes in found)
        ((sessions, processes),) = found
        size = len(processes) // sessions
        return tuple(processes[start : start + size] for start in range(0, len(processes), size))


def saved_report(path: Path) -> Saved:
    """A report that ``bench`` wrote."""
    return Saved((load_bench(path),))


def saved_history(path: Path, host: Host, target: str) -> Saved:
    """The last runs of a history on hosts of this class for a target, after the last change of level.

    Levels are those of the first case of the newest run, which all runs are then taken from.

    Raises:
        InputError: There are fewer than three such runs.
    """
    runs = [run.result for run in read_runs(path, host, target)]
    if len(runs) < LEAST_RUNS:
        others = len(read_runs(path)) - len(runs)
        threads = f"{host.threads} thread{'' if host.threads == 1 else 's'}"
        raise InputError(
            f"history {path} has {len(runs)} of at least {LEAST_RUNS} runs for {target} on hosts like this ({host.cpu}, "
            f"{host.cores} cores, onnxruntime {host.onnxruntime}, {threads}), and {others} of other hosts or targets. Add one "
            f"with: edgepeft bench BUNDLE --history {path}"
        )
    first = runs[-1].cases[0]
    series = [next((c.p50_ms for c in run.cases if c.key == first.key), math.nan) for run in runs]
    known = [place for place, value in enumerate(series) if math.isfinite(value)]
    level = last_level([series[place] for place in known])
    kept = [runs[place] for place in known[level]]
    changes = change_points([series[place] for place in known])
    said = f"the baseline is the median of the last {len(kept)} of {len(runs)} runs in {path}"
    if changes:
        where = ", ".join(str(known[place] + 1) for place in changes)
        said += (
            f"; {first.key} changed its level at run {where} (Pettitt's test), runs before the last change are left out"
        )
    return Saved(tuple(kept), (said,))


class _CaseState:
    """The log medians of one case, by session."""

    def __init__(self, before_ms: tuple[tuple[float, ...], ...]) -> None:
        self.baseline_ms = [ms for session in before_ms for ms in session]
        self.baseline = [[math.log(ms) for ms in session] for session in before_ms]
        self.sessions: list[list[float]] = []
        self.bounds: Interval | None = None
        self.verdict = Verdict.INCONCLUSIVE
        self.look = 1

    @property
    def candidate_ms(self) -> list[float]:
        return [math.exp(value) for session in self.sessions for value in session]


def against_saved(
    path: Path,
    facts: BundleFacts,
    saved: Saved,
    plan: Plan,
    rules: CheckRules,
    sampling: Sampling,
    runner: Runner,
    progress: Progress,
    keep: Keep = keep_nothing,
) -> Checked:
    """The candidate's runs by variant, and a :class:`CaseCheck` for every case of ``plan``.

    A session is two fresh processes for each variant that is still open. After the sessions that :func:`.stats.looks` names the
    cases are judged by :func:`.stats.session_bounds`; a decided case is measured no further, and a
    slowdown is called one from the eighth session on. Sessions end when all are decided,
    after twice ``rules.max_rounds`` or after ``rules.max_seconds``. ``keep`` is given, after each session, what makes the
    same of all sessions so far.

    Raises:
        InputError: The report is from another host or setting: which field differs, and what may still be compared.
    """
    states: dict[_Key, _CaseState] = {
        (variant, case): _CaseState(saved.sessions_ms(variant, case))
        for variant in plan.variants
        for case in plan.cases
    }
    runs: dict[str, list[WorkerResult]] = {variant: [] for variant in plan.variants}
    limit, start, most = math.log1p(rules.latency_tolerance), monotonic(), _SESSIONS_A_ROUND * rules.max_rounds
    due = looks(min(FIRST_LOOK, most), most)
    done = 0
    for number in range(1, most + 1):
        still_open = {key: state for key, state in states.items() if state.verdict is Verdict.INCONCLUSIVE}
        for state in still_open.values():
            state.sessions.append([])
        for variant in dict.fromkeys(variant for variant, _ in still_open):
            cases = tuple(case for v, case in still_open if v == variant)
            for _ in range(PROCESSES):
                said = f"{variant}, session {number}, {len(still_open)} of {len(states)} cases open"
                progress(*open_total(done, PROCESSES * len(plan.variants) * most, monotonic() - start, rules), said)
                job = plan.job(path, variant, sampling, swaps=0 if runs[variant] else 200)
                result = runner(job.model_copy(update={"cases": cases}))
                require_same_host(saved, result.host, facts)
                runs[variant].append(result)
                for samples in result.cases:
                    states[variant, samples.case].sessions[-1].append(math.log(process_median(samples)))
                done += 1
        keep(lambda: (runs, tuple(_checked(key, state, rules, limit) for key, state in states.items())))
        late = monotonic() - start > rules.max_seconds
        if number >= 2 and (number in due or late):
            for state in still_open.values():
                state.look = 1 + sum(other < number for other in due)
                state.bounds = session_bounds(
                    state.baseline, state.sessions, drift=SESSION_DRIFT, cases=len(states),
                    look=state.look, confidence=rules.confidence,
                )  # fmt: skip
                verdict = judge(state.bounds, limit)
                least = FAIL_LOOK if verdict is Verdict.FAIL else FIRST_LOOK
                if number >= min(least, most):
                    state.verdict = verdict
        if late or all(state.verdict is not Verdict.INCONCLUSIVE for state in states.values()):
            break
    progress(done, done, "done")
    return runs, tuple(_checked(key, state, rules, limit) for key, state in states.items())


def _checked(key: _Key, state: _CaseState, rules: CheckRules, limit: float) -> CaseCheck:
    sessions = [session for session in state.sessions if session]  # one that was broken off may be empty
    means = [fmean(session) for session in sessions]
    estimate = state.bounds.estimate if state.bounds is not None else fmean(means) - median(map(fmean, state.baseline))
    found = case_check(
        key,
        state.baseline_ms,
        state.candidate_ms,
        estimate,
        state.bounds,
        len(sessions),
        state.verdict,
        limit=limit,
    )
    if state.verdict is not Verdict.INCONCLUSIVE or state.bounds is None:
        return found
    # However many sessions there are, the report's own noise and one session's drift stay.
    least = session_limit(
        state.baseline, drift=SESSION_DRIFT, look=state.look, confidence=rules.confidence
    )  # half a width that remains
    away = abs(limit - estimate)
    bundle = "the baseline's bundle, which is measured in turns"
    advice = f"{_better(state.baseline)}, or {bundle}"
    if away <= least:
        advice += (
            f": no number of sessions decides it against this report ({len(state.baseline_ms)} processes, {SESSION_DRIFT:.0%} "
            f"drift), whose own uncertainty is {least:.1%}"
        )
    else:
        advice = f"a higher --budget-s, {advice}"
    return found.model_copy(update={"advice": advice})


def _better(baseline: list[list[float]]) -> str:
    """The saved runs that decide more than these. More processes in one session hardly do: its drift stays."""
    if len(baseline) == 1:
        return "a report of several sessions (bench --sessions 10)"
    return "a report or a history of more sessions"


def require_same_host(saved: Saved, current: Host, facts: BundleFacts) -> None:
    """Refuse a report of another host or setting.

    Raises:
        InputError: Names each field that differs, and compares what does not depend on the host.
    """
    if len(saved.runs) > 1 and host_class(saved.last.host) == host_class(current):
        return
    before, now = saved.last.host.model_dump(), current.model_dump()
    differing = [f"{name} was {before[name]!r}, is {now[name]!r}" for name in before if before[name] != now[name]]
    if differing:
        raise InputError(
            f"the saved report is from another host or setting: {'; '.join(differing)}. Latency and memory cannot be compared. "
            f"Sizes can: the bundle had {saved.last.bundle.bundle_mb:.2f} MB, it has {facts.bundle_mb:.2f} MB. "
            "Measure the baseline here, or give its bundle instead"
        )


def report_notes(saved: Saved, target: str, sampling: Sampling, *, data: bool) -> list[str]:
    """What differs between a saved report and this check though latency may be compared, and what such a comparison is worth."""
    last = saved.last
    notes = [
        *saved.notes,
        f"against a saved report: not interleaved, widened by {SESSION_DRIFT:.0%} drift for each session, or by what the sessions "
        "of this check differ where that is more",
    ]
    if last.target != target:
        notes.append(
            f"the saved report was measured for target {last.target}, this check is for {target}: latency is compared, budgets "
            f"are {target}'s"
        )
    if last.sampling.measure_s < sampling.measure_s:
        notes.append(
            f"the saved report measured each case for {last.sampling.measure_s:g} s, this check for {sampling.measure_s:g} s: its "
            "medians are noisier"
        )
    if data:
        notes.append("a report has no answers: accuracy was judged by itself; give the baseline's bundle to compare it")
    return notes
