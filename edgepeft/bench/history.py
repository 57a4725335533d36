"""A store of bench runs in one SQLite file: what a check compares with where a single report would be luck."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ..errors import InputError
from ..json_text import json_text
from ..worker.job import Host
from .result import BenchResult

#: "EPBH" in the header of the file, which SQLite keeps for applications.
APPLICATION_ID = 0x45504248
_VERSION = 1
_MAGIC = b"SQLite format 3\x00"
#: At most so many of the last runs are a baseline, and at least so many.
LAST_RUNS, LEAST_RUNS = 10, 3
#: A change point is marked below this p-value.
ALPHA = 0.01


@dataclass(frozen=True)
class Run:
    """One bench run of a history."""

    created: datetime
    result: BenchResult


def is_history(path: str | Path) -> bool:
    """Whether a file is an SQLite database, by its first bytes."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def refuse_url(path: str | Path) -> None:
    """:class:`InputError` for a URL where a file is expected; :class:`~pathlib.Path` makes one slash of two."""
    if _URL.match(str(path)) and not Path(path).exists():
        raise InputError(
            f"{path} is a URL, and a history or baseline is a file on this machine; only check reads a baseline from http:// and "
            "https://. In CI, keep it in the job's cache or as an artifact, and give its path"
        )


def require_history(path: str | Path) -> None:
    """Refuse a history that :func:`append_run` could not add to, before anything is measured.

    Raises:
        InputError: It is a URL, its folder is not there, or the file is no history, damaged, or of another version.
    """
    refuse_url(path)
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"history {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise InputError(f"history {path} is a folder; name a file")
    if path.exists() and path.stat().st_size:
        if not is_history(path):
            raise InputError(f"{path} is no history of edgepeft: choose another file for --history")
        with _open(path):
            pass


def append_run(path: str | Path, result: BenchResult, created: datetime | None = None) -> int:
    """Add a run to a history, which is made where it is not there.

    Args:
        path: The history's file.
        result: What ``bench`` measured.
        created: When; by default now.

    Returns:
        How many runs it holds.

    Raises:
        InputError: The file is no history, is damaged, or cannot be written.
    """
    require_history(path)
    with _open(Path(path)) as database:
        database.execute(
            "INSERT INTO runs (created, host, target, result) VALUES (?, ?, ?, ?)",
            (
                (created or datetime.now(UTC)).isoformat(timespec="seconds"),
                host_class(result.host),
                result.target,
                result.model_dump_json(),
            ),
        )
        count: int = database.execute("SELECT COUNT(*) FROM runs").fetchone()[0]
    return count


def read_runs(path: str | Path, host: Host | None = None, target: str | None = None) -> list[Run]:
    """The runs of a history, oldest first.

    Args:
        path: The history's file.
        host: Only runs of its class (:func:`host_class`).
        target: Only runs for it.

    Raises:
        InputError: There is no such history, it is damaged, or a run in it is none of this edgepeft's.
    """
    path = Path(path)
    if not is_history(path):
        raise InputError(f"{path} is no history of edgepeft; one is written by: edgepeft bench BUNDLE --history {path}")
    with _open(path) as database:
        rows = database.execute("SELECT id, created, host, target, result FROM runs ORDER BY created, id").fetchall()
    found = []
    for number, created, kind, wanted, text in rows:
        if (host is not None and kind != host_class(host)) or (target is not None and wanted != target):
            continue
        try:
            found.append(Run(datetime.fromisoformat(created), BenchResult.model_validate_json(text)))
        except (ValidationError, ValueError, TypeError) as error:
            raise InputError(
                f"history {path}: run {number} does not fit this edgepeft ({str(error)[:120]}); begin a new history"
            ) from error
    return found


def host_class(host: Host) -> str:
    """What must be equal for runs to be of one class: all that moves latency, which Python's own version does not."""
    value = host.model_dump()
    del value["python"]
    for name in ("gpu", "kernels"):  # histories of before know of none
        if not value[name]:
            del value[name]
    return json_text(value, indent=None)


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """An open history: what the block did is kept when it ends well, and undone when it does not."""
    try:
        database = sqlite3.connect(path, timeout=30)
        try:
            with database:
                known = database.execute("PRAGMA application_id").fetchone()[0]
                version = database.execute("PRAGMA user_version").fetchone()[0]
                tables = database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
                if tables and known != APPLICATION_ID:
                    raise InputError(f"{path} is an SQLite file of something else, not a history of edgepeft")
                if tables and version != _VERSION:
                    raise InputError(f"history {path} has version {version}; this edgepeft reads {_VERSION}")
                if not tables:
                    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    database.execute(f"PRAGMA user_version = {_VERSION}")
                    database.execute(
                        "CREATE TABLE runs (id INTEGER PRIMARY KEY, created TEXT NOT NULL, host TEXT NOT NULL, "
                        "target TEXT NOT NULL, result TEXT NOT NULL)"
                    )
                yield database
        finally:
            database.close()
    except sqlite3.Error as error:
        raise InputError(
            f"history {path} cannot be used ({error}): it is damaged, or something else writes it. Move it away to begin a new one"
        ) from error


def change_points(values: Sequence[float], alpha: float = ALPHA) -> tuple[int, ...]:
    """Where a series moves to another level: the positions of the first values after each change.

    Pettitt's rank test (1979), applied again to both sides of what it finds (binary segmentation). Ranks, because a wild run is no
    change of level.

    Args:
        values: One number a run, in their order.
        alpha: A change is one below this p-value.

    Example:
        >>> change_points([10, 11, 10, 10, 11, 10, 11, 10, 20, 21, 20, 20, 21, 20, 20, 21])
        (8,)
    """
    return tuple(sorted(_changes(np.asarray(values, np.float64), 0, alpha)))


def _changes(values: np.ndarray, offset: int, alpha: float) -> list[int]:
    count = len(values)
    if count < 4:
        return []
    signs = np.sign(values[None, :] - values[:, None])
    statistics = np.array([signs[:place, place:].sum() for place in range(1, count)])
    place = int(np.abs(statistics).argmax()) + 1
    largest = float(np.abs(statistics).max())
    # Pettitt's approximation of the two-sided p-value.
    if 2 * math.exp(-6 * largest**2 / (count**3 + count**2)) >= alpha:
        return []
    found = [offset + place]
    return found + _changes(values[:place], offset, alpha) + _changes(values[place:], offset + place, alpha)


def last_level(values: Sequence[float]) -> slice:
    """The runs to compare with: the last :data:`LAST_RUNS`, but only those after the last change of level.

    Where fewer than :data:`LEAST_RUNS` came after it, the level is not known yet, and these few are taken: they are what is.
    """
    changes = change_points(values)
    begin = max(changes[-1] if changes else 0, len(values) - LAST_RUNS)
    return slice(begin, len(values))
