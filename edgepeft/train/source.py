"""Labelled rows for training: from a file, a data set on disk or the hub; and the stratified validation split."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bundle.heads import ProblemType
from ..data import Examples, read_examples
from ..data_files import SUFFIXES
from ..errors import DataError, InputError
from .data_sets import load_dataset, rows_from
from .group_split import group_split, read_groups
from .leaks import contradictions, leak_warning, row_keys, without_leaks
from .problem import Problem, problem_of, split_at_random

_FILE_SUFFIXES = set(SUFFIXES)

#: Each label needs this many rows in validation; with fewer, macro F1 jumps by a third for a single row.
MIN_VALIDATION_ROWS = 2


@dataclass(frozen=True)
class Split:
    """Training and validation rows, and what is learnt of them; ``warnings`` say what is wrong with some of them.

    ``general`` are rows of other domains.
    """

    train: Examples
    validation: Examples
    problem: Problem
    warnings: tuple[str, ...] = ()
    general: Examples | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in id order (``labels[i]`` has id ``i``)."""
        return self.problem.labels


def load_split(
    data: str | Path | Examples,
    *,
    validation: str | Path | Examples | None,
    fraction: float,
    text: str,
    label: str,
    pair: str | None,
    seed: int,
    problem_type: ProblemType = "single_label_classification",
    split_by: str | None = None,
    general: str | Path | None = None,
) -> Split:
    """Read ``data`` and its validation rows; without ``validation``, a stratified ``fraction`` of ``data`` is held out.

    Rows of several labels or of numbers are held out at random; with ``split_by`` whole groups of that column. A ``datasets`` id or
    folder that has a ``validation`` split uses that one. ``general`` are rows of other domains, to be measured on too. Raises
    :class:`DataError` for data of one class, a label seen only in validation, or a label with fewer than two rows on either side.
    """
    if split_by is not None and validation is not None:
        raise InputError(
            "--split-by says which rows are held out, and --validation gives other ones; leave one of them out"
        )
    names: tuple[str, ...] | None = None
    if isinstance(data, Examples):
        rows = data
    else:
        rows, validation_rows, names = _read(data, text=text, label=label, pair=pair)
        validation = validation_rows if validation is None and split_by is None else validation
    if validation is not None and not isinstance(validation, Examples):
        validation = _read(validation, text=text, label=label, pair=pair, split="validation")[0]
    for examples in (rows, validation):
        if examples is not None and examples.labels is None:
            raise DataError(f"{examples.source or 'the given examples'}: rows without labels cannot be trained on")
    leaked = 0
    if validation is not None:
        train, leaked = without_leaks(rows, validation)
        held = validation
    elif split_by is not None:
        groups = read_groups(data, split_by)
        one = problem_type == "single_label_classification"
        train, held = group_split(rows, groups, fraction, seed, stratified=one)
        train, leaked = without_leaks(train, held)
    elif problem_type == "single_label_classification":
        train, held = stratified_split(rows, fraction, seed)
    else:
        train, held = split_at_random(rows, fraction, seed)
    if problem_type == "single_label_classification":
        problem = Problem(problem_type, _check_labels(train, held, names))
    else:
        problem = problem_of(problem_type, train, held, label)
    other = None
    if general is not None:
        other = _read(general, text=text, label=label, pair=pair, split="validation")[0]
        train, more = without_leaks(train, other)
        leaked += more
        if problem_type == "single_label_classification" and (
            unseen := sorted(set(_labels(other)) - set(problem.labels))
        ):
            raise DataError(
                f"{other.source}: label(s) {unseen} are not among the training labels {sorted(problem.labels)}"
            )
    return Split(train, held, problem, _warnings(train, leaked), other)


def _warnings(train: Examples, leaked: int) -> tuple[str, ...]:
    said = [leak_warning(leaked)] if leaked else []
    if empty := sum(not text.strip() for text in train.texts):
        said.append(f"{empty} of {len(train)} training texts are empty; they teach what stands for no text at all")
    if twofold := contradictions(train, _labels(train)):
        said.append(f"{twofold} text(s) occur in training with more than one label; no model can learn both")
    return tuple(said)


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
        by_label[_labels(rows)[group[0]]].append(group)
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


def _labels(rows: Examples) -> tuple[str, ...]:
    return rows.labels or ()


def _check_labels(train: Examples, held: Examples, names: Sequence[str] | None) -> tuple[str, ...]:
    """The labels in id order: as the data set declares them, else sorted (as numbers where all are numbers)."""
    seen, validated = Counter(_labels(train)), Counter(_labels(held))
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


def _read(
    data: str | Path, *, text: str, label: str, pair: str | None, split: str = "train"
) -> tuple[Examples, Examples | None, tuple[str, ...] | None]:
    """Rows of ``split``, the rows of a ``validation`` split if there is one, and declared label names if there are."""
    path = Path(data)
    if path.is_file() or path.suffix.lower() in _FILE_SUFFIXES:
        return read_examples(path, text=text, label=label, pair=pair), None, None
    splits = load_dataset(data)
    if split not in splits and len(splits) > 1:
        raise DataError(f"data set {data}: no split {split!r}; it has {', '.join(splits)}")
    main = splits[split] if split in splits else next(iter(splits.values()))
    rows, names = rows_from(main, str(data), text, label, pair)
    held = None
    if split == "train" and "validation" in splits and main is not splits["validation"]:
        held, _ = rows_from(splits["validation"], f"{data} (validation)", text, label, pair)
    return rows, held, names


def load_rows(
    data: str | Path | Examples, validation: str | Path | Examples | None, *, text: str, label: str, pair: str | None
) -> Split:
    """Read ``data`` whole, for a search that judges out of fold; ``validation`` only where it is given, else no rows.

    Raises :class:`DataError` for data of one class, a label of fewer than four distinct rows, or one seen only in validation.
    """
    names: tuple[str, ...] | None = None
    if isinstance(data, Examples):
        rows = data
    else:
        rows, _, names = _read(data, text=text, label=label, pair=pair)
    held = rows.select([])
    if validation is not None:
        held = (
            validation
            if isinstance(validation, Examples)
            else _read(validation, text=text, label=label, pair=pair, split="validation")[0]
        )
    if rows.labels is None or held.labels is None:
        raise DataError(f"{rows.source or 'the given examples'}: rows without labels cannot be trained on")
    train, leaked = without_leaks(rows, held)
    # The same text twice is one row to judge on; see trials.make_folds.
    first = dict(reversed(list(zip(row_keys(train), _labels(train), strict=True))))
    counts = Counter(first.values())
    least = 2 * MIN_VALIDATION_ROWS
    if len(set(_labels(train))) > 1 and (few := sorted(name for name in set(_labels(train)) if counts[name] < least)):
        raise DataError(
            f"{rows.source or 'the given examples'}: label(s) {few} have fewer than {least} distinct rows, too few to "
            "train on some and judge on others; add rows of them"
        )
    labels = _check_labels(train, held if len(held) else train, names)
    return Split(train, held, Problem("single_label_classification", labels), _warnings(train, leaked))
