"""Several sources in the place of one: which validation rows are whose, labels that must be the same, and rows put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ..bundle.heads import ProblemType
from ..data import Examples
from ..errors import DataError, InputError
from ..report.answers import row_labels

#: Rows of one source: a file, a ``datasets`` id or folder, or objects.
Rows = str | Path | Examples
R = TypeVar("R", "str | Path", "str | Path | Examples")

#: The source of validation rows that are of no source alone.
COMMON = -1
#: Labels that a message names.
_MOST_NAMED = 5


def listed(data: R | Sequence[R]) -> tuple[R, ...]:
    """Several sources as they were given, or the one that was."""
    if isinstance(data, str | Path | Examples):
        return (data,)
    return tuple(data)


def names_of(sources: Sequence[Rows]) -> tuple[str, ...]:
    """What tables and records call each source."""
    return tuple(
        (each.source or f"rows {number}") if isinstance(each, Examples) else str(each)
        for number, each in enumerate(sources, 1)
    )


def check_sources(data: Sequence[object], validation: Sequence[object]) -> None:
    """Refuse sources that are none, or twice the same, and validation rows of which it is not clear whose they are.

    Raises:
        InputError: What is wrong, and how it is to be called.
    """
    if not data:
        raise InputError("no rows to train on were given: --data FILE")
    for what, given in (("--data", data), ("--validation", validation)):
        files = [Path(each).resolve() for each in given if isinstance(each, str | Path)]
        if twice := next((file for file in files if files.count(file) > 1), None):
            raise InputError(f"{what} {twice} is given twice; to draw from a source more often see --mix-temperature")
    if len(validation) > 1 and len(validation) != len(data):
        raise InputError(
            f"--validation is given {len(validation)} times and --data {len(data)} times: give one for each --data in their order, "
            "one for all of them, or none"
        )


def check_same_labels(rows: Sequence[Examples], names: Sequence[str], problem_type: ProblemType) -> None:
    """Refuse sources whose labels differ: one head learns from all, and a label that a source lacks is learnt to be wrong there.

    Raises:
        DataError: The labels of two sources differ; it names both and what differs.
    """
    if problem_type == "regression":
        return
    found = [_label_set(each, problem_type) for each in rows]
    for name, mine in zip(names[1:], found[1:], strict=True):
        if mine != found[0]:
            told = [
                f"{has} has {_named(extra)}, which {lacks} lacks"
                for has, lacks, extra in ((names[0], name, found[0] - mine), (name, names[0], mine - found[0]))
                if extra
            ]
            raise DataError(
                f"the labels of the sources differ, and one adapter learns from all of them: {'; '.join(told)}. Give both the same "
                "labels, or leave the rows of others out"
            )


def _label_set(rows: Examples, problem_type: ProblemType) -> set[str]:
    if problem_type == "single_label_classification":
        return set(rows.labels or ())
    return {label for row in range(len(rows)) for label in row_labels(rows, row)}


def _named(labels: set[str]) -> str:
    some = ", ".join(map(repr, sorted(labels)[:_MOST_NAMED]))
    return some if len(labels) <= _MOST_NAMED else f"{some} and {len(labels) - _MOST_NAMED} more"


def joined(parts: Sequence[Examples]) -> Examples:
    """Rows of several sources, one after the other; a single one as it is.

    Raises:
        DataError: Some have pairs and some have not.
    """
    if len(parts) == 1:
        return parts[0]
    if len({part.pairs is None for part in parts}) > 1:
        raise DataError("some sources have pairs of texts and some single ones; --pair must be there in all or none")
    return Examples(
        texts=tuple(text for part in parts for text in part.texts),
        labels=tuple(label for part in parts for label in part.labels or ()),
        pairs=None if parts[0].pairs is None else tuple(pair for part in parts for pair in part.pairs or ()),
        source=", ".join(dict.fromkeys(part.source for part in parts if part.source)),
    )


def places_of(parts: Sequence[Examples]) -> tuple[int, ...]:
    """The number of the source of each row of :func:`joined`; empty for a single source."""
    return () if len(parts) == 1 else tuple(number for number, part in enumerate(parts) for _ in range(len(part)))
