"""Validation rows of groups that training never saw: authors, sites, documents, … named by a column (``--split-by``)."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..data import Examples
from ..data_files import is_row_file, read_rows
from ..errors import DataError, InputError
from ..spelling import did_you_mean
from .data_sets import load_dataset
from .problem import LEAST_ROWS

#: Orders of groups that are looked at for one in which both sides have rows of every label.
_ORDERS = 200


def read_groups(data: str | Path | Examples, column: str) -> list[str]:
    """The group of each row of ``data``, in their order.

    Raises:
        DataError: A row has no such column, or nothing in it.
        InputError: The rows are not from a file or data set.
    """
    if isinstance(data, Examples):
        raise InputError(
            f"--split-by {column} reads a column of a file or data set, and the rows were given as objects"
        )
    path = Path(data)
    if is_row_file(path):
        found = []
        for line, row in read_rows(path):
            if row.get(column) in (None, ""):
                raise DataError(
                    f"{path}, line {line}: no column {column!r} that holds anything, by whose groups rows are held out "
                    f"(--split-by){did_you_mean(column, map(str, row))}"
                )
            found.append(str(row[column]))
        return found
    splits = load_dataset(data)
    rows = splits["train"] if "train" in splits else next(iter(splits.values()))
    if column not in rows.column_names:
        raise DataError(f"data set {data}: no column {column!r} to split by; it has {', '.join(rows.column_names)}")
    return [str(value) for value in rows[column]]


def group_split(
    rows: Examples, groups: Sequence[str], fraction: float, seed: int, *, stratified: bool
) -> tuple[Examples, Examples]:
    """Training rows, and whole groups of some ``fraction`` of them held out.

    Groups are drawn until the share is reached. Of many orders of the groups the one is taken whose share is the nearest, among
    those in which both sides have two rows or more of every label.

    Args:
        rows: All rows.
        groups: The group of each.
        fraction: The share to hold out.
        seed: Of the orders.
        stratified: Whether a row's label must be on both sides (one label a row).

    Raises:
        DataError: There is one group only, or no order does.
        InputError: The share is none.
    """
    if not 0 < fraction < 1:
        raise InputError(f"validation fraction must lie between 0 and 1, found {fraction}")
    places: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        places[group].append(row)
    if len(places) < 2:
        raise DataError(
            f"{rows.source or 'the given examples'}: all {len(rows)} rows are of the group {next(iter(places), '')!r}; to hold "
            "whole groups out there must be two or more"
        )
    labels = rows.labels if stratified and rows.labels is not None else ("",) * len(rows)
    wanted = fraction * len(rows)
    generator = random.Random(seed)
    best: tuple[float, list[int]] | None = None
    names = sorted(places)
    for _ in range(_ORDERS):
        generator.shuffle(names)
        held: list[int] = []
        for name in names[:-1]:  # one stays to train on
            held += places[name]
            if len(held) >= wanted:
                break
        apart = Counter(labels[row] for row in held)
        whole = Counter(labels)
        if any(apart[name] < LEAST_ROWS or whole[name] - apart[name] < LEAST_ROWS for name in whole):
            continue
        if best is None or abs(len(held) - wanted) < best[0]:
            best = abs(len(held) - wanted), held
    if best is None:
        raise DataError(
            f"{rows.source or 'the given examples'}: no choice of whole groups leaves {LEAST_ROWS} rows of every label on both "
            "sides. Give a validation file, or split by a column of more groups"
        )
    apart_rows = set(best[1])
    return rows.select([row for row in range(len(rows)) if row not in apart_rows]), rows.select(sorted(apart_rows))
