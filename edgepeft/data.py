"""Reading labelled text from CSV and JSONL files, with errors that name the row."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import DataError, InputError
from .strict_json import parse_json


def evenly(count: int, rows: int) -> list[int]:
    """At most ``rows`` places of ``count``, spread evenly."""
    if rows < 1:
        raise InputError(f"rows must be at least 1, found {rows}")
    step = max(1.0, count / rows)
    return [int(i * step) for i in range(min(rows, count))]


@dataclass(frozen=True)
class Examples:
    """Rows of a data file.

    ``texts[i]`` is the input of row ``i`` (a pair's second text is in ``pairs[i]``); ``labels[i]`` is its label as a
    string, or ``labels`` is ``None`` when the file was read without labels.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    pairs: tuple[str, ...] | None = None
    source: str = ""
    #: The line of the file on which each row starts (1-based, a CSV header is line 1); empty for rows not from a file.
    lines: tuple[int, ...] = field(default=(), compare=False)

    def where(self, row: int) -> str:
        """The file and line of a row, for messages."""
        return f"{self.source or 'the given examples'}, " + (
            f"line {self.lines[row]}" if self.lines else f"row {row + 1}"
        )

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> Examples:
        """The given rows, in the given order."""
        return Examples(
            texts=tuple(self.texts[i] for i in rows),
            labels=None if self.labels is None else tuple(self.labels[i] for i in rows),
            pairs=None if self.pairs is None else tuple(self.pairs[i] for i in rows),
            source=self.source,
            lines=tuple(self.lines[i] for i in rows) if self.lines else (),
        )


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file, or of standard input (``-``); :class:`DataError` where it cannot be read."""
    name = "standard input" if str(path) == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read data file {path}: {error.strerror or error}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}, line {row}: byte 0x{raw[error.start]:02x} is not valid UTF-8. "
            "Convert the file first, for example: iconv -f latin1 -t utf-8 IN > OUT"
        ) from error


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row of a CSV, TSV or JSONL file as a mapping, with the line it starts on (1-based, a CSV header is line 1).

    Raises :class:`DataError` that names the line, or the format where it is another.
    """
    text = read_text(path)
    if path.suffix.lower() in {".jsonl", ".ndjson", ".json"}:
        # Not splitlines: it also breaks at U+2028 and others, which JSON strings and CSV fields may hold.
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = parse_json(line, where, error=DataError, advice="one object per line", finite=False)
            except DataError as error:
                if isinstance(error.__cause__, json.JSONDecodeError):
                    raise DataError(
                        f"{where}: not a JSON object ({error.__cause__.msg}). One object per line."
                    ) from error
                raise
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
            yield number, row
    elif path.suffix.lower() in {".csv", ".tsv"}:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            header = reader.fieldnames
        except csv.Error as error:
            raise _csv_error(path, 1, error) from error
        if header is None:
            raise DataError(f"{path} is empty: expected a header line such as text,label")
        twice = next((name for place, name in enumerate(header) if name in header[:place]), None)
        if twice:
            raise DataError(f"{path}, line 1: the header names the column {twice[:80]!r} twice")
        while True:
            start = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _csv_error(path, start, error) from error
            if None in fields:
                raise DataError(
                    f"{path}, line {start}: more fields than the header's {len(header)}. "
                    "Quote texts that hold the delimiter."
                )
            yield start, fields
    else:
        raise DataError(f"{path}: unknown data format {path.suffix or '(no suffix)'}; use .csv, .tsv or .jsonl")


def _csv_error(path: Path, line: int, error: csv.Error) -> DataError:
    large = "field limit" in str(error)
    what = (
        f"a field of more than {csv.field_size_limit():,} characters (a quote that is never closed?)"
        if large
        else error
    )
    advice = "Longer texts are read from .jsonl." if large else "Write the file again as CSV or .jsonl."
    return DataError(f"{path}, line {line}: {what}. {advice}")


def read_examples(
    path: str | Path,
    *,
    text: str = "text",
    label: str | None = "label",
    pair: str | None = None,
    limit: int | None = None,
) -> Examples:
    """Read texts and labels from a CSV, TSV or JSONL file.

    ``text``, ``label`` and ``pair`` name the columns; ``label=None`` reads texts alone. Raises :class:`DataError` with
    the line number for a row that is not UTF-8, lacks a column or has an empty label.
    """
    path = Path(path)
    texts: list[str] = []
    labels: list[str] = []
    pairs: list[str] = []
    lines: list[int] = []
    for line, row in read_rows(path):
        for column in (text, label, pair):
            if column is not None and row.get(column) is None:
                raise DataError(
                    f"{path}, line {line}: no column {column!r}; this row has: {', '.join(map(str, row)) or '-'}"
                )
        if not isinstance(row[text], str):
            raise DataError(f"{path}, line {line}: {text!r} must be a string, found {type(row[text]).__name__}")
        texts.append(row[text])
        lines.append(line)
        if label is not None:
            value = (
                json.dumps(row[label], allow_nan=False) if isinstance(row[label], list) else str(row[label])
            ).strip()
            if not value:
                raise DataError(f"{path}, line {line}: the label is empty")
            labels.append(value)
        if pair is not None:
            pairs.append(str(row[pair]))
        if limit is not None and len(texts) >= limit:
            break
    if not texts:
        raise DataError(f"{path} has no data rows")
    return Examples(
        texts=tuple(texts),
        labels=tuple(labels) if label is not None else None,
        pairs=tuple(pairs) if pair is not None else None,
        source=str(path),
        lines=tuple(lines),
    )


def read_texts(path: str | Path, *, text: str = "text", pair: str | None = None) -> list[str] | list[tuple[str, str]]:
    """Texts without labels: as :func:`read_examples`, or one a line from a ``.txt`` file or standard input (``-``).

    Empty lines are texts too, so that results can be laid beside the lines. Pairs need a file with columns.
    """
    path = Path(path)
    if str(path) == "-" or path.suffix.lower() == ".txt":
        if pair is not None:
            raise InputError(f"{path}: pairs need a file with columns: .csv, .tsv or .jsonl")
        lines = read_text(path).removesuffix("\n").split("\n")
        return [line.removesuffix("\r") for line in lines] if lines != [""] else []
    found = read_examples(path, text=text, label=None, pair=pair)
    return list(found.texts) if found.pairs is None else list(zip(found.texts, found.pairs, strict=True))


@dataclass(frozen=True)
class PromptRows:
    """What a language model is to go on from: texts, or conversations as messages that end before an answer.

    ``chat``: whether texts go through the chat template; ``None``: where the bundle has one.
    """

    prompts: tuple[str | tuple[dict[str, str], ...], ...]
    chat: bool | None = None
    source: str = ""

    def __len__(self) -> int:
        return len(self.prompts)

    def spread(self, rows: int) -> PromptRows:
        """At most ``rows`` of them, spread evenly."""
        return replace(self, prompts=tuple(self.prompts[i] for i in evenly(len(self), rows)))


#: Of a row of plain text, how many characters are gone on from.
_TEXT_START = 200


def read_prompts(
    path: str | Path, *, prompt: str = "prompt", messages: str = "messages", text: str = "text"
) -> PromptRows:
    """Prompts from rows as language models are trained on: ``prompt``, ``messages`` up to the last answer, or plain ``text``.

    A plain text's first 200 characters, to the end of a word, are gone on from as they are, without the chat template.
    Raises :class:`DataError` that names the line.
    """
    path = Path(path)
    found: list[str | tuple[dict[str, str], ...]] = []
    kinds = set()
    for line, row in read_rows(path):
        where = f"{path}, line {line}"
        column = next((name for name in (messages, prompt, text) if row.get(name) is not None), None)
        if column is None:
            raise DataError(
                f"{where}: nothing to go on from; expected {prompt!r}, {messages!r} or {text!r}, this row has: "
                f"{', '.join(map(str, row)) or '-'}"
            )
        kinds.add("text" if column == text else "chat")
        value = row[column]
        if column == messages:
            found.append(_before_answer(value, where))
        elif not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {column!r} must be a text, found {value!r}")
        else:
            found.append(value if column == prompt else _start(value))
    if not found:
        raise DataError(f"{path} has no data rows")
    if len(kinds) > 1:
        raise DataError(f"{path}: some rows are plain text and some are prompts; give them as two files")
    return PromptRows(tuple(found), chat=False if kinds == {"text"} else None, source=str(path))


def _start(text: str) -> str:
    if len(text) <= _TEXT_START:
        return text
    return text[:_TEXT_START].rsplit(maxsplit=1)[0]


def _before_answer(value: Any, where: str) -> tuple[dict[str, str], ...]:
    fits = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )
    turns = [{"role": m["role"], "content": m["content"]} for m in value] if fits else []
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    before = turns[: answers[-1]] if answers else turns
    if not before:
        raise DataError(
            f'{where}: \'messages\' must be a list such as [{{"role": "user", "content": "…"}}] with something before the '
            f"answer, found {value!r:.60}"
        )
    return tuple(before)
