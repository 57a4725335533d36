"""Rows to train a language model on: prompt and completion, conversations, or plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..data_files import is_row_file, read_rows, read_text
from ..errors import DataError, InputError
from ..spelling import did_you_mean
from .data_sets import load_dataset
from .leaks import check_leaks

Kind = Literal["completion", "messages", "text"]

_TEXT_SUFFIXES = {".txt", ".text", ".md"}
_ROLES = {"system", "developer", "user", "assistant", "tool"}


@dataclass(frozen=True)
class Columns:
    """The names of the columns to look for."""

    text: str = "text"
    prompt: str = "prompt"
    completion: str = "completion"
    messages: str = "messages"


@dataclass(frozen=True)
class Row:
    """One row: ``turns`` are role and content of a conversation, prompt and completion as user and assistant.

    Plain text is one turn of the role ``text``. ``where`` names file and line, for messages.
    """

    turns: tuple[tuple[str, str], ...]
    where: str

    @property
    def key(self) -> str:
        """What must not stand on both sides of a split: everything before the last turn, or the text itself."""
        turns = self.turns[:-1] if len(self.turns) > 1 else self.turns
        return "\0".join(" ".join(content.casefold().split()) for _, content in turns)


@dataclass(frozen=True)
class Corpus:
    """Rows of one kind. ``source`` is the file, folder or data set they were read from."""

    kind: Kind
    rows: tuple[Row, ...]
    source: str


def read_corpus(data: str | Path, columns: Columns) -> tuple[Corpus, Corpus | None]:
    """The rows of ``data``, and those of its ``validation`` split where it is a ``datasets`` id or folder with one.

    ``data`` is a ``.csv``, ``.tsv`` or ``.jsonl`` file, a ``.txt`` or ``.md`` file (one text) or a folder of those, or
    a ``datasets`` id or folder. The kind follows from the columns: ``messages``, ``prompt`` and ``completion``, or
    ``text``, looked for in this order. Raises :class:`DataError` that names the row and what it lacks.
    """
    path = Path(data)
    if files := text_files(path):
        return _texts(files, str(data)), None
    if is_row_file(path):
        return _corpus(((f"{path}, line {line}", row) for line, row in read_rows(path)), columns, str(data)), None
    splits = load_dataset(data)
    main = "train" if "train" in splits else next(iter(splits))
    held = (
        _corpus(_numbered(splits["validation"], data), columns, f"{data} (validation)")
        if ("validation" in splits and main != "validation")
        else None
    )
    return _corpus(_numbered(splits[main], data), columns, str(data)), held


def corpus_without_leaks(corpus: Corpus, held: Corpus | None) -> tuple[Corpus, int]:
    """``corpus`` without the rows whose prompt or text is also in ``held``, and how many those were.

    Raises :class:`DataError` where more than half of the rows would go.
    """
    if held is None:
        return corpus, 0
    known = {row.key for row in held.rows}
    kept = tuple(row for row in corpus.rows if row.key not in known)
    leaked = len(corpus.rows) - len(kept)
    check_leaks(leaked, len(corpus.rows), corpus.source, held.source)
    return replace(corpus, rows=kept), leaked


def check_corpora(corpus: Corpus, held: Corpus | None) -> None:
    """What no training can do with these rows, said before a tokenizer is there.

    Raises:
        DataError: One prompt is all there is, so that none can be held out.
        InputError: The rows of both are not of one kind.
    """
    if held is not None and held.kind != corpus.kind:
        raise InputError(
            f"{held.source} holds {held.kind} rows and {corpus.source} {corpus.kind} rows; both must be of one kind"
        )
    prompts = len({row.key for row in corpus.rows})
    # A text is cut into pieces, which only its tokens tell.
    if held is None and corpus.kind != "text" and prompts < 2:
        raise DataError(
            f"{corpus.source}: {len(corpus.rows)} row(s) and only one distinct prompt, so none can be held out: two are the "
            "least, and dozens are needed to learn from. Add rows, or give a validation file"
        )


def text_files(path: Path) -> list[Path]:
    """``path`` itself where it is named as a text file, or the text files in the folder ``path``; else none."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix.lower() in _TEXT_SUFFIXES)
    return [path] if path.suffix.lower() in _TEXT_SUFFIXES else []


def _numbered(rows: Iterable[Mapping[str, Any]], data: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, row in enumerate(rows):
        yield f"data set {data}, row {number}", row


def _texts(files: Iterable[Path], source: str) -> Corpus:
    rows = []
    for file in files:
        text = read_text(file)
        if not text.strip():
            raise DataError(f"{file} is empty: there is nothing to train on")
        rows.append(Row((("text", text),), str(file)))
    return Corpus("text", tuple(rows), source)


def _corpus(rows: Iterable[tuple[str, Mapping[str, Any]]], columns: Columns, source: str) -> Corpus:
    kind: Kind | None = None
    parsed = []
    for where, row in rows:
        if kind is None:
            kind = kind_of(row, columns)
            if kind is None:
                raise DataError(
                    f"{where}: nothing to train a language model on; this row has the columns "
                    f"{', '.join(map(str, row)) or '(none)'}. Expected {columns.prompt!r} and {columns.completion!r}, or "
                    f"{columns.messages!r}, or {columns.text!r}; --prompt, --completion, --messages and --text name others"
                )
        parsed.append(Row(_turns(kind, row, columns, where), where))
    if kind is None:
        raise DataError(f"{source} has no data rows")
    return Corpus(kind, tuple(parsed), source)


def kind_of(row: Mapping[str, Any], columns: Columns) -> Kind | None:
    """What a row with these columns is, or ``None`` where it cannot be trained on."""
    if columns.messages in row:
        return "messages"
    if columns.completion in row and columns.prompt in row:
        return "completion"
    return "text" if columns.text in row else None


def _turns(kind: Kind, row: Mapping[str, Any], columns: Columns, where: str) -> tuple[tuple[str, str], ...]:
    if kind == "text":
        return (("text", _filled(row, columns.text, where)),)
    if kind == "completion":
        return (
            ("user", _filled(row, columns.prompt, where)),
            ("assistant", _filled(row, columns.completion, where)),
        )
    messages = row.get(columns.messages)
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f'{where}: {columns.messages!r} must be a list such as [{{"role": "user", "content": "…"}}, '
            f'{{"role": "assistant", "content": "…"}}], found {_shown(messages)}'
        )
    turns = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise DataError(f"{where}: message {number} must have 'role' and 'content', found {_shown(message)}")
        role, content = message["role"], message["content"]
        if role not in _ROLES:
            raise DataError(f"{where}: message {number} has the role {role!r}; known are {', '.join(sorted(_ROLES))}")
        if not isinstance(content, str) or not content.strip():
            raise DataError(f"{where}: the content of message {number} ({role}) must be text, found {_shown(content)}")
        turns.append((role, content))
    if not any(role == "assistant" for role, _ in turns):
        raise DataError(f"{where}: no message has the role 'assistant', so there is nothing to learn to say")
    return tuple(turns)


def _filled(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if value is None and column not in row:
        raise DataError(
            f"{where}: no column {column!r}; this row has: {', '.join(map(str, row)) or '(none)'}"
            f"; --prompt, --completion and --text name the columns{did_you_mean(column, map(str, row))}"
        )
    if not isinstance(value, str):
        raise DataError(f"{where}: {column!r} must be a string, found {_shown(value)}")
    if not value.strip():
        raise DataError(f"{where}: {column!r} is empty; fill it or remove the row")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"
