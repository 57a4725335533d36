"""A study's rows, methods and bases looked at before its first trial: what no trial could do is said at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ..base.load import check_source
from ..data import Examples, read_examples
from ..data_files import is_row_file
from ..errors import DataError
from ..quantize.recipes import WHOLE, recipe
from ..train.leaks import without_leaks
from ..train.methods import check_shipping
from ..train.source import load_split
from .study_file import Choice, StudyFile

#: What a trial's training holds out of its rows, :func:`.train_adapter`'s own.
_SHARE = 0.1


def check_study(study: StudyFile) -> tuple[Examples, tuple[str, ...]]:
    """The study's validation rows, once everything that it chooses from was looked at.

    Args:
        study: The study.

    Returns:
        The rows, and what to say of its data.

    Raises:
        DataError: Rows cannot be read, cannot be trained on, or are those that accuracy is measured on.
        InputError: A base is not there, or no recipe makes a variant.
        UnsupportedAdapterError: A method cannot ship.
    """
    held = _rows(study, study.validation)
    if held.labels is None or not len(held):
        raise DataError(f"{study.validation}: accuracy is measured on rows with a label, and there are none")
    for method in _values(study, "method"):
        check_shipping(method, "SEQ_CLS", None)
    for variant in _values(study, "variant"):
        if variant != WHOLE:
            recipe(variant)
    said: list[str] = []
    for data in _values(study, "data"):
        said += _check_data(study, data, held)
    for model in _values(study, "model"):
        check_source(model)
    return held, tuple(said)


def training_rows(study: StudyFile, data: str, held: Examples) -> str | Examples:
    """What a trial trains on: ``data``, or where rows of it are validation rows too, its other rows.

    A ``datasets`` id is not looked into.
    """
    if not is_row_file(Path(data)):
        return data
    rows = _rows(study, data)
    kept, leaked = without_leaks(rows, held)
    return kept if leaked else data


def _values(study: StudyFile, name: str) -> tuple[str, ...]:
    axis = study.space.get(name)
    return axis.values if isinstance(axis, Choice) else ()


def _rows(study: StudyFile, data: str | Path) -> Examples:
    return read_examples(data, text=study.text, label=study.label, pair=study.pair)


def _check_data(study: StudyFile, data: str, held: Examples) -> tuple[str, ...]:
    """What to say of one choice of data: as training itself reads it, and against the validation rows."""
    if not is_row_file(Path(data)):
        return ()
    rows = _rows(study, data)
    split = partial(load_split, fraction=_SHARE, text=study.text, label=study.label, pair=study.pair, seed=0)
    split(rows, validation=None)
    against = split(rows, validation=held)
    if len(against.train) < len(rows):
        split(against.train, validation=None)
    return tuple(f"{Path(data).name}: {warning}" for warning in against.warnings)
