"""Accuracy of a candidate: against the target's floors, and paired with a baseline on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..data import Examples
from ..errors import InputError, MeasureError
from ..report.gate import Gate, Verdict
from ..targets import CheckRules
from ..worker.job import Model
from .gates import floor_gate
from .stats import Interval, judge, mcnemar, paired_drop, wilson

#: Whether each row is answered right: of a bundle folder, variant, adapter (``None``: the base) and examples.
Correct = Callable[[Path, str, str | None, Examples], Sequence[bool]]


class AccuracyCheck(Model):
    """Accuracy of one variant and adapter, as shares 0 … 1 with two-sided Wilson bounds.

    The baseline's numbers are ``None`` where it is a saved report. ``drop`` is the baseline's accuracy minus the
    candidate's on the same rows, with the bounds it was judged by; ``p_value`` is McNemar's, exact.
    """

    variant: str
    adapter: str | None
    rows: int
    accuracy: float
    lower: float
    upper: float
    baseline_accuracy: float | None = None
    drop: float | None = None
    drop_lower: float | None = None
    drop_upper: float | None = None
    p_value: float | None = None


def predict_correct(bundle: Path, variant: str, adapter: str | None, examples: Examples) -> list[bool]:
    """Run the examples' texts through the bundle's classifier and compare labels."""
    from .. import runtime

    model = runtime.open(bundle, variant=variant)
    model.use(adapter)
    if examples.labels is None:
        raise InputError(f"{examples.source or 'the examples'}: accuracy needs labels")
    known = set(model.labels or examples.labels)
    unknown = next((row for row, label in enumerate(examples.labels) if label not in known), None)
    if unknown is not None:
        raise InputError(
            f"{examples.where(unknown)}: label {examples.labels[unknown]!r} is none of {adapter or 'the base'}'s labels: "
            f"{', '.join(model.labels or ())}"
        )
    texts = examples.texts if examples.pairs is None else tuple(zip(examples.texts, examples.pairs, strict=True))
    return [p.label == label for p, label in zip(model.predict(texts), examples.labels, strict=True)]


def check_accuracy(
    candidate: Path,
    baseline: Path | None,
    cases: Sequence[tuple[str, str | None]],
    data: Mapping[str, Examples],
    floors: Mapping[str | None, float | None],
    rules: CheckRules,
    correct: Correct,
) -> tuple[tuple[AccuracyCheck, ...], tuple[Gate, ...]]:
    """Measure every (variant, adapter) of ``cases`` that ``data`` has examples for, and judge it.

    ``data`` is keyed by adapter name, ``"*"`` serving every other adapter and the base. Against the baseline a case
    fails when the whole interval of the drop, Bonferroni corrected for the number of cases, is above
    ``rules.accuracy_tolerance``, and passes when the plain interval is below it.
    """
    chosen = [(v, a, rows) for v, a in cases if (rows := data.get(a or "*", data.get("*"))) is not None]
    results: list[AccuracyCheck] = []
    gates: list[Gate] = []
    for variant, adapter, examples in chosen:
        name = f"{variant}/{adapter or '(base)'}"
        right = _answers(correct, candidate, variant, adapter, examples)
        interval = wilson(sum(right), len(right), rules.confidence)
        found = AccuracyCheck(
            variant=variant,
            adapter=adapter,
            rows=len(right),
            accuracy=interval.estimate,
            lower=interval.lower,
            upper=interval.upper,
        )
        if (floor := floors.get(adapter)) is not None:
            gates.append(floor_gate(f"accuracy {name}", sum(right), len(right), floor, rules.confidence))
        if baseline is not None:
            before = _answers(correct, baseline, variant, adapter, examples)
            found, gate = _compare(name, found, before, right, rules, len(chosen))
            gates.append(gate)
        results.append(found)
    return tuple(results), tuple(gates)


def _answers(correct: Correct, bundle: Path, variant: str, adapter: str | None, examples: Examples) -> list[bool]:
    answers = list(correct(bundle, variant, adapter, examples))
    if len(answers) != len(examples) or not answers:
        raise MeasureError(
            f"{len(answers)} answers for {len(examples)} examples of {adapter or 'the base'} in {bundle}"
        )
    return answers


def _compare(
    name: str, found: AccuracyCheck, before: Sequence[bool], after: Sequence[bool], rules: CheckRules, cases: int
) -> tuple[AccuracyCheck, Gate]:
    plain = paired_drop(before, after, rules.confidence)
    strict = paired_drop(before, after, 1 - (1 - rules.confidence) / cases)
    bounds = Interval(plain.estimate, strict.lower, plain.upper, rules.confidence)
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    p_value = mcnemar(lost, won)
    verdict: Verdict = judge(bounds, rules.accuracy_tolerance)
    found = found.model_copy(
        update={
            "baseline_accuracy": sum(before) / len(before),
            "drop": bounds.estimate,
            "drop_lower": bounds.lower,
            "drop_upper": bounds.upper,
            "p_value": p_value,
        }
    )
    detail = (
        f"{lost} rows lost, {won} won of {len(after)}; interval {bounds.lower:+.3f} to {bounds.upper:+.3f}, "
        f"McNemar p {p_value:.2g}"
    )
    if verdict is Verdict.INCONCLUSIVE and not lost and not won:
        detail += "; no row differs, but these are too few rows to rule a larger drop out"
    return found, Gate(f"accuracy drop {name}", verdict, bounds.estimate, rules.accuracy_tolerance, "share", detail)
