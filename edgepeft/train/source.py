"""Labelled rows to train on, of one source or several, with a validation split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..bundle.heads import ProblemType
from ..data import Examples
from ..errors import DataError, InputError
from .group_split import read_groups
from .leaks import contradictions, leak_warning, row_keys, without_leaks
from .mixing import check_temperature
from .one_source import MIN_VALIDATION_ROWS, SourceRows, check_labels, labels_of, read_source, split_rows
from .problem import Problem, problem_of
from .several import COMMON, Rows, check_same_labels, check_sources, joined, listed, names_of, places_of

__all__ = ["Rows", "Split", "load_rows", "load_split"]


@dataclass(frozen=True)
class Split:
    """Training and validation rows, and what is learnt of them; ``warnings`` say what is wrong with some of them.

    ``general`` are rows of other domains. Of several sources ``sources`` are their names, ``train_sources`` and ``held_sources``
    tell the source of each row (-1: of no source alone), and ``temperature`` says how they are mixed (:class:`.Mixture`).
    """

    train: Examples
    validation: Examples
    problem: Problem
    warnings: tuple[str, ...] = ()
    general: Examples | None = None
    sources: tuple[str, ...] = ()
    train_sources: tuple[int, ...] = ()
    held_sources: tuple[int, ...] = ()
    temperature: float = 1.0

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in id order (``labels[i]`` has id ``i``)."""
        return self.problem.labels


def load_split(
    data: Rows | Sequence[Rows],
    *,
    validation: Rows | Sequence[Rows] | None,
    fraction: float,
    text: str,
    label: str,
    pair: str | None,
    seed: int,
    problem_type: ProblemType = "single_label_classification",
    split_by: str | None = None,
    general: str | Path | None = None,
    temperature: float = 1.0,
) -> Split:
    """Read ``data`` and its validation rows; without ``validation``, a stratified ``fraction`` of ``data`` is held out.

    Rows of several labels or of numbers are held out at random; with ``split_by`` whole groups of that column. A ``datasets`` id or
    folder that has a ``validation`` split uses that one. ``general`` are rows of other domains, to be measured on too. Of several
    sources each holds out rows of its own, unless there is one ``validation`` for each or for all. Raises
    :class:`DataError` for data of one class, a label seen only in validation, or a label with fewer than two rows on either side,
    and where the labels of two sources differ.
    """
    given, apart = listed(data), () if validation is None else listed(validation)
    if split_by is not None and apart:
        raise InputError(
            "--split-by says which rows are held out, and --validation gives other ones; leave one of them out"
        )
    if split_by is not None and len(given) > 1:
        raise InputError(
            "--split-by holds out groups of one source, and a group may be in several; give each a --validation of its own"
        )
    check_sources(given, apart)
    check_temperature(temperature, len(given))
    read = partial(read_source, text=text, label=label, pair=pair)
    parts = [read(each) for each in given]
    own = [read(each, split="validation").rows for each in apart]
    if own:
        parts = [replace(part, validation=own[place if len(own) > 1 else 0]) for place, part in enumerate(parts)]
    names = names_of(given)
    check_same_labels([part.rows for part in parts], names, problem_type)
    sides = [
        split_rows(
            part,
            fraction=fraction,
            seed=seed,
            problem_type=problem_type,
            groups=None if split_by is None else read_groups(given[0], split_by),
        )
        for part in parts
    ]
    trains, helds = [side[0] for side in sides], [side[1] for side in sides]
    problems = [
        _problem(problem_type, train, held, part, label) for train, held, part in zip(trains, helds, parts, strict=True)
    ]
    common = len(own) == 1 and len(given) > 1
    held = own[0] if common else joined(helds)
    leaked = sum(side[2] for side in sides)
    other = None if general is None else _general(read(general, split="validation").rows, problem_type, problems[0])
    for beyond in (held if len(given) > 1 and not common else None, other):
        if beyond is not None:  # what one source holds out, another one may hold
            found = [without_leaks(train, beyond) for train in trains]
            trains, leaked = [train for train, _ in found], leaked + sum(count for _, count in found)
    train = joined(trains)
    declared = next((part for part in parts if part.names is not None), parts[0])
    problem = problems[0] if len(given) == 1 else _problem(problem_type, train, held, declared, label)
    several = len(given) > 1
    return Split(
        train,
        held,
        problem,
        _warnings(train, leaked),
        other,
        names if several else (),
        places_of(trains),
        (COMMON,) * len(held) if common else places_of(helds),
        temperature,
    )


def _problem(problem_type: ProblemType, train: Examples, held: Examples, part: SourceRows, label: str) -> Problem:
    if problem_type == "single_label_classification":
        return Problem(problem_type, check_labels(train, held, part.names))
    return problem_of(problem_type, train, held, label)


def _general(other: Examples, problem_type: ProblemType, problem: Problem) -> Examples:
    if problem_type == "single_label_classification" and (
        unseen := sorted(set(labels_of(other)) - set(problem.labels))
    ):
        raise DataError(f"{other.source}: label(s) {unseen} are not among the training labels {sorted(problem.labels)}")
    return other


def _warnings(train: Examples, leaked: int) -> tuple[str, ...]:
    said = [leak_warning(leaked)] if leaked else []
    if empty := sum(not text.strip() for text in train.texts):
        said.append(f"{empty} of {len(train)} training texts are empty; they teach what stands for no text at all")
    if twofold := contradictions(train, labels_of(train)):
        said.append(f"{twofold} text(s) occur in training with more than one label; no model can learn both")
    return tuple(said)


def load_rows(
    data: Rows | Sequence[Rows],
    validation: Rows | Sequence[Rows] | None,
    *,
    text: str,
    label: str,
    pair: str | None,
    temperature: float = 1.0,
) -> Split:
    """Read ``data`` whole, for a search that judges out of fold; ``validation`` only where it is given, else no rows.

    Raises :class:`DataError` for data of one class, a label of fewer than four distinct rows (in each of several sources), or one
    seen only in validation, and where the labels of two sources differ.
    """
    given, apart = listed(data), () if validation is None else listed(validation)
    check_sources(given, apart)
    check_temperature(temperature, len(given))
    read = partial(read_source, text=text, label=label, pair=pair)
    parts = [read(each) for each in given]
    helds = [read(each, split="validation").rows for each in apart]
    names = names_of(given)
    check_same_labels([part.rows for part in parts], names, "single_label_classification")
    held = joined(helds) if helds else parts[0].rows.select([])
    found = [without_leaks(part.rows, held) for part in parts]
    trains, leaked = [train for train, _ in found], sum(count for _, count in found)
    for train in trains:
        # The same text twice is one row to judge on; see folds.make_folds.
        first = dict(reversed(list(zip(row_keys(train), labels_of(train), strict=True))))
        counts, names_here, least = Counter(first.values()), set(labels_of(train)), 2 * MIN_VALIDATION_ROWS
        if len(names_here) > 1 and (few := sorted(name for name in names_here if counts[name] < least)):
            raise DataError(
                f"{train.source or 'the given examples'}: label(s) {few} have fewer than {least} distinct rows, too few "
                "to train on some and judge on others; add rows of them"
            )
    train = joined(trains)
    declared = next((part.names for part in parts if part.names is not None), None)
    labels = check_labels(train, held if len(held) else train, declared)
    several = len(given) > 1
    return Split(
        train,
        held,
        Problem("single_label_classification", labels),
        _warnings(train, leaked),
        None,
        names if several else (),
        places_of(trains),
        (COMMON,) * len(held) if several and len(helds) == 1 else places_of(helds) if helds else (),
        temperature,
    )
