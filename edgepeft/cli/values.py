"""What the values of options mean: pairs of names and paths, data, weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..spelling import did_you_mean

if TYPE_CHECKING:
    from ..data import Examples, PromptRows
    from ..validate import LanguageRows


def calibration_data(
    bundle: Path | None, data: tuple[str, ...], text: str, pair: str | None
) -> dict[str, Examples | LanguageRows]:
    """The ``--data NAME=FILE`` pairs as texts without labels, or as rows of sound for a bundle that writes down speech.

    Without a bundle, which is still to be made, a file whose first row has a column ``audio`` holds sounds.
    """
    from ..bundle import read_bundle
    from ..data import read_examples
    from ..data_files import read_rows
    from ..validate import read_language_rows

    hears = bool(data) and bundle is not None and read_bundle(bundle).manifest.hears
    found: dict[str, Examples | LanguageRows] = {}
    for name, value in named(data, "--data").items():
        path, columns = with_columns(value, text=text, pair=pair)
        column, second = columns["text"] or text, columns["pair"]
        if hears or (bundle is None and any("audio" in row for _, row in islice(read_rows(Path(path)), 1))):
            if second is not None:
                raise InputError(f"--data {value}: {second!r} is to hold second texts, and this is sound: leave it out")
            found[name] = read_language_rows(path, text=column, sounds=True, answered=False)
        else:
            found[name] = read_examples(path, text=column, label=None, pair=second)
    return found


def refit_data(bundle: Path, data: tuple[str, ...], text: str, pair: str | None) -> dict[str, Examples | LanguageRows]:
    """The ``--data NAME=FILE`` pairs that adapters are fitted to: rows of a language model, texts of others."""
    from ..bundle import read_bundle
    from ..validate import read_language_rows

    if not data or not read_bundle(bundle).manifest.writes:
        return calibration_data(bundle, data, text, pair)
    found: dict[str, Examples | LanguageRows] = {}
    for name, value in named(data, "--data").items():
        path, columns = with_columns(value, text=text)
        found[name] = read_language_rows(path, text=columns["text"] or text)
    return found


def device_data(
    bundle: Path, data: tuple[str, ...], text: str, label: str, pair: str | None
) -> dict[str, Examples] | dict[str, PromptRows]:
    """The ``--data NAME=FILE`` pairs as a bundle's task has them: labelled rows, or what to generate from."""
    from ..bundle import read_bundle
    from ..data import read_prompts

    if read_bundle(bundle).manifest.task != "text-generation":
        return examples(data, text, label, pair)
    found = {}
    for name, value in named(data, "--data").items():
        path, columns = with_columns(value, text=text, prompt="prompt", messages="messages")
        found[name] = read_prompts(path, **{key: column or key for key, column in columns.items()})
    return found


def labelled(bundle: Path, data: tuple[str, ...], text: str, label: str, pair: str | None) -> dict[str, Examples]:
    """The ``--data NAME=FILE`` pairs as labelled rows; :class:`InputError` for a language model, whose data have no labels."""
    from ..bundle import read_bundle

    if data and read_bundle(bundle).manifest.task == "text-generation":
        raise InputError(
            f"{bundle} is a language model's: --data with labels are for classifiers. Its prompts are compared by: edgepeft "
            "validate BUNDLE --target TARGET --data NAME=FILE"
        )
    return examples(data, text, label, pair)


def judged_rows(
    bundle: Path, data: tuple[str, ...], text: str, label: str, pair: str | None, limit: int | None
) -> dict[str, Examples] | dict[str, LanguageRows]:
    """The ``--data NAME=FILE`` pairs as rows that a bundle's task is judged on, at most ``limit`` of each, spread evenly."""
    return {name: rows_of(bundle, path, text, label, pair, limit) for name, path in named(data, "--data").items()}  # type: ignore[return-value] # a bundle has one task, so all are of one type


def rows_of(
    bundle: Path, path: str, text: str, label: str, pair: str | None, limit: int | None
) -> Examples | LanguageRows:
    """One file of rows that a bundle's task is judged on."""
    from ..bundle import read_bundle
    from ..data import evenly, read_examples
    from ..validate import read_language_rows

    manifest = read_bundle(bundle).manifest
    if manifest.decodes:
        return read_language_rows(path, text=text, limit=limit, sounds=manifest.hears)
    found = read_examples(path, text=text, label=label, pair=pair)
    return found if limit is None else found.select(evenly(len(found), limit))


def checkpoints_or_names(values: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """``--adapter``: ``NAME=PATH`` says where a checkpoint is, ``NAME`` alone limits to that adapter (and so does every other).

    Returns:
        Checkpoints by name, and the names to limit to; empty for all.
    """
    alone = [value for value in values if "=" not in value]
    found = named([value for value in values if "=" in value], "--adapter")
    return found, list(dict.fromkeys([*alone, *found])) if alone else []


def examples(data: tuple[str, ...], text: str, label: str, pair: str | None) -> dict[str, Examples]:
    """The ``--data NAME=FILE`` pairs, read as labelled rows."""
    from ..data import read_examples

    found = {}
    for name, value in named(data, "--data").items():
        path, columns = with_columns(value, text=text, label=label, pair=pair)
        found[name] = read_examples(
            path, text=columns["text"] or text, label=columns["label"] or label, pair=columns["pair"]
        )
    return found


_COLUMNS = re.compile(r"(?P<path>.+?):(?P<columns>[A-Za-z]+=[^:]*)", re.DOTALL)


def with_columns(value: str, **columns: str | None) -> tuple[str, dict[str, str | None]]:
    """``FILE:text=body,label=stars`` as the file and its columns; those that it does not name are as in ``columns``.

    A file of that very name is a file. Raises :class:`InputError` for a column that this kind of data does not have.
    """
    match = _COLUMNS.fullmatch(value)
    if match is None or Path(value).exists():
        return value, columns
    said = dict(columns)
    for pair in match["columns"].split(","):
        key, _, column = pair.partition("=")
        if key not in columns or not column:
            raise InputError(
                f"--data {value!r}: {pair!r} names no column{did_you_mean(key, columns)}; behind the file stands what the "
                f"columns are called, of {', '.join(columns)}: FILE:text=body"
            )
        said[key] = column
    return match["path"], said


def named(values: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` pairs of a repeated option; a name given twice or a missing ``=`` is an error."""
    pairs: dict[str, str] = {}
    for value in values:
        name, separator, rest = value.partition("=")
        if not separator or not name or not rest:
            raise InputError(f"{option} {value!r}: expected NAME=PATH, for example {option} reviews=./reviews-lora")
        if name in pairs:
            raise InputError(f"{option}: the name {name!r} is given twice")
        pairs[name] = rest
    return pairs


def parse_weights(values: Sequence[str]) -> dict[str, float]:
    """``NAME=WEIGHT`` pairs of a blend; a name given twice or a weight that is no number is an error."""
    weights: dict[str, float] = {}
    for value in values:
        name, separator, weight = value.partition("=")
        if not separator or not name or not weight:
            raise InputError(f"{value!r}: expected NAME=WEIGHT, for example reviews=0.7")
        if name in weights:
            raise InputError(f"adapter {name!r} is given twice")
        try:
            weights[name] = float(weight)
        except ValueError as error:
            raise InputError(f"{value!r}: {weight!r} is not a number") from error
    return weights
