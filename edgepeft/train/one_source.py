"""One source of labelled rows: reading it, and holding some of its rows out."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bundle.heads import ProblemType
from ..data import Examples, read_examples
from ..data_files import is_row_file
from ..errors import DataError, InputError
from .data_sets import load_dataset, rows_from
from .group_split import group_split
from .leaks import row_keys, without_leaks
from .problem import split_at_random

#: Each label needs this many rows in validation; with fewer, macro F1 jumps by a third for a single row.
MIN_VALIDATION_ROWS = 2


@dataclass(frozen=True)
class SourceRows:
    """What a source holds: its rows, those that it sets apart for validation, and label names where it declares them."""

    rows: Examples
    validation: Examples | None = None
    names: tuple[str, ...] | None = None


def read_source(
    data: str | Path | Examples, *, text: str, label: str, pair: str | None, split: str = "train"
) -> SourceRows:
    """The rows of ``data``: a file, a ``datasets`` id or folder (its ``split``), or rows given as objects.

    Raises:
        DataError: A row is wrong, or rows have no labels.
    """
    if isinstance(data, Examples):
        found = SourceRows(data)
    else:
        path = Path(data)
        if is_row_file(path):
            found = SourceRows(read_examples(path, text=text, label=label, pair=pair))
        else:
            found = _of_data_set(data, text, label, pair, split)
    for examples in (found.rows, found.validation):
        if examples is not None and examples.labels is None:
            raise DataError(f"{examples.source or 'the given examples'}: rows without labels cannot be trained on")
    return found


def _of_data_set(data: str | Path, text: str, label: str, pair: str | None, split: str) -> SourceRows:
    splits = load_dataset(data)
    if split not in splits and len(splits) > 1:
        raise DataError(f"data set {data}: no split {split!r}; it has {', '.join(splits)}")
    main = splits[split] if split in splits else next(iter(splits.values()))
    rows, names = rows_from(main, str(data), text, label, pair)
    held = None
    if split == "train" and "validation" in splits and main is not splits["validation"]:
        held, _ = rows_from(splits["validation"], f"{data} (validation)", text, label, pair)
    return SourceRows(rows, held, names)


def split_rows(
    source: SourceRows,
    *,
    fraction: float,
    seed: int,
    problem_type: ProblemType,
    groups: Sequence[str] | None = None,
) -> tuple[Examples, Examples, int]:
    """Training rows, those to measure on, and how many of the former were left out since the latter hold them too.

    Measured on are the source's own validation rows, else whole ``groups`` of some ``fraction`` of the rows, else that fraction:
    of each label, of several labels or numbers at random.

    Raises:
        DataError: There are too few rows, or more than half of them are validation rows.
        InputError: The fraction is none.
    """
    if source.validation is not None and groups is None:
        train, leaked = without_leaks(source.rows, source.validation)
        return train, source.validation, leaked
    one = problem_type == "single_label_classification"
    if groups is not None:
        train, held = group_split(source.rows, groups, fraction, seed, stratified=one)
        train, leaked = without_leaks(train, held)
        return train, held, leaked
    return (*(stratified_split if one else split_at_random)(source.rows, fraction, seed), 0)


def stratified_split(rows: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Training and validation rows; each label gives ``fraction`` of its rows (at least two) to validation.

    Equal inputs (text and pair, but for case and white space) stay on one side, so that validation never repeats a training row.
    """
    if not 0 < fraction < 1:
        raise InputError(f"validation fraction must lie between 0 and 1, found {fraction}")
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, key in enumerate(row_keys(rows)):
        groups[key].append(row)
    by_label: dict[str, list[list[int]]] = defaultdict(list)
    for group in groups.values():
        by_label[labels_of(rows)[group[0]]].append(group)
    if len(by_label) < 2:
        raise _one_label(rows, next(iter(by_label), ""))
    generator = random.Random(seed)
    train: list[int] = []
    held: list[int] = []
    for name in sorted(by_label):
        mine = by_label[name]
        take = max(MIN_VALIDATION_ROWS, round(len(mine) * fraction))
        if len(mine) - take < MIN_VALIDATION_ROWS:
            raise DataError(
                f"{rows.source or 'the given examples'}: label {name!r} has {len(mine)} distinct row(s), too few to "
                f"hold out {take} for validation and train on at least {MIN_VALIDATION_ROWS}: {_needed(fraction)} are needed. "
                "Add rows of it, lower the validation fraction, or give a validation file."
            )
        generator.shuffle(mine)
        held += [row for group in mine[:take] for row in group]
        train += [row for group in mine[take:] for row in group]
    return rows.select(sorted(train)), rows.select(sorted(held))


def _needed(fraction: float) -> int:
    """The fewest rows of a label that leave enough on both sides."""
    rows = 2 * MIN_VALIDATION_ROWS
    while rows - max(MIN_VALIDATION_ROWS, round(rows * fraction)) < MIN_VALIDATION_ROWS:
        rows += 1
    return rows


def _one_label(rows: Examples, label: str) -> DataError:
    return DataError(
        f"{rows.source or 'the training rows'}: all {len(rows)} rows have the label {label!r}; a classifier needs two labels or "
        "more. Is the label column the right one?"
    )


def labels_of(rows: Examples) -> tuple[str, ...]:
    """The labels of rows that have some."""
    return rows.labels or ()


def check_labels(train: Examples, held: Examples, names: Sequence[str] | None) -> tuple[str, ...]:
    """The labels in id order: as the data set declares them, else sorted (as numbers where all are numbers).

    Raises:
        DataError: There is one label only, one that training lacks, or one with too few validation rows.
    """
    seen, validated = Counter(labels_of(train)), Counter(labels_of(held))
    if len(seen) < 2:
        raise _one_label(train, next(iter(seen), ""))
    if unseen := sorted(set(validated) - set(seen)):
        raise DataError(
            f"{held.source or 'the validation rows'}: label(s) {unseen} are not among the training labels "
            f"{sorted(seen)}"
        )
    if few := sorted(name for name in seen if validated[name] < MIN_VALIDATION_ROWS):
        raise DataError(
            f"{held.source or 'the validation rows'}: label(s) {few} have fewer than {MIN_VALIDATION_ROWS} "
            "validation rows"
        )
    if names is not None:
        return tuple(names)
    try:
        return tuple(sorted(seen, key=int))
    except ValueError:
        return tuple(sorted(seen))
