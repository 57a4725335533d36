"""Accuracy of a candidate: against the target's floors, and paired with a baseline on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..bundle import head_of
from ..bundle.manifest import Manifest
from ..data import Examples
from ..errors import InputError, MeasureError
from ..report.accuracy import NO_LABEL, Accuracy, Beside
from ..report.answers import expected_answers, given_answers, require_labels
from ..report.gate import Gate, Verdict
from ..targets import CheckRules
from .gates import floor_gate
from .stats import mcnemar, paired_drop, wilson

#: Whether each row is answered right: of a bundle folder, variant, adapter (``None``: the base) and examples. ``None`` for a
#: row whose outputs are not finite numbers: that is no answer.
Correct = Callable[[Path, str, str | None, Examples], Sequence[bool | None]]


def predict_correct(bundle: Path, variant: str, adapter: str | None, examples: Examples) -> list[bool | None]:
    """Run the examples' texts through the bundle's classifier and compare labels."""
    from .. import runtime

    model = runtime.open(bundle, variant=variant)
    model.use(adapter)
    if examples.labels is None:
        raise InputError(f"{examples.source or 'the examples'}: accuracy needs labels")
    texts = examples.texts if examples.pairs is None else tuple(zip(examples.texts, examples.pairs, strict=True))
    logits = model.logits(texts)
    head, width = model.view.active.head, logits.shape[-1]
    require_labels(head, width, adapter or "the base")
    return answers(given_answers(logits, head), expected_answers(examples, head, width))


def answers(chosen: np.ndarray, expected: np.ndarray) -> list[bool | None]:
    """Whether each answer is the expected one; ``None`` for one that is :data:`NO_LABEL`."""
    pairs = zip(chosen, expected, strict=True)
    return [None if np.any(mine == NO_LABEL) else bool(np.all(mine == right)) for mine, right in pairs]


def check_labels(manifest: Manifest, data: Mapping[str, Examples], adapters: Sequence[str | None]) -> None:
    """Refuse rows with a label that the adapter they are for does not know, before anything is measured.

    Args:
        manifest: The bundle's.
        data: Rows by adapter name, ``"*"`` for every other adapter and the base.
        adapters: Those that are judged.

    Raises:
        DataError: Names the first such row.
    """
    for adapter in adapters:
        rows = data.get(adapter or "*", data.get("*"))
        head = head_of(manifest, adapter)
        if rows is not None and rows.labels is not None and head.labels is not None:
            expected_answers(rows, head, len(head.labels))


def check_accuracy(
    candidate: Path,
    baseline: Path | None,
    cases: Sequence[tuple[str, str | None]],
    data: Mapping[str, Examples],
    floors: Mapping[str | None, float | None],
    rules: CheckRules,
    correct: Correct,
) -> tuple[tuple[Accuracy, ...], tuple[Gate, ...]]:
    """Measure every (variant, adapter) of ``cases`` that ``data`` has examples for, and judge it.

    ``data`` is keyed by adapter name, ``"*"`` serving every other adapter and the base. Against the baseline a case
    fails when the whole interval of the drop, Bonferroni corrected for the number of cases, is above
    ``rules.accuracy_tolerance``, and passes when the plain interval is below it.
    """
    chosen = [(v, a, rows) for v, a in cases if (rows := data.get(a or "*", data.get("*"))) is not None]
    results: list[Accuracy] = []
    gates: list[Gate] = []
    for variant, adapter, examples in chosen:
        name = f"{variant}/{adapter or '(base)'}"
        right, missing = _answers(correct, candidate, variant, adapter, examples)
        interval = wilson(sum(right), len(right), rules.confidence)
        found = Accuracy(
            adapter=adapter,
            variant=variant,
            rows=len(right),
            hits=sum(right),
            data=examples.source,
            not_finite=missing,
            bounds=(interval.lower, interval.upper),
        )
        if missing:
            gates.append(Gate.holds(f"finite outputs {name}", False, found.broken))
        if (floor := floors.get(adapter)) is not None:
            gates.append(floor_gate(f"accuracy {name}", sum(right), len(right), floor, rules.confidence))
        if baseline is not None:
            before, _ = _answers(correct, baseline, variant, adapter, examples)
            beside, gate = _compare(name, before, right, rules, len(chosen))
            found = replace(found, baseline=beside)
            gates.append(gate)
        results.append(found)
    return tuple(results), tuple(gates)


def _answers(
    correct: Correct, bundle: Path, variant: str, adapter: str | None, examples: Examples
) -> tuple[list[bool], int]:
    """Whether each row is right, and how many have outputs that are not finite numbers: these are not right."""
    found = list(correct(bundle, variant, adapter, examples))
    if len(found) != len(examples) or not found:
        raise MeasureError(f"{len(found)} answers for {len(examples)} examples of {adapter or 'the base'} in {bundle}")
    return [answer is True for answer in found], sum(answer is None for answer in found)


def _compare(
    name: str, before: Sequence[bool], after: Sequence[bool], rules: CheckRules, cases: int
) -> tuple[Beside, Gate]:
    plain = paired_drop(before, after, rules.confidence)
    strict = paired_drop(before, after, 1 - (1 - rules.confidence) / cases)
    bounds = (strict.lower, plain.upper)
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    p_value = mcnemar(lost, won)
    detail = (
        f"{lost} rows lost, {won} won of {len(after)}; interval {bounds[0]:+.3f} to {bounds[1]:+.3f}, "
        f"McNemar p {p_value:.2g}"
    )
    gate = Gate.within(f"accuracy drop {name}", plain.estimate, bounds, rules.accuracy_tolerance, "share", detail)
    if gate.verdict is Verdict.INCONCLUSIVE and not lost and not won:
        gate = replace(gate, detail=f"{detail}; no row differs, but these are too few rows to rule a larger drop out")
    return Beside(hits=sum(before), drop=plain.estimate, drop_bounds=bounds, p_value=p_value), gate
