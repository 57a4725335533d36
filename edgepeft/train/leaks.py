"""Rows that stand on both sides of a split, or twice with different labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ..data import Examples
from ..errors import DataError

#: Beyond this share of the training rows a leak is no accident: most likely one file was given twice.
_MOST_LEAKED = 0.5


def text_key(text: str, pair: str = "") -> tuple[str, str]:
    """What counts as the same input: case and white space make no difference."""
    return " ".join(text.casefold().split()), " ".join(pair.casefold().split())


def row_keys(rows: Examples) -> list[tuple[str, str]]:
    """:func:`text_key` of every row."""
    return [text_key(text, rows.pairs[row] if rows.pairs else "") for row, text in enumerate(rows.texts)]


def without_leaks(train: Examples, held: Examples) -> tuple[Examples, int]:
    """``train`` without the rows whose input is also in ``held``, and how many those were.

    Raises:
        DataError: More than half of the training rows are validation rows too.
    """
    known = set(row_keys(held))
    kept = [row for row, key in enumerate(row_keys(train)) if key not in known]
    leaked = len(train) - len(kept)
    check_leaks(leaked, len(train), train.source, held.source)
    return (train.select(kept), leaked) if leaked else (train, 0)


def check_leaks(leaked: int, rows: int, source: str, held_source: str) -> None:
    """:class:`DataError` where so many training rows are also validation rows that a score would say nothing."""
    if leaked > _MOST_LEAKED * rows:
        raise DataError(
            f"{leaked} of the {rows} training rows of {source or 'the given examples'} have the same text as a validation row of "
            f"{held_source or 'the given examples'}; a score on rows that were learnt says nothing. Give other rows to measure "
            "on, or leave the validation file out: rows are then held out of the data"
        )


def leak_warning(leaked: int) -> str:
    """What is said of rows that :func:`without_leaks` removed."""
    return (
        f"{leaked} training row{'s' if leaked != 1 else ''} had the same text as a validation row and "
        f"{'were' if leaked != 1 else 'was'} not trained on"
    )


def contradictions(rows: Examples, labels: Sequence[str]) -> int:
    """How many inputs occur with more than one label."""
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for key, label in zip(row_keys(rows), labels, strict=True):
        seen[key].add(label)
    return sum(len(found) > 1 for found in seen.values())
