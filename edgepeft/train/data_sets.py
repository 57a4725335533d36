"""Labelled rows of a ``datasets`` id or folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data import Examples
from ..errors import DataError, MissingExtraError


def load_dataset(data: str | Path) -> dict[str, Any]:
    """The splits of a ``datasets`` id (``id`` or ``id:configuration``) or folder, by name."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"reading the data set {data} needs the training extra: pip install 'edgepeft[train]'"
        ) from error
    path = Path(data)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        else:
            name, _, configuration = str(data).partition(":")
            loaded = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # unknown id or configuration, offline, unreadable file: a class each in datasets
        raise DataError(
            f"cannot load data {str(data)!r}: no such file, and as a data set: {type(error).__name__}: {error}"
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def rows_from(
    rows: Any, source: str, text: str, label: str, pair: str | None
) -> tuple[Examples, tuple[str, ...] | None]:
    """The rows of one split of a data set, and the names of its labels where it declares them.

    Raises:
        DataError: A column is not there, or a row has no label or no text.
    """
    for column in (text, label, pair):
        if column is not None and column not in rows.column_names:
            raise DataError(f"data set {source}: no column {column!r}; it has {', '.join(rows.column_names)}")
    names = getattr(rows.features[label], "names", None)
    labels = []
    for number, value in enumerate(rows[label]):
        # Hub test splits mark hidden labels with -1.
        if value is None or value == "" or (names and not 0 <= value < len(names)):
            raise DataError(f"data set {source}, row {number}: no label (found {value!r})")
        if isinstance(value, list):
            labels.append(json.dumps(value, allow_nan=False))
            continue
        labels.append(str(names[value] if names else value))
    texts = tuple(rows[text])
    for number, value in enumerate(texts):
        if not isinstance(value, str):
            raise DataError(f"data set {source}, row {number}: {text!r} must be a string, found {type(value).__name__}")
    pairs = tuple(str(value) for value in rows[pair]) if pair is not None else None
    return Examples(texts, tuple(labels), pairs, source), tuple(names) if names else None
