"""``check``: is a candidate slower or less accurate than a baseline? Pass, fail or inconclusive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from pydantic import field_serializer

from ..bundle import read_bundle, rereading
from ..data import Examples
from ..errors import InputError
from ..report.accuracy import Accuracy, Beside
from ..report.gate import Gate, Verdict, overall
from ..report.partial import Keep, keep_nothing
from ..spelling import did_you_mean
from ..targets import CheckRules, Shape, Target, load_target
from ..worker.job import Case, Host, Job, Model, Sampling, WorkerResult
from ..worker.process import Runner, run_worker
from .accuracy import Correct, check_accuracy, check_labels, predict_correct
from .baseline import baseline_bundle
from .gates import budget_gates
from .history import is_history
from .interleave import CaseCheck, Checked, interleave
from .measure import Plan, Progress, make_plan, require_host, require_runtime, silent
from .result import BenchResult, BundleFacts, summarise
from .sessions import against_saved, report_notes, saved_history, saved_report

#: A check wants many short processes, not long ones: the process is the unit of replication.
CHECK_SAMPLING = Sampling(warmup_s=0.05, measure_s=0.25, min_iterations=6)


class CheckResult(Model):
    """A candidate against a baseline. ``candidate`` is its own measurement, from the same processes."""

    schema_version: Literal[1] = 1
    kind: Literal["check"] = "check"
    target: str
    rules: CheckRules
    #: ``True``: interleaved A B B A rounds. ``False``: against a saved report.
    paired: bool
    baseline: BundleFacts
    candidate: BenchResult
    cases: tuple[CaseCheck, ...]
    accuracy: tuple[Accuracy, ...]
    gates: tuple[Gate, ...]
    notes: tuple[str, ...]
    seconds: float

    @field_serializer("accuracy")
    def _accuracy(self, rows: tuple[Accuracy, ...]) -> list[dict[str, Any]]:
        return [_accuracy_json(row) for row in rows]

    @property
    def verdict(self) -> Verdict:
        """``fail`` if any gate fails, else ``inconclusive`` if any is, else ``pass``."""
        return overall(gate.verdict for gate in self.gates)


def _accuracy_json(row: Accuracy) -> dict[str, Any]:
    beside = row.baseline or Beside()
    lower, upper = row.bounds or (None, None)
    drop_lower, drop_upper = beside.drop_bounds or (None, None)
    return {
        "variant": row.variant,
        "adapter": row.adapter,
        "rows": row.rows,
        "accuracy": row.accuracy,
        "lower": lower,
        "upper": upper,
        "baseline_accuracy": row.baseline_accuracy,
        "drop": beside.drop,
        "drop_lower": drop_lower,
        "drop_upper": drop_upper,
        "p_value": beside.p_value,
        "not_finite": row.not_finite,
    }


@rereading
def check(
    bundle: str | Path,
    baseline: str | Path,
    target: str | Path | Target,
    *,
    adapters: Sequence[str | None] | None = None,
    variants: Sequence[str] | None = None,
    shapes: Sequence[str | Shape] | None = None,
    threads: int | None = None,
    data: Mapping[str, Examples] | None = None,
    correct: Correct = predict_correct,
    rules: CheckRules | None = None,
    sampling: Sampling = CHECK_SAMPLING,
    runner: Runner = run_worker,
    progress: Progress = silent,
    keep: Keep = keep_nothing,
) -> CheckResult:
    """Compare a bundle with a baseline: is it slower or less accurate?

    Latency is judged for each variant, adapter and shape that both have; those that were asked for must be in both. The bundle's
    own numbers are judged against the target's budgets. A gate that fails is a result, no exception.

    Args:
        bundle: The candidate's folder.
        baseline: A bundle's folder, a ``.json`` that ``bench`` saved on this host, or a history that it keeps (its last
            runs of this class of host are the baseline).
        target: A target, its name, or the path of a target file.
        adapters: Which adapters, ``None`` for the base; by default every adapter.
        variants: Which variants; by default the target's preferred ones that the bundle has.
        shapes: Input shapes as ``"1x128"`` (rows x tokens); by default those with a latency budget.
        threads: ONNX Runtime's intra-op threads; by default the target's.
        data: Labelled rows by adapter (``"*"``: the others and the base). Accuracy is judged against the target's floors and
            the baseline.
        correct: Says of each row whether it is answered right.
        rules: Take the place of the target's ``[check]`` table.
        sampling: How long each case is measured, in seconds and runs.
        runner: What runs a job in a process.
        progress: Is called with jobs done, jobs in all, and what was done.
        keep: Is given a function of no arguments after each round: the result of all so far, ``None`` before the first.

    Returns:
        The gates, what was measured, and a verdict: pass, fail or inconclusive.

    Raises:
        InputError: Something that was asked for is missing, there is no such baseline, or it is saved and of another host.
        TargetError: The target cannot be measured on this machine.
        MeasureError: A process failed.

    Example:
        >>> check("bundle", "last-release", "linux-x64-cpu").verdict
        'pass'
    """
    target = target if isinstance(target, Target) else load_target(target)
    rules = rules or target.check
    require_host(target, runner)
    start = monotonic()
    opened = read_bundle(bundle)
    for name in data or {}:
        if name != "*" and name not in opened.manifest.adapters:
            close = did_you_mean(name, opened.manifest.adapters)
            raise InputError(f"data was given for {name!r}, which is no adapter of {opened.path}{close}")
    asked = adapters is not None, variants is not None, shapes is not None
    plan = make_plan(opened.manifest, target, adapters, variants, shapes, threads)
    check_labels(opened.manifest, data or {}, [case.adapter for case in plan.cases])
    reference = baseline_bundle(baseline)
    run = _checking(runner, target)
    facts = BundleFacts.of(opened.path, opened.manifest)
    accuracy: tuple[Accuracy, ...] = ()
    accuracy_gates: tuple[Gate, ...] = ()

    def made(checked: Checked) -> CheckResult:
        """The result of what was measured so far."""
        runs, cases = checked
        measured = summarise(facts, target.name, sampling, runs)
        return CheckResult(
            target=target.name,
            rules=rules,
            paired=reference is not None,
            baseline=base_facts,
            candidate=measured,
            cases=cases,
            accuracy=accuracy,
            gates=(*(case.gate(rules) for case in cases), *budget_gates(measured, target), *accuracy_gates),
            notes=tuple(notes),
            seconds=monotonic() - start,
        )

    def keep_checked(make: Callable[[], Checked]) -> None:
        keep(lambda: made(make()))

    if reference is not None:
        other = reference.manifest
        plan, notes = _shared(plan, asked, lambda v, c: v in other.variants and c.adapter in (None, *other.adapters))
        base_facts = BundleFacts.of(reference.path, other)
        keep(lambda: None)
        checked = interleave(opened.path, reference.path, plan, rules, sampling, run, progress, keep_checked)
    else:
        if is_history(baseline):
            saved = saved_history(Path(baseline), _host_of(run, opened.path, plan, sampling), target.name)
        else:
            saved = saved_report(Path(baseline))
        by_key = {(c.variant, c.adapter, c.shape): c for c in saved.last.cases}
        plan, notes = _shared(plan, asked, lambda v, c: (v, c.adapter, c.label) in by_key)
        base_facts = saved.last.bundle
        keep(lambda: None)
        checked = against_saved(opened.path, facts, saved, plan, rules, sampling, run, progress, keep_checked)
        notes += report_notes(saved, target.name, sampling, data=bool(data))
    known = "" if reference is not None else ", where sessions drift as they are taken to"
    notes.append(
        f"false alarms: a bundle that is as fast as the baseline fails in at most {(1 - rules.confidence) / 2:.1%} of checks, "
        f"all looks and cases together{known}"
    )
    if base_facts.base_identity != opened.manifest.base.identity:
        notes.append("the two bundles have different bases: their weights are not the same")
    chosen = [case.adapter for case in plan.cases]
    floors = {adapter: target.floor(adapter) for adapter in chosen}
    if not data and any(floor is not None for floor in floors.values()):
        notes.append("the target's accuracy floors were not judged: no data was given")
    accuracy, accuracy_gates = check_accuracy(
        opened.path,
        None if reference is None else reference.path,
        [(variant, adapter) for variant in plan.variants for adapter in dict.fromkeys(chosen)],
        data or {},
        floors,
        rules,
        correct,
    )
    return made(checked)


def _host_of(run: Runner, path: Path, plan: Plan, sampling: Sampling) -> Host:
    """The host that measures, from a process that measures nothing."""
    return run(plan.job(path, plan.variants[0], sampling).model_copy(update={"cases": ()})).host


def _checking(runner: Runner, target: Target) -> Runner:
    """``runner``, refusing results from an ONNX Runtime that is too old for the target."""

    def run(job: Job) -> WorkerResult:
        result = runner(job)
        require_runtime(target, result)
        return result

    return run


def _shared(plan: Plan, asked: tuple[bool, bool, bool], known: Callable[[str, Case], bool]) -> tuple[Plan, list[str]]:
    """The part of ``plan`` that the baseline has too, and a note on what was left out.

    :class:`InputError` where nothing is left, or where something that was asked for by name is not in the baseline.
    """
    variants = tuple(v for v in plan.variants if any(known(v, c) for c in plan.cases))
    cases = tuple(c for c in plan.cases if variants and all(known(v, c) for v in variants))
    if not cases:
        raise InputError("the baseline has none of the variants, adapters and shapes to be compared")
    notes: list[str] = []
    for kind, was_asked, had, has in (
        ("adapter", asked[0], {c.adapter or "(base)" for c in plan.cases}, {c.adapter or "(base)" for c in cases}),
        ("variant", asked[1], set(plan.variants), set(variants)),
        ("shape", asked[2], {c.label for c in plan.cases}, {c.label for c in cases}),
    ):
        if missing := ", ".join(sorted(had - has)):
            if was_asked:
                raise InputError(f"{kind} {missing} is not in the baseline")
            notes.append(f"not compared, because not in the baseline: {kind} {missing}")
    return replace(plan, variants=variants, cases=cases), notes
