"""What rows should be answered and what logits answer, for each kind of head: a label, a set of labels, numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..bundle import Head
from ..data import Examples
from ..errors import DataError, InputError
from ..runtime.predictions import THRESHOLD, scores
from ..strict_json import parse_json
from .accuracy import NO_LABEL, chosen_labels

#: What may stand between several labels of a row.
_SEPARATORS = "|;,"


def expected_answers(examples: Examples, head: Head, width: int) -> np.ndarray:
    """What each row should be answered, by its label column.

    Args:
        examples: Rows with labels. Labels are names, or numbers from 0 on where no row has a name.
        head: The head that answers.
        width: How many outputs it has.

    Returns:
        ``[rows]`` positions of labels. Of a multi-label head ``[rows, labels]``, 1 where a label holds: a row is ``a,b``, a JSON
        list of labels, or a list of as many 0 and 1 as there are labels. Of a head of numbers ``[rows, outputs]``.

    Raises:
        DataError: Names the row, and what its label is not.
    """
    if examples.labels is None:
        raise DataError(f"{examples.source} was read without labels")
    names = head.names(width)
    match head.kind(width):
        case "regression":
            return np.array([row_numbers(examples, row, width) for row in range(len(examples))])
        case "multi_label_classification":
            sets = [row_labels(examples, row) for row in range(len(examples))]
            places = _places(names, [label for each in sets for label in each])
            return np.array([_vector(examples, row, each, places, width) for row, each in enumerate(sets)])
        case _:
            places = _places(names, examples.labels)
            unknown = next((row for row, label in enumerate(examples.labels) if label not in places), None)
            if unknown is not None:
                raise _unknown(examples, unknown, examples.labels[unknown], names)
            return np.array([places[label] for label in examples.labels])


def given_answers(logits: np.ndarray, head: Head) -> np.ndarray:
    """What logits ``[rows, labels]`` answer, in the form of :func:`expected_answers`; ``NO_LABEL`` where a row is not finite.

    Of a head of numbers the largest output's position, which says that two runs agree, and nothing of being right.
    """
    if head.kind(logits.shape[-1]) != "multi_label_classification":
        return chosen_labels(logits)
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    chosen = scores(np.where(finite, logits, 0.0).astype(np.float64), head) > THRESHOLD
    return np.where(finite, chosen.astype(np.int64), NO_LABEL)


def number_error(logits: np.ndarray, expected: np.ndarray, head: Head) -> float:
    """The mean absolute difference of a head's numbers, after its activation, from ``expected`` ``[rows, outputs]``."""
    return float(np.abs(scores(logits.astype(np.float64), head) - expected).mean())


def require_labels(head: Head, width: int, what: str) -> None:
    """:class:`InputError` for a head of numbers, which has no right answers to count."""
    if head.kind(width) == "regression":
        raise InputError(
            f"{what} gives numbers, which are not right or wrong: accuracy cannot be counted. `edgepeft validate --data` says "
            "how far they are from the data's"
        )


def _places(names: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    places = {name: place for place, name in enumerate(names)}
    named = any(label in places for label in labels)
    return places if named else {str(place): place for place in range(len(names))}


def row_labels(examples: Examples, row: int) -> list[str]:
    """The labels of a row of several: ``a,b``, ``a|b``, ``a;b`` or a JSON list."""
    text = (examples.labels or ())[row]
    if text.startswith("["):
        value = parse_json(text, examples.where(row), error=DataError, advice='write ["a", "b"]')
        if isinstance(value, list):
            return [str(each) for each in value]
    separator = next((each for each in _SEPARATORS if each in text), None)
    return [part.strip() for part in text.split(separator)] if separator else [text]


def _vector(examples: Examples, row: int, parts: list[str], places: dict[str, int], width: int) -> list[int]:
    if len(parts) == width > 1 and set(parts) <= {"0", "1"} and (examples.labels or ())[row].startswith("["):
        return [int(part) for part in parts]
    unknown = next((part for part in parts if part not in places), None)
    if unknown is not None:
        raise _unknown(examples, row, unknown, list(places))
    mine = {places[part] for part in parts}
    return [int(place in mine) for place in range(width)]


def row_numbers(examples: Examples, row: int, width: int) -> list[float]:
    """The ``width`` numbers that a row has for labels; :class:`DataError` names a row that has others."""
    try:
        numbers = [float(part) for part in row_labels(examples, row)]
    except ValueError:
        numbers = []
    if len(numbers) != width or not np.isfinite(numbers).all():
        raise DataError(
            f"{examples.where(row)}: label {(examples.labels or ())[row]!r:.60} is not "
            f"{'a number' if width == 1 else f'{width} numbers'}, which is what this head gives"
        )
    return numbers


def _unknown(examples: Examples, row: int, label: str, names: Sequence[str]) -> DataError:
    return DataError(
        f"{examples.where(row)}: label {label!r} is not one of the adapter's: {', '.join(names)} (or 0 to {len(names) - 1}). Names "
        "are given by: edgepeft relabel BUNDLE --labels NAME=a,b,…"
    )
