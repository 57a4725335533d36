"""What a classifier is trained for: one label a row, any number of labels, or numbers; its targets and its scores."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle.heads import ProblemType
from ..data import Examples
from ..errors import DataError, InputError
from ..report.answers import row_labels, row_numbers
from .leaks import row_keys

#: Each label needs this many rows in training and in validation; with fewer, macro F1 jumps by a third for a single row.
LEAST_ROWS = 2


@dataclass(frozen=True)
class Problem:
    """The kind of a training run, and its labels in id order."""

    kind: ProblemType
    labels: tuple[str, ...]

    def targets(self, rows: Examples) -> list[int] | list[float] | list[list[float]]:
        """What the head is to give for each row: a label's id, a 1 for each label that holds, or a number."""
        if self.kind == "regression":
            return [row_numbers(rows, row, 1)[0] for row in range(len(rows))]
        ids = {label: place for place, label in enumerate(self.labels)}
        if self.kind == "single_label_classification":
            return [ids[label] for label in rows.labels or ()]
        sets = [set(row_labels(rows, row)) for row in range(len(rows))]
        return [[float(label in mine) for label in self.labels] for mine in sets]

    @property
    def metric(self) -> tuple[str, bool]:
        """The score by which the best epoch is chosen, and whether more of it is better."""
        return ("mean_error", False) if self.kind == "regression" else ("macro_f1", True)

    @property
    def row_metric(self) -> str:
        """What :meth:`row_scores` gives of a row, and its mean of all."""
        return "mean_error" if self.kind == "regression" else "accuracy"

    def row_scores(
        self, logits: npt.NDArray[np.floating], targets: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.float64]:
        """Of each row of ``logits`` ``[rows, labels]``: 1 where its label or set is right, of numbers the absolute error."""
        if self.kind == "single_label_classification":
            return (logits.argmax(axis=-1) == targets).astype(np.float64)
        if self.kind == "multi_label_classification":
            return ((logits > 0) == (targets > 0.5)).all(axis=1).astype(np.float64)
        return np.abs(logits.reshape(-1).astype(np.float64) - targets.reshape(-1).astype(np.float64))

    def score(self, logits: npt.NDArray[np.floating], targets: npt.NDArray[np.floating]) -> dict[str, float]:
        """Scores of ``logits`` ``[rows, labels]`` against what :meth:`targets` gives.

        Of one label accuracy and macro F1; of several the share of rows whose set is right, and macro F1 over the labels; of
        numbers the mean absolute error, and Pearson's correlation (0 where one side does not vary).
        """
        if self.kind == "single_label_classification":
            return score(logits, targets)
        if self.kind == "multi_label_classification":
            chosen, right = logits > 0, targets > 0.5  # a probability above one half
            true = (chosen & right).sum(axis=0)
            either = chosen.sum(axis=0) + right.sum(axis=0)
            f1 = 2 * true[either > 0] / either[either > 0]
            return {
                "accuracy": float((chosen == right).all(axis=1).mean()),
                "macro_f1": float(f1.mean()) if f1.size else 1.0,
            }
        found, wanted = logits.reshape(-1).astype(np.float64), targets.reshape(-1).astype(np.float64)
        varies = found.std() > 0 and wanted.std() > 0
        return {
            "mean_error": float(np.abs(found - wanted).mean()),
            "correlation": float(np.corrcoef(found, wanted)[0, 1]) if varies else 0.0,
        }


def score(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> dict[str, float]:
    """Accuracy and macro F1 of ``logits`` ``[rows, labels]`` against label ids ``[rows]``.

    Macro F1 is the mean over the labels that occur in ``labels`` or are predicted, as scikit-learn computes it.
    """
    predicted = logits.argmax(axis=-1)
    f1 = []
    for label in np.union1d(labels, predicted):
        hits = int(((predicted == label) & (labels == label)).sum())
        f1.append(2 * hits / (int((predicted == label).sum()) + int((labels == label).sum())))
    return {"accuracy": float((predicted == labels).mean()), "macro_f1": float(np.mean(f1))}


def split_at_random(rows: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Training rows and ``fraction`` of them held out; equal inputs (text and pair) stay on one side."""
    if not 0 < fraction < 1:
        raise InputError(f"validation fraction must lie between 0 and 1, found {fraction}")
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, key in enumerate(row_keys(rows)):
        groups[key].append(row)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    take = max(LEAST_ROWS, round(len(order) * fraction))
    if len(order) - take < LEAST_ROWS:
        raise DataError(
            f"{rows.source or 'the given examples'}: {len(order)} distinct rows are too few to hold out {take} for validation "
            f"and train on {LEAST_ROWS}; add rows, or give a validation file"
        )
    held = sorted(row for group in order[:take] for row in group)
    return rows.select(sorted(row for group in order[take:] for row in group)), rows.select(held)


def problem_of(kind: ProblemType, train: Examples, held: Examples, column: str) -> Problem:
    """The problem that rows of several labels or of numbers make up.

    Raises:
        DataError: A row is not what ``kind`` takes, a label has too few rows, or numbers do not differ.
    """
    where = train.source or "the training rows"
    if kind == "regression":
        numbers = [row_numbers(train, row, 1)[0] for row in range(len(train))]
        for row in range(len(held)):
            row_numbers(held, row, 1)
        if len(set(numbers)) < 2:
            raise DataError(
                f"{where}: all {len(numbers)} rows have the number {numbers[0]:g}. Is the label column the right one?"
            )
        return Problem(kind, (column,))
    sides = [
        Counter(label for row in range(len(each)) for label in set(row_labels(each, row))) for each in (train, held)
    ]
    seen, validated = sides
    if unseen := sorted(set(validated) - set(seen)):
        raise DataError(
            f"{held.source or 'the validation rows'}: label(s) {unseen} are not among the training labels {sorted(seen)}"
        )
    if few := sorted(label for label in seen if seen[label] < LEAST_ROWS):
        raise DataError(f"{where}: label(s) {few} have fewer than {LEAST_ROWS} rows")
    if not seen:
        raise DataError(f"{where}: no row has a label. Is the label column the right one?")
    return Problem(kind, _sorted(seen))


def _sorted(labels: Sequence[str] | Counter[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=int))
    except ValueError:
        return tuple(sorted(labels))
