"""A study file: what is searched over, against what, and where its trials are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..spelling import did_you_mean
from ..toml_file import read_toml

_STUDY = {"name", "out", "storage", "trials", "seed", "prune", "threads", "keep"}
_DATA = {"validation", "text", "label", "pair"}
_MEASURE = {"rows", "tokens", "runs"}
#: What may be searched over or fixed: the data, the base, options of training, and the recipe that rounds the base.
AXES = {
    "data": str,
    "model": str,
    "variant": str,
    "method": str,
    "target_modules": str,
    "rank": int,
    "alpha": float,
    "dropout": float,
    "learning_rate": float,
    "epochs": int,
    "batch_size": int,
    "max_length": int,
    "seed": int,
}
_NEEDED = ("data", "model")
#: Axes whose values are files or folders relative to the study file, where they are there.
_PATHS = ("data", "model")


@dataclass(frozen=True)
class Choice:
    """One of several values; of one value it is fixed."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number between two, both among them; ``log`` draws its logarithm evenly."""

    low: float
    high: float
    log: bool
    whole: bool


@dataclass(frozen=True)
class StudyFile:
    """A study: its file, name and folder, the storage's address, and what is searched over.

    ``storage`` is a journal file or a database's URL. ``validation`` are the rows that accuracy is measured on. Latency is that of
    ``rows`` x ``tokens``, the median of ``runs`` runs. ``keep`` says which trials' bundles stay: those on the front, or all.
    """

    file: Path
    name: str
    folder: Path
    storage: str
    trials: int
    seed: int
    prune: bool
    threads: int
    keep: str
    validation: Path
    text: str
    label: str
    pair: str | None
    rows: int
    tokens: int
    runs: int
    space: Mapping[str, Choice | Range]

    def signature(self) -> dict[str, Any]:
        """What trials of one study must have in common, as JSON."""
        return {
            "validation": str(self.validation),
            "columns": [self.text, self.label, self.pair],
            "shape": [self.rows, self.tokens],
            "threads": self.threads,
            "space": {name: vars(axis) | {"kind": type(axis).__name__} for name, axis in sorted(self.space.items())},
        }


def read_study(path: str | Path) -> StudyFile:
    """Read a study file; every table and key is checked.

    Args:
        path: The TOML file; paths in it are relative to its folder.

    Raises:
        InputError: The file is not there, is no TOML, or holds a table, key or value that nothing takes.

    Example:
        >>> read_study("study.toml").space["rank"]  # doctest: +SKIP
        Range(low=2, high=32, log=True, whole=True)
    """
    path = Path(path)
    tables = read_toml(path, "a study is a TOML file (docs/training.md shows one)")
    known = {"study": _STUDY, "data": _DATA, "measure": _MEASURE, "space": set(AXES)}
    for name, table in tables.items():
        if name not in known:
            raise InputError(
                f"{path}: there is no table [{name}]{did_you_mean(name, known)}; tables: {', '.join(known)}"
            )
        if not isinstance(table, dict):
            raise InputError(f"{path}: {name} must be a table, [{name}]")
        if unknown := sorted(set(table) - known[name]):
            raise InputError(
                f"{path}: [{name}] has no key {unknown[0]!r}{did_you_mean(unknown[0], known[name])}; it takes "
                f"{', '.join(sorted(known[name]))}"
            )
    study, data, measure = (tables.get(name, {}) for name in ("study", "data", "measure"))
    here = path.absolute().parent
    folder = here / _of(path, "study", study, "out", str, path.stem)
    validation = _of(path, "data", data, "validation", str, None)
    if validation is None:
        raise InputError(f"{path}: [data] needs validation, the rows that accuracy is measured on")
    keep = _of(path, "study", study, "keep", str, "front")
    if keep not in {"front", "all"}:
        raise InputError(f"{path}: study.keep is {keep!r}; bundles are kept of the front or of all trials")
    return StudyFile(
        file=path.absolute(),
        name=_of(path, "study", study, "name", str, path.stem),
        folder=folder,
        storage=_of(path, "study", study, "storage", str, str(folder / "journal.log")),
        trials=_positive(path, "study", study, "trials", 30),
        seed=_of(path, "study", study, "seed", int, 0),
        prune=_of(path, "study", study, "prune", bool, True),
        threads=_positive(path, "study", study, "threads", 1),
        keep=keep,
        validation=here / validation,
        text=_of(path, "data", data, "text", str, "text"),
        label=_of(path, "data", data, "label", str, "label"),
        pair=_of(path, "data", data, "pair", str, None),
        rows=_positive(path, "measure", measure, "rows", 1),
        tokens=_positive(path, "measure", measure, "tokens", 32),
        runs=_positive(path, "measure", measure, "runs", 100),
        space=_space(path, tables.get("space", {}), here),
    )


def _of(path: Path, table: str, values: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = values.get(key, default)
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise InputError(f"{path}: {table}.{key} must be a {_KINDS[kind]}, found {value!r}")
    return value


_KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def _positive(path: Path, table: str, values: Mapping[str, Any], key: str, default: int) -> int:
    value: int = _of(path, table, values, key, int, default)
    if value < 1:
        raise InputError(f"{path}: {table}.{key} must be at least 1, found {value}")
    return value


def _space(path: Path, table: Mapping[str, Any], here: Path) -> dict[str, Choice | Range]:
    if lacking := [name for name in _NEEDED if name not in table]:
        raise InputError(f"{path}: [space] needs {' and '.join(lacking)}: one value, or a list to choose from")
    return {name: _axis(path, name, value, here) for name, value in table.items()}


def _axis(path: Path, name: str, value: Any, here: Path) -> Choice | Range:
    kind = AXES[name]
    if isinstance(value, dict):
        if kind is str:
            raise InputError(f"{path}: space.{name} takes texts, not a range")
        if set(value) - {"from", "to", "log"} or not {"from", "to"} <= set(value):
            raise InputError(
                f"{path}: space.{name} is a range: {{ from = 2, to = 32 }}, with log = true where it spans decades"
            )
        low, high = (_number(path, name, value[end], kind) for end in ("from", "to"))
        log = _of(path, f"space.{name}", value, "log", bool, False)
        if not low < high or (log and low <= 0):
            raise InputError(
                f"{path}: space.{name} goes from {low} to {high}: from must be smaller, and above 0 with log"
            )
        return Range(low, high, log, whole=kind is int)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"{path}: space.{name} is an empty list")
    if kind is str:
        found: list[Any] = [_of(path, "space", {name: each}, name, str, None) for each in values]
        if name in _PATHS:
            found = [str(here / each) if (here / each).exists() else each for each in found]
    else:
        found = [_number(path, name, each, kind) for each in values]
    if len(set(found)) != len(found):
        raise InputError(f"{path}: space.{name} names a value twice")
    return Choice(tuple(found))


def _number(path: Path, name: str, value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and not isinstance(value, int)):
        raise InputError(f"{path}: space.{name} takes {_KINDS[kind]}s, found {value!r}")
    return value
