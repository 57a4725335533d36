"""Rows run chunk by chunk: so that it can be told how far a run is, and one that was broken off goes on where it was."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle, dump_manifest
from ..data import Examples
from .language_rows import LanguageRows

#: Rows of a chunk; those of one are sorted by length, and padded to each other. Of a language model a row takes seconds.
CHUNK, LANGUAGE_CHUNK = 2048, 8

#: What each row of a chunk gives: arrays ``[rows, …]``, or lists of JSON values with one a row.
Answers = Mapping[str, Any]


class AnswerFile:
    """The answers of chunks, in an SQLite file, by what they depend on.

    A file that cannot be used is made anew, and where none can be written nothing is kept: the run itself does not need it.

    Args:
        path: The file; it is made with the first answers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._usable = True

    def get(self, key: str, start: int) -> Answers | None:
        """The answers of a chunk; ``None`` where they are not there."""
        if not self.path.is_file():
            return None
        try:
            with closing(self._open()) as database:
                found = database.execute(
                    "SELECT answers FROM chunks WHERE key = ? AND start = ?", (key, start)
                ).fetchone()
            return None if found is None else _unpacked(found[0])
        except (sqlite3.Error, zipfile.BadZipFile, ValueError, OSError, KeyError):  # no file of ours, or a damaged one
            self.remove()
            return None

    def put(self, key: str, start: int, answers: Answers) -> None:
        """Keep the answers of a chunk."""
        if not self._usable:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as database, database:
                database.execute("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)", (key, start, _packed(answers)))
        except (sqlite3.Error, OSError):
            self._usable = False

    def remove(self) -> None:
        """Remove the file: the run ended."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path)
        try:
            database.execute(
                "CREATE TABLE IF NOT EXISTS chunks (key TEXT, start INT, answers BLOB, PRIMARY KEY (key, start))"
            )
        except sqlite3.Error:
            database.close()
            raise
        return database


def _packed(answers: Answers) -> bytes:
    arrays: dict[str, Any] = {name: value for name, value in answers.items() if isinstance(value, np.ndarray)}
    texts = {name: value for name, value in answers.items() if name not in arrays}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, json=np.frombuffer(json.dumps(texts, allow_nan=False).encode(), np.uint8))
    return buffer.getvalue()


def _unpacked(content: bytes) -> Answers:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        found: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    texts = json.loads(found.pop("json").tobytes())
    return {**found, **texts}


class Chunks:
    """Runs the rows of one adapter and variant chunk by chunk.

    Args:
        kept: Where answers are kept; ``None`` for nowhere.
        key: What they depend on.
        size: Rows of a chunk.
        progress: Is called with rows done and rows in all, where there is more than one chunk.
    """

    def __init__(
        self,
        kept: AnswerFile | None = None,
        key: str = "",
        size: int = CHUNK,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._kept = kept
        self._key = key
        self._size = size
        self._progress = progress

    def run(self, rows: int, what: str, make: Callable[[range], Answers]) -> Answers:
        """The answers of all rows, joined.

        Args:
            rows: How many there are.
            what: Which answers these are, where rows are run for several.
            make: Runs the rows at these places.
        """
        found: list[Answers] = []
        for start in range(0, rows, self._size):
            stop = min(rows, start + self._size)
            key = f"{self._key} {what} {self._size}"
            answers = None if self._kept is None else self._kept.get(key, start)
            if answers is None:
                answers = make(range(start, stop))
                if self._kept is not None:
                    self._kept.put(key, start, answers)
            found.append(answers)
            if rows > self._size:
                self._progress(stop, rows)
        return {name: _joined([each[name] for each in found]) for name in found[0]}


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [value for part in parts for value in part]


#: All at once, and nothing kept.
ALONE = Chunks()


def rows_hash(rows: Examples | LanguageRows) -> str:
    """SHA-256 of what is run of rows; their labels are not."""
    found = hashlib.sha256()
    if isinstance(rows, LanguageRows):
        for row in rows.rows:
            found.update(json.dumps([row.prompt, row.answer], allow_nan=False).encode())
    else:
        for place in range(len(rows)):
            pair = None if rows.pairs is None else rows.pairs[place]
            found.update(json.dumps([rows.texts[place], pair], allow_nan=False).encode())
    return found.hexdigest()


def state_hash(module: Any) -> str:
    """SHA-256 of a PyTorch model's weights, in the order that it has them."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().float().contiguous().numpy().tobytes())
    return found.hexdigest()


class ChunksOf:
    """Makes :class:`Chunks` for adapters and variants of a bundle, which share a file.

    Args:
        bundle: The bundle.
        kept: Where answers are kept; ``None`` for nowhere.
        progress: Is called with a line of text.
    """

    def __init__(self, bundle: Bundle, kept: AnswerFile | None, progress: Callable[[str], None]) -> None:
        self._kept = kept
        self._progress = progress
        self._bundle = hashlib.sha256(
            "\n".join(
                (dump_manifest(bundle.manifest), *(version(name) for name in ("edgepeft", "onnxruntime")))
            ).encode()
        ).hexdigest()
        self._rows: dict[int, str] = {}

    def __call__(self, variant: str, adapter: str | None, rows: Examples | LanguageRows, beside: str = "") -> Chunks:
        """For rows of an adapter (``None``: the base) in a variant; ``beside`` names what else is run on them."""
        if id(rows) not in self._rows:
            self._rows[id(rows)] = rows_hash(rows)
        key = json.dumps([self._bundle, variant, adapter, self._rows[id(rows)], beside], allow_nan=False)
        name = adapter or "the base"

        def told(done: int, total: int) -> None:
            self._progress(f"{name}, {variant}: {done:,} of {total:,} rows")

        size = LANGUAGE_CHUNK if isinstance(rows, LanguageRows) else CHUNK
        return Chunks(self._kept, hashlib.sha256(key.encode()).hexdigest(), size, told)
