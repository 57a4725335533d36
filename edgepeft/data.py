"""Labelled texts, and prompts, from files of rows, with errors that name the row."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .data_files import read_rows, read_text
from .errors import DataError, InputError
from .spelling import did_you_mean
from .spilled_texts import IN_MEMORY, TextsBuilder, ValuesBuilder


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
    string, or ``labels`` is ``None`` when the file was read without labels. Texts of a large file are on disk, and read when they
    are asked for.
    """

    texts: Sequence[str]
    labels: tuple[str, ...] | None
    pairs: Sequence[str] | None = None
    source: str = ""
    #: The line of the file on which each row starts (1-based, a CSV header is line 1); empty for rows not from a file.
    lines: Sequence[int] = field(default=(), compare=False)

    def where(self, row: int) -> str:
        """The file and line of a row, for messages."""
        if self.lines and not self.source.endswith(".parquet"):
            return f"{self.source}, line {self.lines[row]}"
        return f"{self.source or 'the given examples'}, row {row + 1}"

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


def read_examples(
    path: str | Path,
    *,
    text: str = "text",
    label: str | None = "label",
    pair: str | None = None,
    limit: int | None = None,
) -> Examples:
    """Read texts and labels from a CSV, TSV, JSON, JSONL or Parquet file.

    ``text``, ``label`` and ``pair`` name the columns; ``label=None`` reads texts alone. Raises :class:`DataError` with
    the line number for a row that is not UTF-8, lacks a column or has an empty label.
    """
    path = Path(path)
    texts, pairs = TextsBuilder(), TextsBuilder()
    labels: list[str] = []
    known: dict[str, str] = {}  # of many rows with few labels each label is held once
    lines = array("Q")
    for line, row in read_rows(path):
        for option, column in (("--text", text), ("--label", label), ("--pair", pair)):
            if column is not None and (row.get(column) is None or (column == label and _is_nan(row[column]))):
                if column == label and column in row:
                    raise DataError(
                        f"{path}, line {line}: no column {column!r} that holds anything: the label is empty"
                    )
                raise DataError(
                    f"{path}, line {line}: no column {column!r}; this row has: {', '.join(map(str, row)) or '-'}"
                    f"; {option} COLUMN names another{did_you_mean(column, map(str, row))}"
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
            labels.append(known.setdefault(value, value))
        if pair is not None:
            pairs.append(str(row[pair]))
        if limit is not None and len(texts) >= limit:
            break
    if not len(texts):
        raise DataError(f"{path} has no data rows")
    return Examples(
        texts=texts.done(),
        labels=tuple(labels) if label is not None else None,
        pairs=pairs.done() if pair is not None else None,
        source=str(path),
        lines=tuple(lines) if len(lines) <= IN_MEMORY else lines,
    )


def _is_nan(value: Any) -> bool:
    """What tables write where a number lacks."""
    return isinstance(value, float) and math.isnan(value)


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


#: What is gone on from: a text, or messages.
Prompt = str | tuple[dict[str, str], ...]


@dataclass(frozen=True)
class PromptRows:
    """What a language model is to go on from: texts, or conversations as messages that end before an answer.

    Those of a large file are on disk, and read when they are asked for.
    ``chat``: whether texts go through the chat template; ``None``: where the bundle has one.
    """

    prompts: Sequence[Prompt]
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
    found: ValuesBuilder[Prompt] = ValuesBuilder(_as_text, _of_text)
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
    if not len(found):
        raise DataError(f"{path} has no data rows")
    if len(kinds) > 1:
        raise DataError(f"{path}: some rows are plain text and some are prompts; give them as two files")
    return PromptRows(found.done(), chat=False if kinds == {"text"} else None, source=str(path))


def _as_text(prompt: Prompt) -> str:
    return json.dumps(prompt, allow_nan=False)


def _of_text(text: str) -> Prompt:
    prompt = json.loads(text)
    return tuple(prompt) if isinstance(prompt, list) else str(prompt)


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
