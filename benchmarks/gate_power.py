"""How often does ``check`` call equal bundles slower, and how often does it see a slowdown? By simulation over recorded noise.

The noise is a series of process medians of one bundle, recorded with ``--record``: its jitter, its bursts and the drift of the
machine are in it, in the order in which they came. A simulated process takes the next value of the series, from a random start on;
what is planted multiplies the candidate's. ``check``'s own code judges (``interleave`` for a bundle, ``against_saved`` for a
report), and a process takes as long as it did when it was recorded, so a budget in seconds ends a simulated check as it would a
real one.
One series is no recording: a model of 10 ms whose iterations jitter by 5 %, on a machine that drifts by 1 % and has bursts of
some processes that are a fifth slower (``specified``).

    python benchmarks/gate_power.py                                   # quick: 200 checks of each kind
    python benchmarks/gate_power.py --checks 1000
    python benchmarks/gate_power.py --record BUNDLE --minutes 5 --out benchmarks/noise/HOST.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from time import monotonic
from unittest import mock

import numpy as np

from edgepeft.bench import CHECK_SAMPLING, Case, CaseSamples, Host, Job, WorkerResult, run_worker
from edgepeft.bench.interleave import interleave
from edgepeft.bench.measure import Plan, make_plan, silent
from edgepeft.bench.result import BenchResult, BundleFacts, process_median, summarise
from edgepeft.bench.sessions import Saved, against_saved
from edgepeft.bundle import read_bundle
from edgepeft.json_text import json_text
from edgepeft.report.gate import Verdict
from edgepeft.targets import CheckRules, load_target

NOISE = Path(__file__).parent / "noise"
CASE = Case(adapter=None, batch=1, sequence=128)
PLAN = Plan(("fp32",), (CASE,), 1)
HOST = Host(cpu="simulated", cores=1, os="Linux", machine="x86_64", python="3", onnxruntime="1.28", threads=1)
FACTS = BundleFacts(path="b", mode="swap", base_identity="0", bundle_mb=1, variants_mb={}, adapters_mb={})


@dataclass(frozen=True)
class Noise:
    """Process medians in ms in the order they came, and when each process ended, in seconds."""

    name: str
    medians_ms: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def process_s(self) -> float:
        """How long a process takes."""
        return fmean(later - earlier for earlier, later in pairwise(self.seconds))


def record(bundle: Path, minutes: float, out: Path) -> None:
    """Measure one case of a bundle in one process after the other."""
    opened = read_bundle(bundle)
    plan = make_plan(opened.manifest, load_target("linux-x64-cpu"), None, ["fp32"], ["1x128"], 1)
    plan = Plan(plan.variants, plan.cases[:1], 1)
    start, medians, times = monotonic(), [], []
    host = None
    while monotonic() - start < 60 * minutes:
        result = run_worker(plan.job(opened.path, "fp32", CHECK_SAMPLING))
        host = result.host
        medians.append(round(process_median(result.cases[0]), 4))
        times.append(round(monotonic() - start, 3))
    out.parent.mkdir(parents=True, exist_ok=True)
    value = {"host": host.model_dump() if host else {}, "medians_ms": medians, "seconds": times}
    out.write_text(json_text(value, indent=None) + "\n", encoding="utf-8")
    print(f"{out}: {len(medians)} processes in {minutes:g} minutes")


def specified(processes: int = 2000, seed: int = 0) -> Noise:
    """A 10 ms model with 5 % jitter of each iteration, bursts, and a slow drift."""
    rng = np.random.default_rng(seed)
    medians, level, burst = [], 0.0, 0
    for _ in range(processes):
        level = 0.98 * level + rng.normal(0, 0.002)  # a standard deviation of 1 % in the long run
        if burst == 0 and rng.random() < 0.02:
            burst = int(rng.integers(3, 9))
        factor = 1.2 if burst else 1.0
        burst = max(0, burst - 1)
        medians.append(10 * factor * math.exp(level) * float(np.median(np.exp(rng.normal(0, 0.05, 25)))))
    return Noise("specified", tuple(medians), tuple(0.9 * place for place in range(processes)))


def load_noise(path: Path) -> Noise:
    """A recorded series."""
    value = json.loads(path.read_text(encoding="utf-8"))
    return Noise(path.stem, tuple(value["medians_ms"]), tuple(value["seconds"]))


class Simulated:
    """A machine: its clock, and a runner whose processes take their noise from the series."""

    def __init__(self, noise: Noise, effect: float, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise = noise
        self.effect = effect
        self.now = 0.0
        self.place = int(self.rng.integers(0, len(noise.medians_ms)))

    def clock(self) -> float:
        return self.now

    def median(self) -> float:
        """The median of the next process; at the end the series begins anew."""
        value = self.noise.medians_ms[self.place % len(self.noise.medians_ms)]
        self.place += 1
        self.now += self.noise.process_s
        return value

    def __call__(self, job: Job) -> WorkerResult:
        ms = self.median() * (1 + self.effect if job.bundle == "candidate" else 1)
        samples = tuple(CaseSamples(case=case, samples_ms=(ms,) * 6) for case in job.cases)
        return WorkerResult(
            host=HOST, import_ms=1, load_ms=1, rss_start_mb=None, rss_loaded_mb=None, peak_rss_mb=None, cases=samples
        )

    def skip(self, seconds: float) -> None:
        """Let time pass: the series goes on."""
        self.place += int(seconds / self.noise.process_s)


def paired(machine: Simulated, rules: CheckRules) -> Verdict:
    """A check of two bundles."""
    with mock.patch("edgepeft.bench.interleave.monotonic", machine.clock):
        _, cases = interleave(Path("candidate"), Path("baseline"), PLAN, rules, CHECK_SAMPLING, machine, silent)
    return cases[0].verdict


def saved(
    machine: Simulated, rules: CheckRules, processes: int = 10, runs: int = 1, sessions: int = 1, pause_s: float = 30
) -> Verdict:
    """A check against ``runs`` reports of so many sessions of processes each, made some minutes apart on the same machine."""
    job = PLAN.job(Path("baseline"), "fp32", CHECK_SAMPLING)
    reports: list[BenchResult] = []
    for _ in range(runs):
        results = []
        for session in range(sessions):
            if session:
                machine.skip(pause_s)
            results += [machine(job) for _ in range(processes)]
        reports.append(summarise(FACTS, "linux-x64-cpu", CHECK_SAMPLING, {"fp32": results}, sessions=sessions))
        machine.skip(machine.rng.uniform(0, 120))
    machine.now = 0.0
    with mock.patch("edgepeft.bench.sessions.monotonic", machine.clock):
        _, cases = against_saved(
            Path("candidate"), FACTS, Saved(tuple(reports)), PLAN, rules, CHECK_SAMPLING, machine, silent
        )
    return cases[0].verdict


#: A check of a machine, by rules.
Check = Callable[["Simulated", CheckRules], Verdict]


def history(machine: Simulated, rules: CheckRules) -> Verdict:
    """A check against a history of ten runs of three processes, as ``bench --history`` makes it."""
    return saved(machine, rules, processes=3, runs=10)


def report_of(processes: int, sessions: int, pause_s: float = 30) -> Check:
    """A check against one report of so many processes in all, in sessions that are ``pause_s`` apart."""
    return partial(saved, processes=processes // sessions, sessions=sessions, pause_s=pause_s)


def rates(
    check: Check,
    noise: Noise,
    effect: float,
    rules: CheckRules,
    checks: int,
) -> tuple[float, float, float, float]:
    """Shares of pass, fail and inconclusive, and mean seconds."""
    found: Counter[Verdict] = Counter()
    seconds = 0.0
    for seed in range(checks):
        machine = Simulated(noise, effect, seed)
        found[check(machine, rules)] += 1
        seconds += machine.now
    shares = [found[verdict] / checks for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE)]
    return shares[0], shares[1], shares[2], seconds / checks


def describe(noise: Noise) -> str:
    """The series in one line."""
    logs = np.log(noise.medians_ms)
    block = 10
    means = [float(logs[i : i + block].mean()) for i in range(0, len(logs) - block + 1, block)]
    return (
        f"{noise.name}: {len(logs)} processes of {noise.process_s:.2f} s, median {np.median(noise.medians_ms):.2f} ms; log medians "
        f"differ by {logs.std():.1%}, neighbours by {np.diff(logs).std() / math.sqrt(2):.1%}, blocks of {block} by "
        f"{stdev(means):.1%}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=Path, action="append", help="recorded series; default: all in benchmarks/noise")
    parser.add_argument("--checks", type=int, default=200, help="simulated checks of each kind")
    parser.add_argument("--only", default="", metavar="WORD", help="only kinds whose name holds this")
    parser.add_argument("--reports", action="store_true", help="reports of more processes and sessions instead")
    parser.add_argument("--tolerance", type=float, default=0.03, help="slowdown allowed")
    parser.add_argument("--record", type=Path, metavar="BUNDLE", help="record a series instead")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--out", type=Path, default=NOISE / "recorded.json")
    options = parser.parse_args(arguments)
    if options.record:
        record(options.record, options.minutes, options.out)
        return
    rules = CheckRules(latency_tolerance=options.tolerance)
    loose = CheckRules(latency_tolerance=0.10)
    kinds = (
        ("A/A, two bundles", paired, 0.0, rules.for_seconds(300)),
        ("+5 %, two bundles", paired, 0.05, rules.for_seconds(300)),
        ("+10 %, two bundles", paired, 0.10, rules.for_seconds(60)),
        ("A/A, saved report", saved, 0.0, loose.for_seconds(120)),
        ("+25 %, saved report", saved, 0.25, loose.for_seconds(120)),
        ("A/A, history", history, 0.0, loose.for_seconds(120)),
        ("+25 %, history", history, 0.25, loose.for_seconds(120)),
    )
    if options.reports:
        kinds = tuple(
            (
                f"{effect or 'A/A'}, {processes} in {sessions}",
                report_of(processes, sessions),
                planted,
                loose.for_seconds(120),
            )
            for processes, sessions in ((10, 1), (20, 1), (30, 1), (60, 1), (30, 3), (20, 5), (30, 5), (30, 10))
            for effect, planted in (("", 0.0), ("+25 %", 0.25))
        )
    series = [load_noise(path) for path in options.noise or sorted(NOISE.glob("*.json"))]
    for noise in (specified(), *series):
        print(f"{describe(noise)}; {options.checks} checks of each kind:")
        for name, check, effect, kept in kinds:
            if options.only not in name:
                continue
            passed, failed, unsure, seconds = rates(check, noise, effect, kept, options.checks)
            print(
                f"  {name:<20} allowed +{kept.latency_tolerance:.0%}, budget {kept.max_seconds:.0f} s: pass {passed:.1%}, "
                f"fail {failed:.1%}, inconclusive {unsure:.1%}; {seconds:.0f} s on average"
            )


if __name__ == "__main__":
    sys.exit(main())
